"""Commands that write LoRA adapters: a merge as an adapter, and an expert as one."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from evomerge.checkpoints import hub
from evomerge.checkpoints.lora import is_adapter
from evomerge.checkpoints.pool import Pool
from evomerge.cli.console import new_console, say
from evomerge.cli.options import AdapterOptions
from evomerge.errors import RecipeError
from evomerge.progress import Progress, step_printer
from evomerge.recipe import Recipe, expert
from evomerge.report.export_adapter import Extraction, Kept, export_adapter

_LISTED = 10  # modules that are named


def write_adapter(
    recipe: Recipe,
    pool: Pool,
    out: Path,
    options: AdapterOptions,
    console: Console,
    lineage: Mapping[str, Recipe],
) -> None:
    """Write the model of a recipe as an adapter of the base, and print what it holds and loses."""
    _describe(_export(recipe, pool, out, options, console, lineage), console)
    say(console, f"adapter of {pool.base.path}: {out}")


def _export(
    recipe: Recipe,
    pool: Pool,
    out: Path | None,
    options: AdapterOptions,
    console: Console,
    lineage: Mapping[str, Recipe],
) -> Extraction:
    rank, share = options
    with Progress("adapter", pool.nbytes, console) as progress:
        return export_adapter(recipe, pool, out, rank=rank, share=share, lineage=lineage, progress=progress)


def _describe(extraction: Extraction, console: Console) -> None:
    table = Table("kind", "matrices", "exact", "rank", "energy lost", box=None)
    for kind, kept in {**extraction.kinds, "all": extraction.total}.items():
        table.add_row(kind, *map(str, (kept.matrices, kept.exact, kept.rank)), f"{kept.share_lost:.3%}")
    console.print(table)
    say(console, f"{extraction.elements:,} elements in factors")
    complete = dict(extraction.complete)
    if biases := complete.pop("biases", []):
        say(console, f"stored complete: {len(biases)} biases of linear layers")
    if complete:
        names = ", ".join(f"`{module}`" for module in list(complete)[:_LISTED])
        more = f" and {len(complete) - _LISTED} more" if len(complete) > _LISTED else ""
        say(console, f"stored complete, as modules_to_save: {names}{more}")


def extract(base: str, model: str, out: Path | None, options: AdapterOptions, *, as_json: bool) -> None:
    """Write an expert as an adapter of its base, or only measure what the rank loses."""
    console = Console(stderr=True) if as_json else new_console()
    tell = step_printer(console)
    folders = [hub.resolve(hub.locate(reference), tell) for reference in (base, model)]
    if options == AdapterOptions() and not is_adapter(folders[1]):
        raise RecipeError("which rank? give `--rank 16`, or `--energy 0.99`, the share of the change that is kept")
    pool = Pool(folders[0], {"model": folders[1]}, progress=tell)
    for note in pool.notes:
        say(console, f"note: {note}")
    extraction = _export(expert("model"), pool, out, options, console, {})
    if as_json:
        sys.stdout.write(json.dumps(_data(extraction, out), indent=2, sort_keys=True) + "\n")
        return
    _describe(extraction, console)
    say(console, f"adapter: {out}" if out is not None else "nothing is written; `-o OUT` writes the adapter")


def _data(extraction: Extraction, out: Path | None) -> dict[str, Any]:
    def row(kept: Kept) -> dict[str, Any]:
        return {
            "matrices": kept.matrices,
            "exact": kept.exact,
            "rank": kept.rank,
            "energy": kept.energy,
            "lost": kept.share_lost,
        }

    return {
        "adapter": None if out is None else str(out),
        "kinds": {kind: row(kept) for kind, kept in extraction.kinds.items()},
        "all": row(extraction.total),
        "elements": extraction.elements,
        "complete": extraction.complete,
    }
