"""Does M2N2 (natural niches) evolve a model from random weights, or from two experts, better than other methods?

The first experiment of Competition and Attraction Improve Model Fusion (arXiv 2508.16204): a perceptron with 19,210 weights and
the 8x8 handwritten digits of scikit-learn, 1,437 for the search and 360 unseen (the data of the released code; MNIST in
the paper). From scratch: two random models, and children are mutated. From experts: one for the digits 0-4 and one for 5-9,
without mutation. Compared: natural niches, the same without competition and attraction (a genetic algorithm) or without one of
its parts, MAP-Elites, CMA-ES with diagonal covariance on the weights, and natural niches as a plain numpy loop, for its
cost per candidate. Candidates are evaluated on all 1,437 examples; reported is the one with the best search accuracy so far.

    python experiments/natural_niches.py [--smoke] [--seeds N] [--evaluations N] [--json] [--out DIR]

An interrupted run resumes with the same command: its studies are kept in `runs/natural_niches/`.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cmaes
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from shared import niches_by_numpy, perceptron
from shared.harness import Findings, Switches, main, say, table
from shared.perceptron import SIZES, Perceptron
from torch import Tensor
from torch.nn.functional import cross_entropy

from evomerge.evaluate import Worker
from evomerge.settings import StudySettings
from evomerge.study import Study

SEEDS = 5
EVALUATIONS = 10_000
SMOKE_EVALUATIONS = 60
STUDIES = Path("runs") / "natural_niches"
SIGMA = 0.01
ALL = {"digits": tuple(range(10))}
PARITY = {"odd": (1, 3, 5, 7, 9), "even": (0, 2, 4, 6, 8)}  # MAP-Elites' axes
HALVES = {"low": (0, 1, 2, 3, 4), "high": (5, 6, 7, 8, 9)}
CHECKPOINTS = (100, 1_000, 2_500, 5_000, 10_000, 50_000)  # numbers of evaluations at which accuracies are reported
DRIVERS: Mapping[str, Mapping[str, Any]] = {
    "natural niches": {"kind": "niches"},
    "genetic algorithm": {"kind": "niches", "alpha": 0, "matchmaker": False},
    "no attraction": {"kind": "niches", "matchmaker": False},
    "MAP-Elites": {"kind": "map_elites"},
}
PAPER = (
    "Released code, train/test after 10,000 evaluations from scratch: natural niches 94.3/85.6 (3 seeds), genetic algorithm "
    "77.0/68.3 (1), MAP-Elites 61.0/58.6 (1), diagonal CMA-ES 77.6/69.1 (3). The paper's figure, test after 10,000 from two "
    "experts: natural niches 68.3, no attraction 66.2, MAP-Elites 62.3, no split 57.8, genetic algorithm 52."
)


@dataclass(frozen=True)
class Curve:
    """The best search accuracy so far, and the unseen accuracy of that candidate, after each improvement."""

    method: str
    seed: int
    evaluations: int
    changes: Sequence[tuple[int, float, float]]
    """(evaluation from 1, search accuracy, unseen accuracy), in %, increasing."""
    cpu_ms: float
    """CPU time per evaluation, from ask to tell; NaN for a resumed run."""

    def at(self, evaluations: int) -> tuple[float, float]:
        """Return search and unseen accuracy after so many evaluations."""
        return next(change[1:] for change in reversed(self.changes) if change[0] <= evaluations)


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="natural_niches-") as scratch:
        folder = Path(scratch) if switches.smoke else STUDIES.resolve()
        curves = [curve for seed in switches.seeds for curve in compare(folder, seed, switches.evaluations)]
    rows = [
        {
            "method": curve.method,
            "seed": curve.seed,
            "evaluations": evaluations,
            "train": curve.at(evaluations)[0],
            "test": curve.at(evaluations)[1],
            "cpu_ms_per_evaluation": None if np.isnan(curve.cpu_ms) else curve.cpu_ms,
        }
        for curve in curves
        for evaluations in reported(curve.evaluations)
    ]
    return Findings(
        {"rows": rows, "paper": PAPER}, text(curves), draw(curves), packages=["scikit-learn", "cmaes", "matplotlib"]
    )


def compare(folder: Path, seed: int, evaluations: int) -> Iterator[Curve]:
    """Yield the curve of each method for a seed."""
    scratch, experts = folder / f"scratch-{seed}", folder / f"experts-{seed}"
    write_pool(scratch, {name: random_model(seed, i) for i, name in enumerate(("one", "two"))})
    write_pool(experts, dict(zip(HALVES, halves(seed), strict=True)))
    for method, driver in DRIVERS.items():
        if method != "no attraction":
            yield search(scratch, f"{method}, from scratch", {**driver}, crossing(noise=True), seed, evaluations)
    yield plain_numpy(seed, evaluations)
    yield weights_by_cma(seed, evaluations)
    for method, driver in DRIVERS.items():
        yield search(experts, f"{method}, from experts", {**driver}, crossing(noise=False), seed, evaluations)
    space = crossing(noise=False, split=False)
    yield search(experts, "no split, from experts", {**DRIVERS["natural niches"]}, space, seed, evaluations)


def crossing(*, noise: bool, split: bool = True) -> dict[str, Any]:
    """Return the space of children: SLERP, with share t up to a split point and 1 - t beyond, and normal noise."""
    share = {"split": {"float": [0, 1]} if split else 1.0, "t": {"float": [0, 1]}}
    stages: dict[str, Any] = {"origin": "zero", "weigh": [{"split_slerp": share}]}
    merge: dict[str, Any] = {"inputs": [{"member": "mother"}, {"member": "father"}], "stages": stages}
    if noise:
        stages["post"] = [{"noise": {"sigma": SIGMA}}]
        merge["seed"] = {"int": [0, 2**31 - 1]}
    return {"merge": merge}


def search(
    folder: Path, method: str, driver: Mapping[str, Any], space: Mapping[str, Any], seed: int, evaluations: int
) -> Curve:
    """Run or resume the study of a method and seed; return its curve."""
    name = method.replace(" ", "_").replace(",", "")
    pool = {"base": str(folder / "base"), "module": f"{perceptron.__file__}:make"}
    pool["experts"] = {path.name: str(path) for path in sorted((folder / "experts").iterdir())}
    groups = PARITY if driver["kind"] == "map_elites" else ALL
    tasks = {group: perceptron.task(folder, group) for group in groups}
    given = {"name": name, "pool": pool, "tasks": tasks, "seed": seed, "evaluations": evaluations}
    settings = StudySettings.parse({**given, "space": {"driver": dict(driver), "recipe": space}}, name, Path())
    study = Study.create(folder / "studies" / name, settings)
    before = len(study.population())
    with study.evaluator() as evaluator:
        started = time.process_time()
        study.run(evaluator)
        spent = 1e3 * (time.process_time() - started) / evaluations if not before else float("nan")
    curve = Curve(method, seed, evaluations, judged(study), spent)
    best, unseen = curve.at(evaluations)
    say(
        f"{method}, seed {seed}: {best:.1f} % on the search examples, {unseen:.1f} % on unseen ones, {spent:.2f} CPU ms each"
    )
    return curve


def judged(study: Study) -> list[tuple[int, float, float]]:
    """Return the improvements of the best search accuracy, with the unseen accuracy of each candidate."""
    changes: list[tuple[int, float, float]] = []
    worker = Worker(study.parts.setup)
    worker.members.lineage.update(study.lineage())
    best = -1.0
    for count, (proposal, evaluation) in enumerate(study.population(), start=1):
        if evaluation.error is None and (value := accuracy(evaluation.scores)) > best:
            best = value
            changes.append((count, best, accuracy(worker.evaluate(proposal.recipe, "report").scores)))
    return changes


def accuracy(scores: Mapping[str, NDArray[np.float32]]) -> float:
    """Return the accuracy over all examples, in %."""
    return 100 * float(np.concatenate(list(scores.values())).mean(dtype=np.float64))


def plain_numpy(seed: int, evaluations: int) -> Curve:
    """Return the curve of a plain numpy loop without a journal."""
    method = "natural niches in plain numpy, from scratch"
    train, test = ((images.numpy(), labels.numpy()) for images, labels in perceptron.digits().values())
    changes: list[tuple[int, float, float]] = []
    started, best = time.process_time(), -1.0
    for count, (weights, scores) in enumerate(niches_by_numpy.search(*train, seed, evaluations), start=1):
        if 100 * scores.mean() > best:
            best = 100 * float(scores.mean())
            changes.append((count, best, 100 * float(niches_by_numpy.right(weights, *test).mean())))
    spent = 1e3 * (time.process_time() - started) / evaluations
    say(f"{method}, seed {seed}: {changes[-1][1]:.1f} %, unseen {changes[-1][2]:.1f} %, {spent:.2f} CPU ms each")
    return Curve(method, seed, evaluations, changes, spent)


def weights_by_cma(seed: int, evaluations: int) -> Curve:
    """Return the curve of CMA-ES on the weights, without merging: as the released code, with a diagonal covariance."""
    method = "CMA-ES on the weights, from scratch"
    splits = perceptron.digits()
    rng = np.random.default_rng(seed)
    cma = cmaes.SepCMA(SIGMA * rng.standard_normal(sum(SIZES)), SIGMA, population_size=20, seed=seed)
    changes: list[tuple[int, float, float]] = []
    started, best, samples = time.process_time(), -1.0, []
    for count in range(1, evaluations + 1):
        samples.append((cma.ask(), 0.0))
        value = percent_correct(samples[-1][0], *splits["train"])
        samples[-1] = (samples[-1][0], -value)
        if value > best:
            best = value
            changes.append((count, best, percent_correct(samples[-1][0], *splits["test"])))
        if len(samples) == cma.population_size:
            cma.tell(samples)
            samples = []
    spent = 1e3 * (time.process_time() - started) / evaluations
    say(f"{method}, seed {seed}: {changes[-1][1]:.1f} %, unseen {changes[-1][2]:.1f} %, {spent:.2f} CPU ms each")
    return Curve(method, seed, evaluations, changes, spent)


@torch.inference_mode()
def percent_correct(weights: NDArray[np.float64], images: Tensor, labels: Tensor) -> float:
    """Return the accuracy in % of a perceptron with these weights."""
    logits = perceptron.logits(torch.from_numpy(weights.astype(np.float32)), images)
    return 100 * float((logits.argmax(1) == labels).double().mean())


def write_pool(folder: Path, experts: Mapping[str, Perceptron]) -> None:
    """Write an empty base, the experts and the tasks to `folder`, unless they exist."""
    if (folder / "written").exists():
        return
    perceptron.save(Perceptron(), folder / "base")
    for name, module in experts.items():
        perceptron.save(module, folder / "experts" / name)
    perceptron.write_tasks(folder, {**ALL, **PARITY})
    (folder / "written").touch()


def random_model(seed: int, number: int) -> Perceptron:
    """Return a perceptron with weights from N(0, 0.01²)."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, number]))
    module = Perceptron()
    module.weights.data = torch.from_numpy(SIGMA * rng.standard_normal(sum(SIZES))).float()
    return module


def halves(seed: int) -> list[Perceptron]:
    """Return models trained on the digits 0-4 and 5-9 from different starts, by 10 full-batch steps of Adam, as released."""
    images, labels = perceptron.digits()["train"]
    trained = []
    for number, group in enumerate(HALVES.values(), start=2):
        module = random_model(seed, number)
        chosen = torch.isin(labels, torch.tensor(group))
        optimiser = torch.optim.Adam(module.parameters(), lr=3e-3)
        for _ in range(10):
            optimiser.zero_grad()
            cross_entropy(module(images[chosen]), labels[chosen]).backward()
            optimiser.step()
        trained.append(module)
    return trained


def reported(evaluations: int) -> list[int]:
    """Return the numbers of evaluations at which accuracies are reported, with the last."""
    return [*(count for count in CHECKPOINTS if count < evaluations), evaluations]


def by_method(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    return {name: [one for one in curves if one.method == name] for name in dict.fromkeys(c.method for c in curves)}


def text(curves: Sequence[Curve]) -> str:
    """Return the table: mean ± standard deviation over seeds of train / test accuracy."""
    counts = reported(curves[0].evaluations)
    rows = []
    for method, runs in by_method(curves).items():
        cells = []
        for count in counts:
            train, test = np.array([curve.at(count) for curve in runs]).T
            spread = f" ± {test.std(ddof=1):.1f}" if len(runs) > 1 else ""
            cells.append(f"{train.mean():.1f} / {test.mean():.1f}{spread}")
        times = [curve.cpu_ms for curve in runs if not np.isnan(curve.cpu_ms)]
        rows.append([method, str(len(runs)), *cells, f"{np.mean(times):.2f}" if times else ""])
    head = ["accuracy (%), search / unseen ± sd, after", "seeds", *(f"{count:,}" for count in counts), "CPU ms each"]
    return f"{table(head, rows)}\n\n{PAPER}"


def draw(curves: Sequence[Curve]) -> Figure:
    """Draw unseen accuracy against evaluations: mean and range over seeds."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = dict(zip(("from scratch", "from experts"), figure.subplots(1, 2, sharey=True), strict=True))
    grid = np.unique(np.geomspace(10, curves[0].evaluations, 200).round().astype(int))
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
    for start, axes in panels.items():
        methods = {name: runs for name, runs in by_method(curves).items() if name.endswith(start)}
        for colour, (name, runs) in zip(colours, methods.items(), strict=False):
            values = np.array([[curve.at(count)[1] for count in grid] for curve in runs])
            axes.plot(grid, values.mean(0), color=colour, linewidth=1.8, label=name.removesuffix(f", {start}"))
            axes.fill_between(grid, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
        axes.set_xscale("log")
        axes.set_title(start, loc="left", fontsize=11)
        axes.set_xlabel("evaluations")
        axes.grid(visible=True, color="#e6e6e6", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9, loc="upper left")
    panels["from scratch"].set_ylabel("accuracy on 360 unseen digits (%)")
    return figure


if __name__ == "__main__":
    main("natural_niches", __doc__, measure, seeds=SEEDS, evaluations=(EVALUATIONS, SMOKE_EVALUATIONS))
