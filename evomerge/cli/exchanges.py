"""Commands that read and write the recipes of other tools: import and export."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from evomerge import exchange, files, strict_yaml
from evomerge.cli.console import new_console, say
from evomerge.cli.merges import PoolOptions, read_recipe
from evomerge.errors import RecipeError, StudyError, nearest
from evomerge.exchange.tables import Outline
from evomerge.study import Study

if TYPE_CHECKING:
    from pandas import DataFrame

_DEFINITIONS = ("evomerge", "mergekit")


def read(file: Path, out: Path | None, definitions: str) -> None:
    """Print or write what a configuration says, and in words what evomerge defines otherwise."""
    if definitions not in _DEFINITIONS:
        raise RecipeError(f"--as: {definitions!r}; {nearest(definitions, _DEFINITIONS)}")
    _check_new(out)
    imported = exchange.read(file, exact=definitions == "mergekit")
    is_study = isinstance(imported, exchange.ImportedStudy)
    head = f"# from {file.name}, by the definitions of {definitions}\n"
    _give(head + strict_yaml.text(imported.data), out, f"evomerge {'run' if is_study else 'merge'} {out} -o FOLDER")
    _tell(imported.notes, "evomerge defines nothing in this file otherwise", "what evomerge defines otherwise:", out)


def write(file: Path, out: Path | None, options: PoolOptions, *, mergekit: bool) -> None:
    """Print or write a recipe's mergekit configuration, and in words what mergekit defines otherwise."""
    if not mergekit:
        raise RecipeError(
            "for which tool? type: evomerge export RECIPE --mergekit, or evomerge export RUN --optuna sqlite:///optuna.db"
        )
    _check_new(out)
    pool, recipe, _ = read_recipe(
        file, options, Console(stderr=True, highlight=False), "evomerge pick RUN -o MODEL, and export MODEL/recipe.yaml"
    )
    folders = {"base": str(pool.base.path), **{name: str(model.path) for name, model in pool.experts.items()}}
    choice = None if pool.vocabulary is None else pool.vocabulary.choice
    exported = exchange.write(recipe, folders, Outline.of(pool.base), choice)
    text = "---\n".join(strict_yaml.text(document) for document in exported.documents)
    tool = "mergekit-yaml" if len(exported.documents) == 1 else "mergekit-multi --intermediate-dir INNER --out-path OUT"
    _give(text, out, f"{tool} {out}" + (" OUT" if len(exported.documents) == 1 else ""))
    _tell(exported.notes, "mergekit defines nothing in it otherwise", "where evomerge and mergekit differ:", out)


def mirror(folder: Path, storage: str) -> None:
    """Add the candidates of a search to an Optuna study."""
    from evomerge.report.mirror import mirror

    name, added = mirror(Study.open(folder), storage)
    say(new_console(), f"added {added} candidates to the study `{name}` in {storage}; next: optuna-dashboard {storage}")


def write_table(trials: "DataFrame", path: Path) -> None:
    """Write candidates as CSV, or as Parquet by the file's name."""
    if path.suffix != ".parquet":
        trials.to_csv(path, index=False)
        return
    try:
        trials.to_parquet(path, index=False)
    except ImportError:
        raise StudyError(
            f"{path}: Parquet needs another package; type: pip install 'evomerge[data]', or give *.csv"
        ) from None


def _check_new(out: Path | None) -> None:
    if out is not None and out.exists():
        raise RecipeError(f"{out}: exists; give another name, or remove it")


def _give(text: str, out: Path | None, then: str) -> None:
    console = new_console()
    if out is None:
        console.print(text, end="", markup=False, soft_wrap=True)
        return
    files.write(out, text)
    say(console, f"written: {out}; next: {then}")


def _tell(notes: Sequence[exchange.Note], none: str, some: str, out: Path | None) -> None:
    """Print the notes, as comments where the file itself was printed: the output is then still that file."""
    console = new_console()
    start = "# " if out is None else ""
    say(console, f"{start}{some if notes else none}")
    for note in notes:
        for line in textwrap.wrap(note.text, 110, initial_indent=f"{start}- ", subsequent_indent=f"{start}  "):
            say(console, line)
