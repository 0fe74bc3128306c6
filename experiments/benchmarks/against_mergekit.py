"""Random mergekit files, merged by mergekit and by evomerge: equal, or the importer has named the difference.

Each file draws a method, parameters as numbers, gradients and filters in several scopes, slices, and merges inside merges, on
tiny Llamas in fp32, every fifth in bf16. Equal is a difference of at most 3e-6 of a tensor's largest magnitude, in bf16 of one
unit in the last place. It is imported twice: by evomerge's definitions, and `--as mergekit`.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))
from shared.harness import Findings, Switches, main, say, table
from shared.mergekit_files import METHODS, Compared, compare, merge_documents, random_file, write_models

from evomerge.checkpoints.pool import Pool

FILES = 119
SMOKE_FILES = 4
OUTCOMES = ("equal", "named", "not named")


def outcome(compared: Compared) -> str:
    return "equal" if compared.equal else "named" if compared.explained else "not named"


def measure(switches: Switches) -> Findings:
    rows: list[dict[str, Any]] = []
    pools: dict[str, Pool] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        models = {dtype: write_models(folder / str(dtype), dtype) for dtype in (torch.float32, torch.bfloat16)}
        for number in range(SMOKE_FILES if switches.smoke else FILES):
            dtype = torch.bfloat16 if number % 5 == 4 else torch.float32
            documents = random_file(number, models[dtype])
            place_of_file = folder / str(number)
            theirs = merge_documents(documents, place_of_file)
            for exact in (False, True):
                compared = compare(documents, theirs, place_of_file, pools, exact=exact)
                rows.append(
                    {
                        "file": number,
                        "methods": list(compared.methods),
                        "as": "mergekit" if exact else "evomerge",
                        "dtype": str(dtype).removeprefix("torch."),
                        "outcome": outcome(compared),
                        "difference": compared.difference,
                        "notes": list(compared.notes),
                    }
                )
            if number % 20 == 19:
                say(f"{number + 1} files")
    counts = {way: Counter(row["outcome"] for row in rows if row["as"] == way) for way in ("evomerge", "mergekit")}
    figures = {
        "files": len(rows) // 2,
        "counts": {way: {name: counts[way][name] for name in OUTCOMES} for way in counts},
        "largest_equal_fp32": max(
            (r["difference"] for r in rows if r["outcome"] == "equal" and r["dtype"] == "float32"), default=0.0
        ),
        "rows": rows,
    }
    return Findings(figures, show(rows, figures), draw(rows), packages=["mergekit"])


def by_method(rows: list[dict[str, Any]]) -> dict[str, dict[str, Counter[str]]]:
    return {
        method: {
            way: Counter(row["outcome"] for row in rows if row["methods"][-1] == method and row["as"] == way)
            for way in ("evomerge", "mergekit")
        }
        for method in METHODS
    }


def show(rows: list[dict[str, Any]], figures: Mapping[str, Any]) -> str:
    columns = [
        "method of the result",
        *(f"{way}: {name}" for way in ("as evomerge", "as mergekit") for name in OUTCOMES),
    ]
    lines = [
        [method, *(str(ways[way][name]) for way in ("evomerge", "mergekit") for name in OUTCOMES)]
        for method, ways in by_method(rows).items()
        if ways["evomerge"]
    ]
    total = ["all", *(str(figures["counts"][way][name]) for way in ("evomerge", "mergekit") for name in OUTCOMES)]
    said = Counter(key for row in rows if row["outcome"] == "named" and row["as"] == "mergekit" for key in row["notes"])
    left = ", ".join(f"{key} {count}" for key, count in said.most_common())
    return (
        f"{figures['files']} random files, merged by both. The largest difference that counts as equal in fp32 is "
        f"{figures['largest_equal_fp32']:.1e} of a tensor's largest magnitude.\n\n{table(columns, [*lines, total])}\n\n"
        f"Notes of the files that differ even `--as mergekit`: {left or 'none'}."
    )


def draw(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(10, 5), layout="constrained")
    counted = {method: ways for method, ways in by_method(rows).items() if ways["evomerge"]}
    for axes, way in zip(figure.subplots(1, 2, sharey=True), ("evomerge", "mergekit"), strict=True):
        left = [0] * len(counted)
        for name, colour in zip(OUTCOMES, ("#009E73", "#E69F00", "#D55E00"), strict=True):
            widths = [ways[way][name] for ways in counted.values()]
            axes.barh(list(counted), widths, left=left, color=colour, label=name)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.set_title(f"--as {way}")
        axes.set_xlabel("files")
    axes.invert_yaxis()
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main("mergekit", __doc__, measure)
