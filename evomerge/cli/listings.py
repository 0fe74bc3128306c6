"""What can be chosen from: search spaces, merge methods, embedded zoos."""

from inspect import getdoc
from pathlib import Path
from typing import Literal, get_args, get_origin

from rich.markup import escape
from rich.table import Table

from evomerge import merging, space, strict_yaml, tasks, zoo
from evomerge.cli.console import new_console, say
from evomerge.errors import EvomergeError, StudyError, nearest
from evomerge.progress import Progress


def spaces(name: str | None, from_method: str | None) -> None:
    """Print a space's YAML, or list the spaces and the methods."""
    console = new_console()
    shipped = space.shipped()
    if from_method is not None:
        console.print(space.from_method(from_method), end="", markup=False, soft_wrap=True)
        return
    if name is not None:
        if name not in shipped:
            raise StudyError(f"no search space `{name}`; {nearest(name, shipped)}")
        console.print(shipped[name].read_text(encoding="utf-8"), end="", markup=False, soft_wrap=True)
        return
    table = Table("space", "what it searches", box=None)
    for key, file in shipped.items():
        table.add_row(key, strict_yaml.parse(file.read_text(encoding="utf-8"), key)["about"])
    console.print(table)
    methods = Table("method", "formula and source", box=None)
    for key, method in merging.METHODS.items():
        methods.add_row(key, escape(method.about))
    console.print()
    console.print(methods)
    console.print(
        "\n`evomerge spaces NAME` prints a space, `evomerge spaces --from-method METHOD` makes one of a method's parameters; "
        "`space:` in a study takes a name, a file, or the space itself."
    )


def task_kinds(kind: str | None) -> None:
    """Print a kind's documentation and keys, or list the kinds."""
    console = new_console()
    if kind is None:
        table = Table("kind", "what it scores", box=None)
        for name, (_, factory) in tasks.KINDS.items():
            table.add_row(name, escape((getdoc(factory) or "").partition("\n")[0]))
        console.print(table)
        say(console, "\n`evomerge tasks KIND` prints all keys of a kind, and an example")
        return
    if kind not in tasks.KINDS:
        raise StudyError(f"no kind of task `{kind}`; {nearest(kind, tasks.KINDS)}")
    schema, factory = tasks.KINDS[kind]
    say(console, f"{getdoc(factory)}\n\n{getdoc(schema)}\n")
    table = Table("key", "default", "meaning", box=None)
    for key, field in schema.model_fields.items():
        default = "required" if field.is_required() else f"{field.default}"
        options = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        choices = f" One of {', '.join(map(str, options))}." if len(options) > 1 else ""
        table.add_row(key, escape(default), escape(" ".join((field.description or "").split()) + choices))
    console.print(table)


def zoos() -> None:
    """List the zoos."""
    console = new_console()
    for name in zoo.names():
        try:
            built = zoo.load(name)
        except EvomergeError:
            say(console, f"{name}: not built; type: evomerge zoo build {name}")
        else:
            say(console, f"{name}: {built.about}\n  {built.folder}")


def build_zoo(name: str, seed: int, *, text: Path | None = None, again: bool = False) -> None:
    """Build a zoo with progress, unless it is there."""
    console = new_console()
    make = zoo.build if again else zoo.find_or_build
    with Progress(f"zoo {name}", 100, console) as bar:
        built = make(name, seed=seed, text=text, progress=lambda done, step: bar(round(100 * done), note=step))
    say(console, f"zoo {name}: {built.folder}")
