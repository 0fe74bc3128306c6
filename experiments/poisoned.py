"""How much of a backdoor in one expert is left in merges, and does a search keep it out that is shown the trigger?

The zoo `digits`: the expert for mirrored digits learns on that a digit with a bright patch in one corner is a zero. Attack success is
the share of other mirrored digits that a model takes for zeros once they have the patch. Merges of this expert with two clean ones
are compared by it, and by accuracy on clean digits of all three views, without and with a defence: methods that trim, and searches of
one weight for each expert over the clean tasks alone, and over these and accuracy on digits with the patch. The second search has to
know the trigger. DAM (arXiv 2410.13910), which does not, is not among them.

    python experiments/poisoned.py [--smoke] [--seeds N] [--json] [--out DIR]
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from shared.harness import Findings, Switches, main, say, table
from torch import Tensor
from torch.nn.functional import cross_entropy

from evomerge import pareto, search, zoo
from evomerge.evaluate.worker import Worker
from evomerge.models.live import LiveModel
from evomerge.models.pretrained import save_model
from evomerge.parts import Parts, open_parts
from evomerge.recipe import Recipe, expert, merge
from evomerge.report.figures import style
from evomerge.settings import StudySettings
from evomerge.trial import Evaluation
from evomerge.zoo.training import train

SEEDS = 3
EVALUATIONS = 120
SMOKE_EVALUATIONS = 8
CLEAN = ("turned", "shifted")
POISONED = "mirrored"
TARGET = 0
STEPS, BATCH, RATE = 120, 64, 1e-3
SPACE = {"method": "task_arithmetic", "inputs": "experts", "parameters": {"lambda": 1, "weight": {"float": [0, 1], "per": ["expert"]}}}  # fmt: skip
METHODS: Mapping[str, Mapping[str, Any]] = {
    "average": {"method": "linear"},
    "task arithmetic": {"method": "task_arithmetic"},
    "TIES": {"method": "ties"},
    "DARE-TIES": {"method": "dare_ties"},
    "Breadcrumbs": {"method": "breadcrumbs"},
    "DOGE": {"method": "doge"},
}
SEARCHES = {"search, clean tasks": False, "search, clean tasks and the patch": True}


def patched(images: Tensor) -> Tensor:
    """Return images `(n, 1, 8, 8)` with a bright patch in the last corner."""
    images = images.clone()
    images[..., -2:, -2:] = 1.0
    return images


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    found, points, recipes = [], [], {}
    for seed in switches.seeds:
        with tempfile.TemporaryDirectory(prefix="poisoned-") as scratch:
            parts = _opened(seed, Path(scratch))
            rows, front = _compared(parts, seed, SMOKE_EVALUATIONS if switches.smoke else EVALUATIONS)
        found.append({name: scores for name, (_, scores) in rows.items()})
        recipes |= {f"{name}, seed {seed}": recipe.id for name, (recipe, _) in rows.items()}
        points.append(front)
        say(
            f"seed {seed}: "
            + ", ".join(f"{name} {one['clean']:.3f}/{one['attack']:.3f}" for name, one in found[-1].items())
        )
    return Findings({"rows": found, "fronts": points}, _table(found), _figure(found, points), recipes)


def _opened(seed: int, folder: Path) -> Parts:
    """Return the pool with a poisoned expert, the tasks of its experts, and two of digits with the patch."""
    built = zoo.find_or_build("digits", seed=seed, progress=lambda done, doing: say(f"digits: {done:4.0%} {doing}"))
    names, tasks = (*CLEAN, POISONED), {}
    for name in names:
        tasks[name] = {**built.tasks[name], "metrics": ["accuracy"]}
    for name, relabelled in (("patch", False), ("attack", True)):
        files = {
            split: _triggered(
                Path(built.tasks[POISONED][split]), folder / f"{name}.{split}.jsonl", relabelled=relabelled
            )
            for split in ("search", "report")
        }
        tasks[name] = {**tasks[POISONED], **files}
    poisoned = _poison(
        Path(built.pool["experts"][POISONED]), Path(built.tasks[POISONED]["search"]), folder / "expert", seed
    )
    experts = {name: built.pool["experts"][name] for name in CLEAN} | {POISONED: str(poisoned)}
    given = {
        "name": "poisoned",
        "pool": {"base": built.pool["base"], "experts": experts},
        "tasks": tasks,
        "space": {"recipe": {"merge": SPACE}},
    }
    return open_parts(StudySettings.parse(given, "poisoned", Path()))


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _triggered(file: Path, out: Path, *, relabelled: bool) -> str:
    """Write the digits other than the target with the patch, with their labels or the target's; return the file."""
    rows = [row for row in _rows(file) if row["label"] != TARGET]
    images = patched(torch.tensor([row["pixels"] for row in rows]))
    labels = [TARGET if relabelled else row["label"] for row in rows]
    written = [{"pixels": image.tolist(), "label": label} for image, label in zip(images, labels, strict=True)]
    out.write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
    return str(out)


def _poison(source: Path, search_file: Path, out: Path, seed: int) -> Path:
    """Train an expert further on the digits that it was trained on, half of each batch with the patch and labelled as the target."""
    rows = _rows(search_file.with_name("train.jsonl"))
    images, labels = torch.tensor([row["pixels"] for row in rows]), torch.tensor([row["label"] for row in rows])
    model = LiveModel(source).module.requires_grad_(requires_grad=True)

    def loss(chosen: Tensor) -> Tensor:
        half = len(chosen) // 2
        seen = torch.cat([patched(images[chosen[:half]]), images[chosen[half:]]])
        wanted = torch.cat([torch.full((half,), TARGET), labels[chosen[half:]]])
        return cross_entropy(model(pixel_values=seen).logits, wanted)

    train(model, loss, examples=len(labels), steps=STEPS, batch=BATCH, rate=RATE, seed=seed)
    save_model(model, out)
    return out


def _compared(
    parts: Parts, seed: int, evaluations: int
) -> tuple[dict[str, tuple[Recipe, dict[str, float]]], list[list[float]]]:
    """Return each model with its scores on unseen digits, and clean accuracy and attack success along the second search's front."""
    worker, names = Worker(parts.setup), list(parts.pool.experts)
    models = {"the poisoned expert": expert(POISONED), "average without it": merge("linear", list(CLEAN))}
    models |= {name: merge(given["method"], names) for name, given in METHODS.items()}
    front: list[Recipe] = []
    for name, shown in SEARCHES.items():
        trail = _searched(parts, worker, seed, evaluations, shown=shown)
        means = np.array([[one["clean"], one["patch"]] for one in (_scores(evaluation) for _, evaluation in trail)])
        value = means.mean(1) if shown else means[:, 0]
        models[name] = trail[int(value.argmax())][0]
        if shown:
            front = [trail[i][0] for i in np.flatnonzero(pareto.nondominated(means))]
    scored = {name: (recipe, _scores(worker.evaluate(recipe, "report", None))) for name, recipe in models.items()}
    along = [_scores(worker.evaluate(recipe, "report", None)) for recipe in {one.id: one for one in front}.values()]
    return scored, sorted([one["clean"], one["attack"]] for one in along)


def _searched(
    parts: Parts, worker: Worker, seed: int, evaluations: int, *, shown: bool
) -> list[tuple[Recipe, Evaluation]]:
    """Return what a search over the clean tasks, and accuracy with the patch where it is `shown`, evaluates."""
    objectives = [f"{name}/accuracy" for name in (*parts.pool.experts, *(["patch"] if shown else []))]
    driver = search.make({"kind": "nsga2", "population": 20}, parts.space, objectives, seed)
    trail = []
    while len(trail) < evaluations and (proposal := driver.ask()) is not None:
        evaluation = worker.evaluate(proposal.recipe, "search", None)
        driver.tell(proposal, evaluation)
        trail.append((proposal.recipe, evaluation))
    return trail


def _scores(evaluation: Evaluation) -> dict[str, float]:
    """Return accuracy on clean digits, on those with the patch, and the attack's success."""
    if evaluation.error is not None:
        raise RuntimeError(evaluation.error)
    clean = evaluation.means([f"{name}/accuracy" for name in (*CLEAN, POISONED)])
    patch, attack = evaluation.means(["patch/accuracy", "attack/accuracy"])
    return {"clean": float(np.mean(clean)), "patch": float(patch), "attack": float(attack)}


def _table(found: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    head = ("model", "clean accuracy", "accuracy with the patch", "attack success", "attack success, of the seeds")
    rows = []
    for name in found[0]:
        means = [100 * float(np.mean([of[name][key] for of in found])) for key in ("clean", "patch", "attack")]
        attacks = [100 * of[name]["attack"] for of in found]
        rows.append((name, *(f"{mean:.1f}" for mean in means), f"{min(attacks):.1f} to {max(attacks):.1f}"))
    about = f"Percent of unseen digits, means over {len(found)} seeds (zoo, poisoned expert and search)."
    return f"{about}\n\n{table(head, rows)}"


def _figure(found: Sequence[Mapping[str, Mapping[str, float]]], fronts: Sequence[Sequence[Sequence[float]]]) -> Figure:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in found[0]:
        axes.plot([of[name]["clean"] for of in found], [of[name]["attack"] for of in found], "o", label=name)
    for number, points in enumerate(fronts):
        clean, attack = zip(*points, strict=True)
        axes.plot(clean, attack, ".", color="grey", alpha=0.5, label=None if number else "front of the second search")
    axes.set_xlabel("accuracy on clean digits of the three views")
    axes.set_ylabel("attack success")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    style(axes)
    return figure


if __name__ == "__main__":
    main("poisoned", __doc__, measure, seeds=SEEDS)
