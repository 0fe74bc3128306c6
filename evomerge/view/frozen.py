"""Frozen: the page of one study as one file, which needs no server and loads nothing. It holds the state at one moment."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from evomerge.errors import StudyError, SurrogateError
from evomerge.view import page
from evomerge.view.server import STATIC
from evomerge.view.source import Source

LARGEST = 1_000_000
"""Bytes of a page at most: models that do not fit in are left out, those that the report picked and its front first in."""

_IMPORT = re.compile(r'^import \{ [^}]* \} from "\./([a-z]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=async function|function|class|const)", re.MULTILINE)


def save(folder: Path) -> str:
    """Return the page of the study in `folder`, of less than 1 MB. Raises `StudyError` without candidates, or with too many."""
    source = Source(folder)
    search = page.search(source)
    if not search["rows"]:
        raise StudyError(f"{folder}: no candidate has been evaluated yet, so there is nothing to show")
    data: dict[str, Any] = {
        "search": search,
        "progress": page.progress(source),
        "population": page.population(source),
    }
    report = search.get("report", {})
    listed = [one["name"] for one in (*report.get("front", ()), *report.get("references", ()))]
    names = dict.fromkeys([*([report["picked"]] if report else []), *listed, *(f"#{n}" for n in search["front"])])
    shell = _shell()
    slices = next((name for name in names if name.startswith("#")), None)
    if slices is not None:
        try:
            data["genes"] = page.slices(source, slices)
        except (StudyError, SurrogateError) as error:
            data["genes"] = {"error": str(error)}
    size = len(shell) + len(_json(data))
    for name in names:
        more = {f"model {name}": page.model(source, name, "")}
        size += len(_json(more))
        if size > LARGEST:
            break
        data |= more
    content = shell.replace("@data@", _json(data))
    if len(content.encode()) > LARGEST:
        raise StudyError(
            f"{folder}: its {len(search['rows'])} candidates do not fit into a page of 1 MB; type: evomerge view {folder}"
        )
    return content


def _json(data: Any) -> str:
    """Return JSON that can stand in a page: no `<` ends its element or begins a comment."""
    text = json.dumps(page.finite(data), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _shell() -> str:
    """Return the page with its styles and scripts, and `@data@` in the place of its data."""
    styles = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in ("uplot.css", "style.css"))
    library, script = (STATIC / "uplot.js").read_text(encoding="utf-8"), _joined("app.js", [])
    licence = (STATIC / "uplot-LICENSE.txt").read_text(encoding="utf-8").strip()
    policy = "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
    policy += f"style-src {_hash(styles)}; script-src {_hash(library)} {_hash(script)}"
    text = (STATIC / "index.html").read_text(encoding="utf-8")
    parts = {
        '<meta charset="utf-8">\n': f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">\n',
        '<link rel="stylesheet" href="uplot.css">\n': "",
        '<link rel="stylesheet" href="style.css">\n': f"<style>{styles}</style>\n",
        '<script src="uplot.js" defer></script>\n': "",
        '<script src="app.js" type="module"></script>\n': "",
        "</body>": f'<script type="application/json" id="frozen">@data@</script>\n<!-- uPlot: {licence} -->\n'
        f'<script>{library}</script>\n<script type="module">{script}</script>\n</body>',
    }
    for old, new in parts.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def _joined(name: str, done: list[str]) -> str:
    """Return a module after those that it imports, as one script. Names at the top of the modules are all different."""
    if name in done:
        return ""
    done.append(name)
    text = (STATIC / name).read_text(encoding="utf-8")
    before = "".join(_joined(other, done) for other in _IMPORT.findall(text))
    return before + _EXPORT.sub("", _IMPORT.sub("", text))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
