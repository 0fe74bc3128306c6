"""A hook of mkdocs: what pages take from the code, from the experiments' results and from other files of the repository.

A line `[[NAME ARGUMENTS]]` of a page is replaced by what the function NAME of `FRAGMENTS` returns. Pages of results are added as a
whole. All of it is made at each build, so that it cannot fall behind; the same code gives the same pages.
"""

import base64
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from inspect import cleandoc, getdoc
from pathlib import Path
from typing import Any, get_origin

import griffe
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel

import evomerge
from evomerge import merging, search, space, strict_yaml, tasks
from evomerge.cli.app import app
from evomerge.merging.parameters import Parameter
from evomerge.recipe import NODES
from evomerge.statistics import STATISTICS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
_FRAGMENT = re.compile(r"^\[\[(\w+) ?(.*)\]\]$", re.MULTILINE)
_TYPES = {str: "TEXT", list: "TEXT", Path: "PATH", int: "N", float: "NUMBER"}
_LOADS = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//|<link\b[^>]*\bhref=[\"']?(?:https?:)?//"
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of the results to the navigation."""
    entries = next(entry["Measured"] for entry in config.nav or () if "Measured" in entry)
    entries.extend(f"measured/{file.name}" for file in sorted(RESULTS.glob("*.md")))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the results of the experiments, with their figures, and a page for each notebook."""
    for place, text in results().items():
        files.append(File.generated(config, place, content=text))
    for figure in sorted(RESULTS.glob("*.png")):
        files.append(File.generated(config, f"measured/{figure.name}", abs_src_path=str(figure)))
    for path in sorted(Path(config.docs_dir).rglob("*.ipynb")):
        place = path.relative_to(config.docs_dir)
        text, pictures = notebook(path)
        files.append(File.generated(config, str(place.with_suffix(".md")), content=text))
        for name, png in pictures.items():
            files.append(File.generated(config, str(place.with_name(name)), content=png))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the lines `[[NAME ARGUMENTS]]`."""
    return _FRAGMENT.sub(lambda line: FRAGMENTS[line[1]](*line[2].split()), markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that loads anything from elsewhere."""
    if loads := _LOADS.search(output):
        raise PluginError(f"{page.file.src_uri} loads from elsewhere: {loads.group()}")
    return output


def results() -> dict[str, str]:
    """Return the pages of the committed results: the table of claims, and a page for each with its figure."""
    text = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8").replace("](results/", "](")
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines() if "](" in line]
    pages = {"measured/index.md": text.replace("# Experiments", "# Measured", 1)}
    for file in sorted(RESULTS.glob("*.md")):
        about = "".join(f"Claim: {row[1]}. Command: {row[2]}.\n\n" for row in rows if f"]({file.name})" in row[-1])
        head, _, body = file.read_text(encoding="utf-8").partition("\n")
        figure = f"![Figure of {file.stem}]({file.stem}.png)\n" if file.with_suffix(".png").exists() else ""
        pages[f"measured/{file.name}"] = f"{head}\n\n{about}{figure}\n{body}"
    return pages


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return the page of a notebook as Markdown, with the outputs that it is kept with, and its pictures by name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for one in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(one["source"])
        parts.append(f"```python\n{source}\n```" if one["cell_type"] == "code" else source)
        for output in one.get("outputs", ()):
            data = {
                kind: "".join(value)
                for kind, value in output.get("data", {"text/plain": output.get("text", "")}).items()
            }
            if "image/png" in data:
                name = f"{path.stem}-{len(pictures)}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![The picture that the cell draws]({name})")
            elif "text/html" in data:
                plain = re.sub(r"<style.*?</style>\n?", "", data["text/html"], flags=re.DOTALL)
                parts.append(re.sub(r"<table[^>]*>", "<table>", plain))  # as the site's own tables
            else:
                parts.append(f"```text\n{data['text/plain'].rstrip()}\n```")
    parts.insert(1, f"[This page as a notebook]({path.name}).")
    return "\n\n".join(parts) + "\n", pictures


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *([cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def cell(text: str) -> str:
    """Return `text` on one line, with its bars escaped outside of code, and papers as links."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return linked("".join(part if part.startswith("`") else part.replace("|", "\\|") for part in parts))


def linked(text: str) -> str:
    """Return `text` with the papers of arXiv as links."""
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def sentence(text: str) -> str:
    """Return the phrase `text` as a sentence."""
    return linked(f"{text[0].upper()}{text[1:]}.")


def code(value: Any) -> str:
    """Return a value as code, as YAML writes it."""
    if value is None or isinstance(value, bool):
        return f"`{'none' if value is None else str(value).lower()}`"
    if isinstance(value, tuple):
        value = list(value)
    return f"`{value if str(value).strip() else json.dumps(value)}`"


@cache
def source() -> griffe.Object:
    """Return the package's source, which has the documentation of attributes."""
    return griffe.load("evomerge", search_paths=[ROOT])


def declared(schema: type[BaseModel], key: str) -> griffe.Object | None:
    """Return the declaration of a model's field in the source, or None for one of a plug-in."""
    for parent in schema.__mro__:
        if key in vars(parent).get("__annotations__", {}) and parent.__module__.startswith("evomerge."):
            return source()[f"{parent.__module__}.{parent.__qualname__}".removeprefix("evomerge.")].members[key]
    return None


def keys(schema: type[BaseModel], without: Iterable[str] = ()) -> str:
    """Return the table of a settings model: keys, types, defaults and meanings."""
    rows = []
    for key, field in schema.model_fields.items():
        if key in without:
            continue
        attribute = declared(schema, key)
        meaning = attribute.docstring.value if attribute is not None and attribute.docstring else field.description
        written = field.annotation if attribute is None else attribute.annotation
        value = None if field.is_required() else field.get_default(call_default_factory=True)
        default = "required" if field.is_required() else "below" if isinstance(value, BaseModel) else code(value)
        rows.append((f"`{field.alias or key}`", f"`{written}`", default, meaning or ""))
    return table(("key", "type", "default", "meaning"), rows)


def settings(path: str, without: str = "") -> str:
    """Return the documentation and the keys of the settings model `MODULE:CLASS`, `without` those of another."""
    schema = model_at(path)
    return f"{linked(getdoc(schema) or '')}\n\n{keys(schema, model_at(without).model_fields if without else ())}"


def model_at(path: str) -> type[BaseModel]:
    """Return the settings model `MODULE:CLASS`."""
    module, _, name = path.partition(":")
    found: type[BaseModel] = getattr(importlib.import_module(module), name)
    return found


def forms() -> str:
    """Return the table of the kinds of recipe."""
    return table(("form", "what it is"), [(node.form, getdoc(node) or "") for node in NODES.values()])


def commands() -> str:
    """Return a section for each command."""
    parts = []
    for name, command in leaves(typer.main.get_command(app).commands, "evomerge"):
        arguments = [metavar(entry) for entry in command.params if entry.param_type_name == "argument"]
        parts.append(
            f"## {name}\n\n```text\n{' '.join([name, '[OPTIONS]', *arguments])}\n```\n\n{command.help}\n\n{command.epilog}\n"
        )
        rows = [
            (typed(entry), "" if entry.default in (None, False) else code(entry.default), entry.help or "")
            for entry in command.params
            if not entry.hidden
        ]
        parts += [table(("argument or option", "default", "meaning"), rows)] if rows else []
    return "\n".join(parts)


def exit_codes() -> str:
    """Return what the help text says of exit codes."""
    return f"{typer.main.get_command(app).epilog}"


def leaves(group: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield every command with its full name, in the order in which `evomerge --help` lists them."""
    for name, command in group.items():
        if hasattr(command, "commands"):
            yield from leaves(command.commands, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def typed(entry: Any) -> str:
    """Return an argument or an option as it is typed."""
    if entry.param_type_name == "argument":
        return f"`{metavar(entry)}`"
    names = ", ".join(f"`{name}`" for name in entry.opts)
    if entry.is_flag:
        return names
    kind = entry.type_descriptor.annotation
    return f"{names} `{_TYPES[get_origin(kind) or kind]}`"


def metavar(argument: Any) -> str:
    """Return how an argument is named in usage lines."""
    name = argument.metavar or argument.name.upper()
    return name if argument.required else f"[{name}]"


def python() -> str:
    """Return the public names, for mkdocstrings."""
    return "\n\n".join(f"::: evomerge.{name}" for name in evomerge.__all__)


@cache
def choices() -> Any:
    """Return the hand-written part of tables: when to use what."""
    return strict_yaml.read(Path(__file__).parent / "choices.yaml")


def grouped(names: Iterable[str], what: str) -> list[tuple[str, str, list[str]]]:
    """Return (group, when to use it, those of `names` in it), and last those that no group has."""
    left = list(names)
    groups = []
    for group, entry in choices()[what].items():
        groups.append((group, entry["when"], [name for name in entry["names"] if name in left]))
        left = [name for name in left if name not in entry["names"]]
    return [*groups, *([("Others", "", left)] if left else [])]


def overview(what: str) -> str:
    """Return the table of which methods or drivers to use when, with links to their sections."""
    names = {"methods": merging.METHODS, "drivers": search.KINDS}[what]
    rows = [
        (group, when, ", ".join(f"[`{name}`](#{name})" for name in members))
        for group, when, members in grouped(names, what)
    ]
    return table(("group", "when to use it", what), rows)


def parameters(specs: Mapping[str, Parameter]) -> str:
    """Return the table of a method's or a stage's parameters."""
    rows = [
        (f"`{name}`", code(spec.default), spec.expected, searched(spec), spec.about) for name, spec in specs.items()
    ]
    return table(("parameter", "default", "valid", "searched", "meaning"), rows) if rows else "No parameters.\n"


def searched(spec: Parameter) -> str:
    """Return the range that `evomerge spaces --from-method` searches, and whether each input has a gene."""
    if spec.search is None:
        return ""
    low, high = spec.search
    return f"[{low:g}, {high:g}]{', log' * spec.log}{', per input' * spec.per_input}"


def methods() -> str:
    """Return a section for each merge method."""
    parts = []
    for _, _, names in grouped(merging.METHODS, "methods"):
        for name in names:
            method = merging.METHODS[name]
            inputs = f" Takes exactly {method.inputs} inputs." if method.inputs else ""
            parts.append(f"## {name} {{ #{name} }}\n\n{sentence(method.about)}{inputs}\n")
            parts.append(f"{composition(method)}\n\n{parameters(method.parameters)}")
    return "\n".join(parts)


def composition(method: merging.Method) -> str:
    """Return a method's stages in their order, as links, with the reduction between them."""
    links = {name: f"[`{name}`](stages.md#{name})" for name in method.stages}
    before = [links[name] for name in method.stages if merging.STAGES[name].role != "post"]
    after = [links[name] for name in method.stages if merging.STAGES[name].role == "post"]
    weights = "Of raw weights: " if method.origin == "zero" else "Of task vectors: "
    return weights + " → ".join([*before, f"`{method.reduce}`", *after])


def module(name: str) -> str:
    """Return the documentation of a module, without its first paragraph and its last."""
    paragraphs = cleandoc(importlib.import_module(name).__doc__ or "").split("\n\n")
    return linked("\n\n".join(paragraphs[1:-1]))


def stages(role: str) -> str:
    """Return a section for each stage with this role."""
    parts = []
    for name, stage in merging.STAGES.items():
        if stage.role == role:
            slopes = f"\nSlopes: {', '.join(code(key) for key in stage.slopes)}.\n" if stage.slopes else ""
            parts.append(
                f"### {name} {{ #{name} }}\n\n{sentence(stage.about)}\n\n{parameters(stage.parameters)}{slopes}"
            )
    return "\n".join(parts)


def statistics() -> str:
    """Return the table of the kinds of statistics."""
    return table(
        ("statistic", "tables of each matrix or tensor"), [(f"`{k}`", kind.about) for k, kind in STATISTICS.items()]
    )


def spaces() -> str:
    """Return a section for each shipped search space, with its YAML."""
    parts = []
    for name, file in space.shipped().items():
        text = file.read_text(encoding="utf-8")
        about = linked(strict_yaml.parse(text, name)["about"])
        parts.append(f"## {name} {{ #{name} }}\n\n{about}\n\n```yaml\n{text}```\n")
    return "\n".join(parts)


def task_kinds() -> str:
    """Return a section for each kind of task."""
    parts = []
    for name, (schema, factory) in tasks.KINDS.items():
        parent = next(base for base in schema.__mro__[1:] if issubclass(base, BaseModel))
        parts.append(f"## {name} {{ #{name} }}\n\n{linked(getdoc(factory) or '')}\n\n{linked(getdoc(schema) or '')}\n")
        parts.append(keys(schema, parent.model_fields))
    return "\n".join(parts)


def drivers() -> str:
    """Return a section for each driver."""
    parts = []
    for _, _, names in grouped(search.KINDS, "drivers"):
        for name in names:
            schema, _ = search.KINDS[name]
            parts.append(f"## {name} {{ #{name} }}\n\n{linked(driver(name, schema))}\n\n{keys(schema, ['kind'])}")
    return "\n".join(parts)


def driver(kind: str, schema: type[BaseModel]) -> str:
    """Return what a driver is: the documentation of its module, or of the package that has its name."""
    package = schema.__module__.rpartition(".")[0]
    module = package if package.endswith(f".{kind}") else schema.__module__
    return cleandoc(sys.modules[module].__doc__ or "")


def default_driver() -> str:
    """Return which driver is the default one."""
    return (getdoc(search.default) or "").partition("\n\n")[2]


def file(name: str) -> str:
    """Return a file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


FRAGMENTS: Mapping[str, Callable[..., str]] = {
    function.__name__: function
    for function in (
        commands,
        default_driver,
        drivers,
        exit_codes,
        file,
        forms,
        methods,
        module,
        overview,
        python,
        settings,
        spaces,
        stages,
        statistics,
        task_kinds,
    )
}
