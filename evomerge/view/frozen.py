"""Frozen: the page of one study as one file, which needs no server and loads nothing. It holds the state at one moment.

`evomerge view --save` writes it, and each report, as `report.html`. The same study and report give the same bytes.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import version
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import StudyError, SurrogateError
from evomerge.report.drawn import Drawn, draw
from evomerge.report.results import Results
from evomerge.report.section import section
from evomerge.view import page
from evomerge.view.source import Source

LARGEST = 1_000_000
"""Bytes of a page. What exceeds them is left out: models after those that the report picked and its front, then candidates that are
not on the front, evenly. Report and front are always there."""

_DIGITS = 6
_LASTING = ("spent", "budget", "failed", "failures", "seconds")
"""What a page says of a search's status: no clock, no process."""
_PLACES = re.compile("@(title|mark|report|data)@")
_MARK = re.compile('<meta name="drawn-from" content="([0-9a-f]{64}) ([^"]*)">')
_HEAD = 4_000
"""Characters of a page, of which its mark is in the first."""
_IMPORT = re.compile(r'^import \{ [^}]* \} from "\./([a-z]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=async function|function|class|const)", re.MULTILINE)


def mark(results: Results, folder: Path, pairs: Sequence[Sequence[str]] = ()) -> str:
    """Return what tells a report's page and figures from all others: a digest of what they are drawn from, and by which version."""
    drawn_from = json.dumps(
        [version("evomerge"), str(folder), results.model_dump(mode="json"), [list(pair) for pair in pairs]]
    )
    return hashlib.sha256(drawn_from.encode()).hexdigest()


def is_written(folder: Path, marked: str) -> bool:
    """Return whether the study's `folder` holds the page with this mark, and its figures."""
    try:
        with (folder / "report.html").open(encoding="utf-8") as opened:
            match = _MARK.search(opened.read(_HEAD))
    except (OSError, UnicodeDecodeError):
        return False
    return match is not None and match[1] == marked and all((folder / name).is_file() for name in match[2].split())


def save(folder: Path) -> str:
    """Return the page of the study in `folder`. Raises `StudyError` without candidates."""
    source = Source(folder)
    results = source.results()
    return text(source, {}) if results is None else text(source, draw(results), mark(results, folder))


def text(source: Source, drawn: Mapping[str, Drawn], marked: str = "") -> str:
    """Return the page of a study with the figures of its last report, and its mark. Raises `StudyError` without candidates."""
    search, results = page.search(source), source.results()
    if not search["rows"]:
        raise StudyError(f"{source.folder}: no candidate has been evaluated yet, so there is nothing to show")
    data: dict[str, Any] = {
        "search": {**search, "status": _lasting(search["status"]), "reported": int(bool(search["reported"]))},
        "progress": page.progress(source),
    }
    population = page.population(source)
    if population["cells"] or len(population) > 1:  # else the page has no such view
        data["population"] = population
    data["progress"]["status"] = data["search"]["status"]
    report = search.get("report", {})
    listed = [one["name"] for one in (*report.get("front", ()), *report.get("references", ()))]
    names = dict.fromkeys([*([report["picked"]] if report else []), *listed, *(f"#{n}" for n in search["front"])])
    slices = next((name for name in names if name.startswith("#")), None)
    if slices is not None:
        try:
            data["genes"] = page.slices(source, slices)
        except (StudyError, SurrogateError) as error:
            data["genes"] = {"error": str(error)}
    files_ = " ".join(f"{name}.{kind}" for name in drawn for kind in ("png", "svg"))
    parts = {"title": escape(source.name), "mark": f"{marked} {files_}" * bool(marked), "report": ""}
    if results is not None:
        later = len(source.rows) - results.evaluations
        said = f"<p>The search went on after this report: {later} candidates are not in it.</p>\n" if later > 0 else ""
        content = section(results, source.folder, drawn)
        parts["report"] = f'<section id="report" aria-label="Report">\n{said}{content}</section>'
    shell = _shell()
    free = LARGEST - len(shell) - sum(len(part.encode()) for part in parts.values()) - len(_json(data))
    if free < 0:
        _thin(data["search"], -free)
    for name in names:
        more = {f"model {name}": page.model(source, name, "")}
        free -= len(_json(more))
        if free < 0:
            break
        data |= more
    parts["data"] = _json(data)
    return _PLACES.sub(lambda place: parts[place[1]], shell)


def _lasting(status: Mapping[str, Any]) -> dict[str, Any]:
    return {key: status[key] for key in _LASTING}


def _thin(search: dict[str, Any], excess: int) -> None:
    """Leave out candidates that are not on the front, evenly, until the page is smaller by `excess` bytes; `left_out` is how many."""
    rows, front = search["rows"], {*search["front"]}
    sizes = np.array([0 if row[0] in front else len(_json(row)) + 1 for row in rows])
    others = np.flatnonzero(sizes)
    count = max(int((1 - excess / max(sizes.sum(), 1)) * len(others)) - 1, 0)
    kept = np.ones(len(rows), bool)
    kept[others] = False
    kept[others[np.linspace(0, len(others) - 1, count).round().astype(int)]] = True
    search |= {"rows": list(compress(rows, kept)), "left_out": int((~kept).sum())}


def _json(data: Any) -> str:
    """Return JSON that can stand in a page: no `<` ends its element or begins a comment. Numbers have six digits."""
    written = json.dumps(_rounded(page.finite(data)), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return written.replace("<", "\\u003c")


def _rounded(data: Any) -> Any:
    if isinstance(data, float):
        return float(f"{data:.{_DIGITS}g}")
    if isinstance(data, dict):
        return {key: _rounded(value) for key, value in data.items()}
    return [_rounded(value) for value in data] if isinstance(data, list) else data


def _shell() -> str:
    """Return the page with its styles and scripts, and `@title@`, `@mark@`, `@report@` and `@data@` in the places of these."""
    styles = "\n".join((page.STATIC / name).read_text(encoding="utf-8") for name in ("uplot.css", "style.css"))
    library, script = (page.STATIC / "uplot.js").read_text(encoding="utf-8"), _joined("app.js", [])
    licence = (page.STATIC / "uplot-LICENSE.txt").read_text(encoding="utf-8").strip()
    policy = "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
    policy += f"style-src {_hash(styles)}; script-src {_hash(library)} {_hash(script)}"
    shell = (page.STATIC / "index.html").read_text(encoding="utf-8")
    parts = {
        '<meta charset="utf-8">\n': f'<meta charset="utf-8">\n<meta name="drawn-from" content="@mark@">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n',
        "<title>evomerge</title>": "<title>@title@: evomerge</title>",
        '<h1 id="title">evomerge</h1>': '<h1 id="title">@title@</h1>',
        '<div id="view"></div>': '@report@<div id="view"></div>',
        "This page needs JavaScript. <code>evomerge show DIR</code> prints the same numbers.": "The other views of this page need JavaScript.",
        '<link rel="stylesheet" href="uplot.css">\n': "",
        '<link rel="stylesheet" href="style.css">\n': f"<style>{styles}</style>\n",
        '<script src="uplot.js" defer></script>\n': "",
        '<script src="app.js" type="module"></script>\n': "",
        "</body>": f'<script type="application/json" id="frozen">@data@</script>\n<!-- uPlot: {licence} -->\n'
        f'<script>{library}</script>\n<script type="module">{script}</script>\n</body>',
    }
    for old, new in parts.items():
        assert shell.count(old) == 1, old
        shell = shell.replace(old, new)
    return shell


def _joined(name: str, done: list[str]) -> str:
    """Return a module after those that it imports, as one script. Names at the top of the modules are all different."""
    if name in done:
        return ""
    done.append(name)
    text = (page.STATIC / name).read_text(encoding="utf-8")
    before = "".join(_joined(other, done) for other in _IMPORT.findall(text))
    return before + _EXPORT.sub("", _IMPORT.sub("", text))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
