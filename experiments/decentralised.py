"""Is one merge at the end enough for learners that hardly communicate, and are checkpoints of one run worth averaging?

Part `learners`, A Single Merging Suffices (arXiv 2507.06542). Sixteen perceptrons learn scikit-learn's digits from one initialisation, each
from digits of its own: of each class they have shares drawn from a Dirichlet distribution. After some rounds of ten steps, each averages its
weights with those of one other, drawn at random; or a server averages all. The claims, and the rows that test them:

- one merge of all at the end reaches what a server reaches: `average` of the rows with pairs against the rows with a server;
- a budget of communication is best spent late: `early`, `evenly` and `late`, of equal bytes;
- a little communication keeps learners mergeable, and none does not: `never` against `evenly`, also from initialisations of their own, and
  the figure, over rounds.

At the end they are merged by evomerge: by the plain average, the average by numbers of examples (FedAvg, 1602.05629), task arithmetic from
the initialisation with λ chosen on validation digits (2212.04089), and Fisher-weighted averaging (2111.09832).

Part `soups`, metrics-weighted averaging (MWA, 2504.18580). Checkpoints of one run are averaged by powers of their validation loss or of their
step. The claims: this beats the plain average, and the last checkpoint. Rivals: the best checkpoint by validation loss, an
exponential moving average of the weights, and a rate that falls to zero.

    python experiments/decentralised.py [--smoke] [--seeds N] [--only PART ...] [--json] [--out DIR]
"""

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from shared import deep_perceptron
from shared.deep_perceptron import Network, start, write
from shared.harness import Findings, Switches, main, say, table
from shared.learners import (
    BATCH,
    DECAY,
    LEARNERS,
    LEAST,
    MOMENTUM,
    ONE_OF,
    RATE,
    ROUND,
    WHEN,
    Schedule,
    sent,
    shares,
    train,
)
from shared.perceptron import digits, task, write_rows
from torch import Tensor
from torch.nn.functional import cross_entropy

from evomerge import tasks
from evomerge.build import Builder
from evomerge.checkpoints.folder import Checkpoint, Folder
from evomerge.checkpoints.pool import Pool
from evomerge.evaluate import Setup
from evomerge.evidence import Evidence
from evomerge.recipe import Recipe
from evomerge.statistics import EvidenceSettings

SEEDS = 3
PARTS = ("learners", "soups")
WIDTH = 64
TRAIN, VALIDATION = 900, 400
"""Numbers of digits to train and to validate; the other 497 are unseen."""

ROUNDS = 60
POINTS = 4
"""Rounds, evenly spaced, after which all learners are merged for the figure."""
LAMBDAS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
"""Of task arithmetic, in units of the plain average."""
NAMES = [f"learner{i}" for i in range(LEARNERS)]
WAYS = ("average", "by examples", "task arithmetic", "Fisher")

RUNS = 3
"""Of each seed, from initialisations of their own."""
SOUP_STEPS = 600
EVERY = 20
"""Steps between two checkpoints."""
LAST = 10
"""Checkpoints of the plain average of the last."""
POWERS = (1, 2, 4, 8)
PLAIN = f"average of the last {LAST}"
EMA = 0.98
RATES = {"constant rate": False, "falling rate": True}

PAPER = (
    "The papers: one merge at the end matches a server on data that are unevenly divided, or, in the later versions' words, much improves the learners; "
    "late communication is best; little of it keeps them mergeable (2507.06542, image classification). Metrics-weighted averages are up to 5% better than "
    "the plain one, and better than the last checkpoint (2504.18580, fine-tuned language models)."
)

Digits = Mapping[str, tuple[Tensor, Tensor]]

MILDER = ", mild"
MILD = {"never": ("pairs", "never"), "evenly, pairs": ("pairs", "evenly"), "each step, server": ("server", "each step")}
SCHEDULES = {
    "never": Schedule(rounds=WHEN["never"]),
    **{f"{when}, pairs": Schedule(rounds=WHEN[when]) for when in ("early", "evenly", "late", "each round")},
    **{f"{when}, server": Schedule("server", WHEN[when]) for when in ("early", "evenly", "late", "each round")},
    "each step, pairs": Schedule(),
    "each step, server": Schedule("server"),
    "never, own starts": Schedule(rounds=WHEN["never"], shared=False),
    "evenly, pairs, own starts": Schedule(rounds=WHEN["evenly"], shared=False),
    **{f"{label}{MILDER}": Schedule(by, WHEN.get(when), concentration=1.0) for label, (by, when) in MILD.items()},
}
DRAWN = (
    "never",
    "early, pairs",
    "evenly, pairs",
    "late, pairs",
    "each round, pairs",
    "each step, server",
    "evenly, pairs, own starts",
)
SMOKE = ("evenly, pairs", "each step, server")


class Score(NamedTuple):
    """A model's mean loss, and its accuracy."""

    loss: float
    accuracy: float


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, Any]]] = {part: [] for part in switches.parts}
    with tempfile.TemporaryDirectory(prefix="decentralised-") as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch  # statistics that nothing else reads
        for seed in switches.seeds:
            data = split(seed)
            if "learners" in found:
                found["learners"].append(_learners(seed, data, Path(scratch, f"learners-{seed}"), switches.smoke))
            if "soups" in found:
                for run in range(1 if switches.smoke else RUNS):
                    name = f"seed {seed}, run {run}"
                    steps = SOUP_STEPS // (5 if switches.smoke else 1)
                    found["soups"].append(_soups(100 * seed + run, data, Path(scratch, name), steps))
    text = "".join(
        {"learners": _table_of_learners, "soups": _table_of_soups}[part](some) for part, some in found.items()
    )
    return Findings({"paper": PAPER, **found}, f"{text}{PAPER}\n", _figure(found), packages=["scikit-learn"])


def split(seed: int) -> Digits:
    """Return images `(n, 64)` and labels `(n,)` to train, to validate and unseen, drawn by a seed."""
    images, labels = (torch.cat(parts) for parts in zip(*digits().values(), strict=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    parts = order.tensor_split((TRAIN, TRAIN + VALIDATION))
    return {
        name: (images[rows], labels[rows]) for name, rows in zip(("train", "validation", "unseen"), parts, strict=True)
    }


def _learners(seed: int, data: Digits, out: Path, smoke: bool) -> dict[str, Any]:
    """Return what learners and their merges know, by schedule."""
    steps = ROUND * (5 if smoke else ROUNDS)
    points = {steps} if smoke else {ROUND * (ROUNDS * (i + 1) // POINTS) for i in range(POINTS)}
    network = start(WIDTH, 100 * seed)
    nbytes = sum(4 * parameter.numel() for parameter in network.parameters())
    base = write(dict(network.state_dict()), WIDTH, out / "base")
    found: dict[str, Any] = {}
    for label in SMOKE if smoke else SCHEDULES:
        schedule = SCHEDULES[label]
        owned = shares(data["train"][1], schedule.concentration, seed)
        curve = {}
        for step, states in train(WIDTH, seed, schedule, owned, data["train"], steps, points).items():
            place = out / label / str(step)
            folders = {name: write(state, WIDTH, place / name) for name, state in zip(NAMES, states, strict=True)}
            pool = Pool(base, folders)
            alone = [_score(expert, data["unseen"]).accuracy for expert in pool.experts.values()]
            merged = _score(Builder(pool).build(_merge("linear", NAMES)), data["unseen"])
            curve[step // ROUND] = {"alone": float(np.mean(alone)), "merged": merged.accuracy}
        found[label] = {
            "bytes": len(schedule.steps(steps)) * sent(schedule.by, nbytes),
            "bytes_of_merge": sent("server", nbytes),
            "alone": alone,
            "merged": _merges(pool, out / label, owned, data),
            "curve": curve,
        }
        shown = ", ".join(f"{way} {score.accuracy:.3f}" for way, score in found[label]["merged"].items())
        say(f"seed {seed}, {label}: alone {np.mean(alone):.3f}; {shown}")
    return found


def _merges(pool: Pool, out: Path, owned: Sequence[Tensor], data: Digits) -> dict[str, Score]:
    """Return the scores of merges of all learners on unseen digits, by the way of merging."""
    for name, rows in zip(NAMES, owned, strict=True):
        write_rows(out / f"{name}-search.jsonl", *(part[rows] for part in data["train"]))
        write_rows(out / f"{name}-report.jsonl", *(part[:LEAST] for part in data["unseen"]))  # a task has both splits
    settings = {name: task(out, name) for name in NAMES}
    folders = {name: str(expert.path) for name, expert in pool.experts.items()}
    setup = Setup(str(pool.base.path), folders, settings, module=f"{deep_perceptron.__file__}:make")
    made = {name: tasks.make(name, entry, out) for name, entry in settings.items()}
    given = {name: EvidenceSettings(task=name, examples=len(rows)) for name, rows in zip(NAMES, owned, strict=True)}
    Evidence(pool, setup, made, given, ["fisher_exact"]).collect(Console(quiet=True))
    builder = Builder(pool)
    scaled = [builder.build(_merge("task_arithmetic", NAMES, **{"lambda": of / LEARNERS})) for of in LAMBDAS]
    parts = _each(NAMES, [len(rows) / TRAIN for rows in owned])
    ways = {
        "average": builder.build(_merge("linear", NAMES)),
        "by examples": builder.build(_merge("linear", NAMES, weight=parts)),
        "task arithmetic": min(scaled, key=lambda merged: _score(merged, data["validation"]).loss),
        "Fisher": builder.build(_merge("fisher", NAMES)),
    }
    return {way: _score(merged, data["unseen"]) for way, merged in ways.items()}


def _merge(method: str, names: Sequence[str], **parameters: Any) -> Recipe:
    return Recipe.parse({"merge": {"method": method, "inputs": list(names), "parameters": parameters}})


def _each(names: Sequence[str], values: Sequence[float]) -> dict[str, Any]:
    return {"per": ["expert"], "values": dict(zip(names, values, strict=True))}


@torch.no_grad()
def _score(model: Checkpoint, data: tuple[Tensor, Tensor]) -> Score:
    images, labels = data
    network = Network(WIDTH)
    network.load_state_dict({name: model.tensor(name) for name in model.info})
    logits = network(images)
    return Score(float(cross_entropy(logits, labels)), float((logits.argmax(-1) == labels).double().mean()))


def _soups(seed: int, data: Digits, out: Path, steps: int) -> dict[str, dict[str, Score]]:
    """Return scores on unseen digits of checkpoints of one run and of averages of them, for a constant and for a falling rate."""
    return {label: _soup(seed, data, out / label, steps, falling=falling) for label, falling in RATES.items()}


def _soup(seed: int, data: Digits, out: Path, steps: int, *, falling: bool) -> dict[str, Score]:
    images, labels = data["train"]
    network = start(WIDTH, seed)
    base = write(dict(network.state_dict()), WIDTH, out / "base")
    optimiser = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    turned = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: (1 + math.cos(math.pi * step / steps)) / 2 if falling else 1.0
    )
    moving = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    drawn = torch.Generator().manual_seed(seed)
    folders = {}
    for step in range(1, steps + 1):
        rows = torch.randint(len(labels), (BATCH,), generator=drawn)
        optimiser.zero_grad()
        cross_entropy(network(images[rows]), labels[rows]).backward()
        optimiser.step()
        turned.step()
        moving = {name: EMA * moving[name] + (1 - EMA) * tensor for name, tensor in network.state_dict().items()}
        if step % EVERY == 0:
            folders[f"step{step}"] = write(dict(network.state_dict()), WIDTH, out / f"step{step}")
    pool = Pool(base, folders)
    losses = {name: _score(checkpoint, data["validation"]).loss for name, checkpoint in pool.experts.items()}
    builder, every = Builder(pool), list(folders)
    found = {
        "last checkpoint": pool.experts[every[-1]],
        "best checkpoint": pool.experts[min(losses, key=lambda name: losses[name])],
        f"moving average, {EMA}": Folder(write(moving, WIDTH, out / "moving")),
    }
    for names in (every[-LAST:], every):
        of = "all" if names is every else f"the last {LAST}"
        metric = _each(names, [losses[name] for name in names])
        taken = _each(names, [int(name.removeprefix("step")) for name in names])
        found[f"average of {of}"] = builder.build(_merge("linear", names))
        for power in POWERS:
            found[f"MWA of {of}, loss, power {power}"] = builder.build(_merge("mwa", names, metric=metric, power=power))
        found[f"MWA of {of}, step"] = builder.build(_merge("mwa", names, metric=taken, better="higher"))
    scores = {label: _score(model, data["unseen"]) for label, model in found.items()}
    say(
        f"{out.parent.name}, {out.name}: "
        + ", ".join(f"{label} {score.accuracy:.3f}" for label, score in scores.items())
    )
    return scores


def _table_of_learners(found: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for label, first in found[0].items():
        server = "each step, server" + MILDER * label.endswith(MILDER)
        merged = {way: [100 * one[label]["merged"][way].accuracy for one in found] for way in WAYS}
        gap = np.subtract(merged["average"], [100 * one[server]["merged"]["average"].accuracy for one in found])
        rows.append(
            [
                label,
                f"{first['bytes'] / 1e6:.1f} + {first['bytes_of_merge'] / 1e6:.1f}",
                _spread([100 * np.mean(one[label]["alone"]) for one in found]),
                *(_spread(merged[way]) for way in WAYS),
                f"{gap.mean():+.1f} ± {gap.std():.1f}",
            ]
        )
    columns = ["communication", "MB, + merge", "each learner", *WAYS, "average - server"]
    return (
        f"{LEARNERS} learners; each class is divided among them by Dirichlet({Schedule().concentration}), in rows `mild` by Dirichlet(1). Accuracy in % on "
        f"unseen digits, mean and standard deviation over {len(found)} seeds. `each learner` is without a merge at the end, the next columns are one merge "
        f"of all; the last is in points, against a server that averages after each step. Rounds have {ROUND} steps; `early`, `evenly` and `late` "
        f"communicate in one of {ONE_OF}.\n\n{table(columns, rows)}\n\n"
    )


def _table_of_soups(found: Sequence[Mapping[str, Mapping[str, Score]]]) -> str:
    rows = []
    for label in found[0][next(iter(RATES))]:
        row = [label]
        for rate in RATES:
            row.append(_spread([100 * one[rate][label].accuracy for one in found]))
            losses = np.array([1e3 * one[rate][label].loss for one in found])
            gap = losses - [1e3 * one[rate][PLAIN].loss for one in found]
            row += [f"{losses.mean():.0f}", f"{gap.mean():+.1f} ± {(gap.var() / max(len(gap) - 1, 1)) ** 0.5:.1f}"]
        rows.append(row)
    columns = ["model", *(f"{what}, {rate}" for rate in RATES for what in ("accuracy", "loss", "difference"))]
    return (
        f"Checkpoints of one run on all digits, one each {EVERY} steps, on unseen digits: accuracy in %, mean and standard deviation over {len(found)} runs; "
        f"loss in thousandths, and its difference from that of the {PLAIN}, with its standard error. The losses that weigh and choose are of validation "
        f"digits.\n\n{table(columns, rows)}\n\n"
    )


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f} ± {np.std(values):.1f}"


def _figure(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    figure = Figure(figsize=(11, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    drawn = [label for label in DRAWN if found.get("learners") and label in found["learners"][0]]
    for number, label in enumerate(drawn):
        curves = [one[label]["curve"] for one in found["learners"]]
        for key, dashes in (("merged", "-"), ("alone", ":")):
            means = [100 * np.mean([curve[point][key] for curve in curves]) for point in curves[0]]
            left.plot([*curves[0]], means, dashes, color=f"C{number}", label=label if key == "merged" else None)
    left.set(
        xlabel=f"rounds of {ROUND} steps",
        ylabel="accuracy on unseen digits, %",
        title="merged (lines), each learner (dots)",
    )
    if left.lines:
        left.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    labels = list(found["soups"][0][next(iter(RATES))]) if found.get("soups") else []
    for rate in RATES if labels else ():
        losses = np.array([[one[rate][label].loss for label in labels] for one in found["soups"]])
        right.errorbar(losses.mean(0), range(len(labels)), xerr=losses.std(0), fmt="o", label=rate)
    right.set_yticks(range(len(labels)), labels, fontsize=6)
    right.set(xlabel="loss on unseen digits", title="checkpoints of one run")
    if labels:
        right.invert_yaxis()
        right.legend(fontsize=6, loc="lower right")
    return figure


if __name__ == "__main__":
    main("decentralised", __doc__, measure, seeds=SEEDS, parts=PARTS)
