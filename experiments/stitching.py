"""Can the lower layers of one model be joined to the upper layers of another, trained from a different initialisation?

Two vision transformers learn scikit-learn's digits, each from an initialisation of its own. A stack has the layers of one below a cut, and of
the other all the rest: the layers above, embeddings, final norm and head. What joins them, without training:

- nothing: the residual stream is passed on as it is;
- permutations: the lower model's units are first put in the order of the upper's, by weights or by activations (Git Re-Basin, 2209.04836);
- stitches: affine maps in closed form (2110.14633), after the embeddings and at the cut.

A map could do the work alone. Two controls have a map in the place of the lower layers, and in that of the upper ones: what the layers are worth
is the difference. Scored on digits that neither model saw, for both models as the lower one, over widths.

    python experiments/stitching.py [--smoke] [--seeds N] [--json] [--out DIR]
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from shared.harness import Findings, Switches, main, say, table
from shared.perceptron import digits, task, write_rows
from torch import Tensor
from torch.nn.functional import cross_entropy

from evomerge import tasks
from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.evaluate import Setup
from evomerge.evidence import Evidence
from evomerge.merging import needs
from evomerge.models.live import LiveModel
from evomerge.models.pretrained import new_model, save_model
from evomerge.recipe import Recipe
from evomerge.statistics import EvidenceSettings
from evomerge.zoo.training import reproducible, train

SEEDS = 3
WIDTHS = (32, 64, 128)
LAYERS = 4
STEPS = 400
BATCH = 64
RATE = 3e-3
TRAIN, SEARCH = 900, 400
"""Numbers of digits to train, and to fit maps and permutations on; the other 497 are unseen."""
EXAMPLES = (10, 40, 100, 400)
"""Digits that maps are fitted on, at the middle cut."""
WAYS = {
    "nothing": "nothing",
    "weights": "permutations, by weights",
    "activations": "permutations, by activations",
    "stitched": "stitches",
    "upper alone": "a map in place of the lower layers",
    "lower alone": "a map in place of the upper layers",
}


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    widths, depth, steps = (WIDTHS[:1], 2, 60) if switches.smoke else (WIDTHS, LAYERS, STEPS)
    found: dict[int, list[dict[str, Any]]] = {width: [] for width in widths}
    with tempfile.TemporaryDirectory(prefix="stitching-") as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch  # statistics that nothing else reads
        for width in widths:
            for seed in switches.seeds:
                out = Path(scratch, f"{width}-{seed}")
                data = _write(seed, out)
                folders = [_train(width, depth, 2 * seed + i, steps, data, out / str(i)) for i in range(2)]
                for lower, upper in (folders, folders[::-1]):
                    found[width].append(_pair({"lower": lower, "upper": upper}, depth, out))
                    middle = {way: scores[depth // 2 - 1] for way, scores in found[width][-1]["cuts"].items()}
                    say(
                        f"width {width}, seed {seed}: "
                        + ", ".join(f"{way} {score:.3f}" for way, score in middle.items())
                    )
    return Findings({"layers": depth, "pairs": found}, _table(found, depth), _figure(found, depth))


def _write(seed: int, folder: Path) -> tuple[Tensor, Tensor]:
    """Write the task `digits`, and return the digits to train."""
    splits = digits()
    images, labels = (torch.cat(parts) for parts in zip(*splits.values(), strict=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    images, labels = images[order] / 16, labels[order]
    folder.mkdir()
    for split, rows in (("search", slice(TRAIN, TRAIN + SEARCH)), ("report", slice(TRAIN + SEARCH, None))):
        write_rows(folder / f"digits-{split}.jsonl", images[rows], labels[rows])
    return images[:TRAIN].view(-1, 1, 8, 8), labels[:TRAIN]


def _train(width: int, depth: int, seed: int, steps: int, data: tuple[Tensor, Tensor], folder: Path) -> Path:
    """Write a model that learned the digits from its own initialisation, and return its folder."""
    images, labels = data
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": 4, "intermediate_size": 2 * width}
    shape = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 10}
    with reproducible(seed):
        model = new_model({"model_type": "vit", **shape, **sizes}, "AutoModelForImageClassification")

        def loss(rows: Tensor) -> Tensor:
            return cross_entropy(model(pixel_values=images[rows]).logits, labels[rows])

        train(model, loss, examples=len(labels), steps=steps, batch=BATCH, rate=RATE, seed=seed)
        save_model(model, folder)
    return folder


def _pair(folders: Mapping[str, Path], depth: int, out: Path) -> dict[str, Any]:
    """Return the accuracies of both models and of their stacks: by cut, and at the middle cut by the number of digits for the maps."""
    settings = {"digits": task(out, "digits")}
    judged = tasks.make("digits", settings["digits"], out)
    experts = {name: str(folder) for name, folder in folders.items()}
    pool = Pool(folders["lower"], folders)
    live = LiveModel(pool.open_base(), "AutoModelForImageClassification")
    setup = Setup(experts["lower"], experts, settings)

    def score(recipe: Recipe) -> float:
        live.refit(Builder(pool).build_model(recipe))
        return float(judged.score(live, "report").scores["accuracy"].mean())

    def collect(number: int) -> None:
        given = {name: EvidenceSettings(task="digits", examples=number) for name in folders}
        kinds = sorted({kind for way in WAYS for kind in needs(_stack(way, 1, depth))})
        Evidence(pool, setup, {"digits": judged}, given, kinds).collect(Console(quiet=True))

    collect(SEARCH)
    cuts = range(1, depth)
    scores = {way: [score(_stack(way, cut, depth)) for cut in cuts] for way in WAYS}
    models = {name: score(Recipe.parse(name)) for name in folders}
    by_count = {}
    for number in EXAMPLES:
        collect(number)
        by_count[number] = score(_stack("stitched", depth // 2, depth))
    return {"models": models, "cuts": scores, "examples": by_count}


def _stack(way: str, cut: int, depth: int) -> Recipe:
    """Return the lower model's layers below a cut and the upper's above it, joined in some way."""
    permuted = way in ("weights", "activations")
    by: dict[str, Any] = {"by": "activations", "task": "digits"} if way == "activations" else {}
    below = {"align": {"source": "lower", "to": "upper", **by}} if permuted else "lower"
    lower = [{"source": below, "layer": layer} for layer in range(cut) if way != "upper alone"]
    upper = [{"source": "upper", "layer": layer} for layer in range(cut, depth) if way != "lower alone"]
    joined = {} if way == "nothing" or permuted else {"stitch": {"task": "digits"}}
    return Recipe.parse({"stack": {"slots": [*lower, *upper], "rest": "upper", **joined}})


def _table(found: Mapping[int, Sequence[Mapping[str, Any]]], depth: int) -> str:
    width, pairs = list(found.items())[-1]
    rows = [[label, *map(_spread, _scores(pairs, way).T)] for way, label in WAYS.items()]
    columns = ["joined by", *(f"cut after {cut}" for cut in range(1, depth))]
    by_width = [
        [str(width), _spread(_alone(some)), *(_spread(_scores(some, way).mean(1)) for way in WAYS)]
        for width, some in found.items()
    ]
    by_count = np.array([list(pair["examples"].values()) for pair in pairs])
    cells = [["stitches", *map(_spread, by_count.T)]]
    return (
        f"Accuracy on unseen digits of the lower layers of one model below the upper layers of another, of {depth} in all and {width} wide; mean and "
        f"standard deviation over {len(pairs)} ordered pairs, two of each seed. The models alone: {_spread(_alone(pairs))}.\n\n{table(columns, rows)}\n\n"
        f"Over widths, means over the cuts:\n\n{table(['width', 'the models', *WAYS.values()], by_width)}\n\n"
        f"Stitches after layer {depth // 2}, by the number of digits without labels that they are fitted on:\n\n"
        f"{table(['', *(f'{number} digits' for number in EXAMPLES)], cells)}\n"
    )


def _scores(pairs: Sequence[Mapping[str, Any]], way: str) -> Any:
    """Return accuracies `(pairs, cuts)`."""
    return np.array([pair["cuts"][way] for pair in pairs])


def _alone(pairs: Sequence[Mapping[str, Any]]) -> Any:
    """Return the accuracies of the models themselves, `(2 pairs,)`."""
    return np.array([list(pair["models"].values()) for pair in pairs]).ravel()


def _spread(values: Any) -> str:
    return f"{values.mean():.1%} ± {values.std():.1%}"


def _figure(found: Mapping[int, Sequence[Mapping[str, Any]]], depth: int) -> Figure:
    figure = Figure(figsize=(3.2 * len(found), 3.6), layout="constrained")
    cuts = range(1, depth)
    for axes, (width, pairs) in zip(
        np.atleast_1d(figure.subplots(1, len(found), sharey=True)), found.items(), strict=True
    ):
        for way, label in WAYS.items():
            scores = _scores(pairs, way)
            axes.errorbar(cuts, scores.mean(0), scores.std(0), label=label, capsize=2, marker="o", markersize=3)
        axes.axhline(_alone(pairs).mean(), color="0.6", label="the models alone")
        axes.set(title=f"width {width}", xlabel="layers of the lower model", ylim=(0, 1), xticks=list(cuts))
    figure.axes[0].set_ylabel("accuracy on unseen digits")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, fontsize="small")
    return figure


if __name__ == "__main__":
    main("stitching", __doc__, measure, seeds=SEEDS)
