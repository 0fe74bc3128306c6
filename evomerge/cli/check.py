"""The command that looks at models before a merge: check."""

import json
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evomerge import files
from evomerge.checkpoints import hub
from evomerge.checkpoints.compatibility import Compatibility, compare
from evomerge.checkpoints.hub.headers import fetch_headers
from evomerge.checkpoints.task_vectors import TaskVectors, measure
from evomerge.cli.console import new_console, say
from evomerge.cli.merges import read_tokenizer
from evomerge.errors import PoolError
from evomerge.progress import Progress, step_printer
from evomerge.report.check_figure import check_figure
from evomerge.report.figures import png


def check(
    base: str, experts: Sequence[str], out: Path | None, tokenizer: str | None = None, *, weights: bool, as_json: bool
) -> None:
    """Say whether and how models can be merged, with the tokens that `tokenizer` names where it is given. Raises `PoolError` where some cannot."""
    console = Console(stderr=True) if as_json else new_console()
    choice = read_tokenizer(tokenizer, "--tokenizer")
    given = {"base": hub.locate(base), **_named(experts)}
    with tempfile.TemporaryDirectory(prefix="evomerge-check-") as scratch:
        folders, whole = {}, weights
        for number, (name, reference) in enumerate(given.items()):
            folder, local = _headers_or_folder(reference, Path(scratch) / str(number), console)
            folders[name], whole = folder, whole and local
        steps = step_printer(console)
        checked = compare(folders.pop("base"), folders, choice, weights=whole, progress=steps)
        for number, reference in enumerate(given.values()):  # messages name the model, not a folder for headers
            checked = _renamed(checked, str(Path(scratch) / str(number)), reference.removeprefix("hf://"))
        vectors = None
        if whole and checked.pool is not None:
            with Progress("compare", checked.pool.nbytes, console) as progress:
                vectors = measure(checked.pool, progress)
    if out is not None and vectors is not None:
        files.write(out, png(check_figure(vectors)))
    if as_json:
        sys.stdout.write(json.dumps(_data(checked, vectors), indent=2, sort_keys=True) + "\n")
    else:
        _print(checked, vectors, console)
        if weights and not whole:
            say(console, "weights were not compared, since some are not on this machine; a merge downloads them")
        if out is not None:
            say(
                console,
                f"picture: {out}" if vectors is not None else "no picture: it shows weights, which were not compared",
            )
        _say_next(checked, given, tokenizer, console)
    if checked.refused:
        names = ", ".join(f"`{model.name}`" for model in checked.refused)
        raise PoolError(
            f"{len(checked.refused)} of {len(checked.models)} models cannot be merged: {names}; the reasons are above"
        )


def _named(experts: Sequence[str]) -> dict[str, str]:
    """Return the references of experts by name: `NAME=MODEL`, or a model, which is named after its last part."""
    named: dict[str, str] = {}
    for expert in experts:
        name, equals, reference = expert.partition("=")
        if not equals or "/" in name:
            reference, last = expert, re.sub(r"@.*", "", expert.rstrip("/").rpartition("/")[2])
            name = re.sub(r"[^\w-]+", "_", last) or "expert"
        if name == "base" or name in named:
            raise PoolError(
                f"{expert!r}: a second model named `{name}`; give it another name, such as `other={reference}`"
            )
        named[name] = hub.locate(reference)
    return named


def _headers_or_folder(reference: str, folder: Path, console: Console) -> tuple[str, bool]:
    """Return the folder of a model, and whether its weights are there: those on the hub alone are not downloaded."""
    found = hub.hub_id(reference)
    if found is None:
        return reference, True
    snapshot = hub.find(found)
    if snapshot.folder is not None:
        step_printer(console)(str(snapshot))
        return str(snapshot.folder), True
    step_printer(console)(f"{snapshot}; reading the headers alone")
    folder.mkdir()
    fetch_headers(snapshot, folder)
    return str(folder), False


def _renamed(checked: Compatibility, old: str, new: str) -> Compatibility:
    models = [
        replace(
            model,
            problem=model.problem and model.problem.replace(old, new),
            notes=tuple(note.replace(old, new) for note in model.notes),
        )
        for model in checked.models
    ]
    return Compatibility(tuple(models), checked.pool)


def _data(checked: Compatibility, vectors: TaskVectors | None) -> dict[str, Any]:
    data: dict[str, Any] = {"mergeable": not checked.refused, "models": [asdict(model) for model in checked.models]}
    if vectors is not None:
        groups = [
            {"block": block, "kind": kind, "norms": _numbers(vectors.norms((block, kind)))}
            for block, kind in vectors.products
        ]
        blocks = [
            {"block": block, "cosines": _numbers(vectors.cosines(block, everywhere=False))} for block in vectors.blocks
        ]
        data["task_vectors"] = {
            "experts": vectors.experts,
            "norms": _numbers(vectors.norms()),
            "cosines": _numbers(vectors.cosines()),
            "groups": groups,
            "blocks": blocks,
            "duplicates": vectors.duplicates(),
        }
    return data


def _numbers(values: NDArray[np.float64]) -> Any:
    """Return an array as lists, with None for NaN, which JSON lacks."""
    listed = values.astype(object)
    listed[np.isnan(values)] = None
    return listed.tolist()


def _print(checked: Compatibility, vectors: TaskVectors | None, console: Console) -> None:
    columns = ["chat template", "end tokens", "vocabulary"]
    table = Table("model", "merge", "kind", "architecture", "stored as", "vocab_size", *columns, box=None)
    for model in checked.models:
        stored = ", ".join(f"{count:,} {dtype}" for dtype, count in model.dtypes.items())
        verdict = "no" if model.problem is not None else "yes"
        size = "" if model.vocabulary is None else f"{model.vocabulary:,}"
        texts = [model.text.get(column, "none") for column in columns]
        table.add_row(*map(escape, (model.name, verdict, model.kind, model.architecture, stored, size, *texts)))
    console.print(table)
    for model in checked.models:
        for note in model.notes:
            say(console, f"note: {note}")
        if model.problem is not None:
            say(console, f"{model.name} cannot be merged: {model.problem}")
    if vectors is None:
        return
    norms = Table("task vector", "norm / base's", *map(escape, vectors.experts), box=None)
    for name, norm, cosines in zip(vectors.experts, vectors.norms(), vectors.cosines(), strict=True):
        norms.add_row(escape(name), f"{norm:.4g}", *(f"{round(cosine, 3) + 0.0:.3f}" for cosine in cosines))
    console.print()
    console.print(norms)
    say(
        console,
        "columns of names: cosines between task vectors; near 1 they repeat each other, near -1 they undo each other",
    )
    for line in vectors.duplicates():
        say(console, f"note: {line}")


def _say_next(checked: Compatibility, given: dict[str, str], tokenizer: str | None, console: Console) -> None:
    """Say what to type next, for the models that can be merged."""
    if checked.pool is None:
        return
    shown = {name: reference.removeprefix("hf://") for name, reference in given.items()}
    experts = " ".join(f"--expert {shlex.quote(f'{name}={shown[name]}')}" for name in checked.pool.experts)
    say(console, "next:")
    say(console, "  echo 'merge: {method: task_arithmetic, inputs: experts}' > recipe.yaml")
    option = "" if tokenizer is None else f" --tokenizer {shlex.quote(tokenizer)}"
    say(console, f"  evomerge merge recipe.yaml --base {shlex.quote(shown['base'])} {experts}{option} -o merged")
    more = "" if tokenizer is None else f", tokenizer: {tokenizer}"
    pool = ", ".join(f"{name}: {shown[name]}" for name in checked.pool.experts)
    say(
        console,
        f"or a search: `pool: {{base: {shown['base']}, experts: {{{pool}}}{more}}}` in a study's YAML, and `evomerge run`",
    )
