"""How many hidden units of a trained model can be merged with others before it forgets what it knows?

The experts of the zoo `digits` lose hidden units of their MLPs without data and without training: alike ones are merged (IFM, arXiv
2310.06756, as `narrow`), or those of the smallest weights are left out. Scored on the report split of each expert's task.

    python experiments/narrow.py [--smoke] [--seeds N] [--json] [--out DIR]
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from shared.harness import Findings, Switches, main, say, table

from evomerge import tasks, zoo
from evomerge.alignment import symmetry
from evomerge.alignment.mlps import Mlp, find_mlps
from evomerge.checkpoints.folder import Checkpoint, Computed, Folder
from evomerge.checkpoints.pool import Pool
from evomerge.models.live import LiveModel
from evomerge.recipe import Recipe
from evomerge.report.export import export

SEEDS = 3
WIDTHS = (64, 48, 32, 24, 16, 8)
WAYS = {"merged": "alike units merged", "dropped": "smallest units left out"}
PAPER = "The paper, VGG16 on CIFAR-10: 23% of the parameters are left at 91.8% accuracy, of 93.5%, without training."


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    widths = (WIDTHS[0], WIDTHS[3]) if switches.smoke else WIDTHS
    found: dict[str, dict[int, list[float]]] = {way: {width: [] for width in widths} for way in WAYS}
    shares: dict[int, float] = {}
    for seed in switches.seeds:
        built = zoo.load("digits", seed=seed)
        judged = {name: tasks.make(name, entry, Path()) for name, entry in built.tasks.items()}
        pool = Pool(built.pool["base"], built.pool["experts"])
        live = LiveModel(pool.open_base())
        mlps = find_mlps(live, pool.base, symmetry(live), pool.layout)
        for width in widths:
            scores: dict[str, list[float]] = {way: [] for way in WAYS}
            for name in list(pool.experts)[: 1 if switches.smoke else None]:
                with tempfile.TemporaryDirectory(prefix="narrow-") as scratch:
                    out = Path(scratch, "out")
                    export(Recipe.parse({"narrow": {"source": name, "hidden": width}}), pool, out)
                    narrow = LiveModel(out)
                    size = sum(parameter.numel() for parameter in narrow.module.parameters())
                    shares[width] = size / pool.parameters
                    for way in WAYS:
                        if way == "dropped":
                            narrow.refit(_dropped(pool.experts[name], Folder(out), mlps, width))
                        score = judged[name].score(narrow, "report").scores["accuracy"]
                        scores[way].append(float(score.mean()))
            for way in WAYS:
                found[way][width].append(float(np.mean(scores[way])))
            say(
                f"seed {seed}, {width} hidden units: " + ", ".join(f"{way} {found[way][width][-1]:.3f}" for way in WAYS)
            )
    return Findings({"shares": shares, "accuracies": found}, _table(shares, found), _figure(found))


def _dropped(expert: Checkpoint, like: Checkpoint, mlps: Sequence[Mlp], width: int) -> Checkpoint:
    """Return the expert with those units alone whose weights have the largest product of norms, in and out."""
    kept: dict[str, torch.Tensor] = {}
    for mlp in mlps:
        norms = [
            torch.stack([expert.tensor(place.tensor).movedim(place.dim, 0).flatten(1).square().sum(1) for place in places if len(expert.info[place.tensor].shape) > 1]).sum(0)
            for places in (mlp.into, mlp.out)
        ]  # fmt: skip
        largest = (norms[0] * norms[1]).topk(width).indices.sort().values
        for place in (*mlp.into, *mlp.out):
            kept[place.tensor] = expert.tensor(place.tensor).index_select(place.dim, largest)
    return Computed(like.info, lambda name: kept[name] if name in kept else expert.tensor(name))


def _table(shares: Mapping[int, float], found: Mapping[str, Mapping[int, Sequence[float]]]) -> str:
    rows = [
        [
            str(width),
            f"{share:.0%}",
            *(f"{np.mean(found[way][width]):.1%} ± {np.std(found[way][width]):.1%}" for way in WAYS),
        ]
        for width, share in shares.items()
    ]
    count = len(next(iter(found["merged"].values())))
    return (
        f"Accuracy of the experts of `digits` on unseen digits, mean over four of them, and standard deviation over {count} seeds of the zoo.\n\n"
        f"{table(['hidden units', 'parameters left', *WAYS.values()], rows)}\n\n{PAPER}\n"
    )


def _figure(found: Mapping[str, Mapping[int, Sequence[float]]]) -> Figure:
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes: Any = figure.subplots()
    for way, label in WAYS.items():
        axes.plot([*found[way]], [np.mean(scores) for scores in found[way].values()], "o-", label=label)
    axes.set(xlabel="hidden units of each MLP", ylabel="accuracy on unseen digits")
    axes.legend()
    return figure


if __name__ == "__main__":
    main("narrow", __doc__, measure, seeds=SEEDS)
