"""Does M2N2 (natural niches) evolve a model from random weights, or from two experts, better than other methods?

The first experiment of Competition and Attraction Improve Model Fusion (arXiv 2508.16204): a perceptron with 19,210 weights and
the 8x8 handwritten digits of scikit-learn, 1,437 for the search and 360 unseen (the data of the released code; MNIST in
the paper). From scratch: two random models, and children are mutated. From experts: one for the digits 0-4 and one for 5-9,
without mutation. Compared: natural niches, the same without competition and attraction (a genetic algorithm) or without one of
its parts, MAP-Elites, CMA-ES with diagonal covariance on the weights, and natural niches as a plain numpy loop, for its
cost per candidate. Candidates are evaluated on all 1,437 examples; reported is the one with the best search accuracy so far.

    python experiments/natural_niches.py [--smoke] [--seeds N] [--evaluations N] [--only METHOD …] [--json] [--out DIR]

An interrupted run resumes with the same command: its studies are kept in `runs/natural_niches/`. Searches of which
`natural_niches.json` in the output folder has the rows are not run again.
"""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
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

from evomerge import files
from evomerge.evaluate import Worker
from evomerge.report import bootstrap
from evomerge.settings import StudySettings
from evomerge.study import Study

SEEDS = 5
EVALUATIONS = 10_000
SMOKE_EVALUATIONS = 40
STUDIES = Path("runs") / "natural_niches"
SIGMA = 0.01
STALLED = 90  # % on the search examples at the end; below, a search from scratch counts as stalled
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
NUMPY, CMA = "natural niches in plain numpy, from scratch", "CMA-ES on the weights, from scratch"
METHODS = (
    *(f"{name}, from scratch" for name in DRIVERS if name != "no attraction"),
    NUMPY,
    CMA,
    *(f"{name}, from experts" for name in (*DRIVERS, "no split")),
)
PAPER = (
    "Released code, train/test after 10,000 evaluations from scratch: natural niches 94.3/85.6 (3 seeds), genetic algorithm "
    "77.0/68.3 (1), MAP-Elites 61.0/58.6 (1), diagonal CMA-ES 77.6/69.1 (3). The paper's figure, test after 10,000 from two "
    "experts: natural niches 68.3, no attraction 66.2, MAP-Elites 62.3, no split 57.8, genetic algorithm 52."
)


Row = Mapping[str, Any]
"""Accuracies of a method and seed after so many evaluations: an entry of `rows` in the written figures."""


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
    rows = [] if switches.smoke else kept_rows(switches)
    done = {(row["method"], row["seed"]) for row in rows}
    with tempfile.TemporaryDirectory(prefix="natural_niches-") as scratch:
        folder = Path(scratch) if switches.smoke else STUDIES.resolve()
        for seed in switches.seeds:
            for method in switches.parts:
                if (method, seed) not in done:
                    rows += rows_of(method, seed, folder, switches.evaluations)
    rows.sort(key=lambda row: (METHODS.index(row["method"]), row["seed"], row["evaluations"]))
    return Findings(
        {"rows": rows, "paper": PAPER}, text(rows), draw(rows), packages=["scikit-learn", "cmaes", "matplotlib"]
    )


def kept_rows(switches: Switches) -> list[dict[str, Any]]:
    """Return the rows of earlier runs with as many evaluations from the output folder."""
    path = None if switches.out is None else switches.out / "natural_niches.json"
    if path is None or not path.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["figures"]["rows"]
    return rows if max(row["evaluations"] for row in rows) == switches.evaluations else []


def rows_of(method: str, seed: int, folder: Path, evaluations: int) -> list[dict[str, Any]]:
    """Run or resume one search, unless its rows are in the `folder`; return a row for each reported number of evaluations."""
    path = folder / "rows" / f"{method}-{evaluations}-{seed}.json".replace(" ", "_").replace(",", "")
    if not path.exists():
        curve = curve_of(method, seed, folder, evaluations)
        rows = [
            {
                "method": method,
                "seed": seed,
                "evaluations": count,
                "train": curve.at(count)[0],
                "test": curve.at(count)[1],
                "cpu_ms_per_evaluation": None if np.isnan(curve.cpu_ms) else curve.cpu_ms,
            }
            for count in reported(evaluations)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, json.dumps(rows))
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def curve_of(method: str, seed: int, folder: Path, evaluations: int) -> Curve:
    """Run or resume one search."""
    if method == NUMPY:
        return plain_numpy(seed, evaluations)
    if method == CMA:
        return weights_by_cma(seed, evaluations)
    kind, _, start = method.partition(", from ")
    pool = folder / f"{start}-{seed}"
    if start == "scratch":
        write_pool(pool, {name: random_model(seed, i) for i, name in enumerate(("one", "two"))})
    else:
        write_pool(pool, dict(zip(HALVES, halves(seed), strict=True)))
    driver = DRIVERS.get(kind, DRIVERS["natural niches"])
    space = crossing(noise=start == "scratch", split=kind != "no split")
    return search(pool, method, driver, space, seed, evaluations)


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
    train, test = ((images.numpy(), labels.numpy()) for images, labels in perceptron.digits().values())
    changes: list[tuple[int, float, float]] = []
    started, best = time.process_time(), -1.0
    for count, (weights, scores) in enumerate(niches_by_numpy.search(*train, seed, evaluations), start=1):
        if 100 * scores.mean() > best:
            best = 100 * float(scores.mean())
            changes.append((count, best, 100 * float(niches_by_numpy.right(weights, *test).mean())))
    spent = 1e3 * (time.process_time() - started) / evaluations
    say(f"{NUMPY}, seed {seed}: {changes[-1][1]:.1f} %, unseen {changes[-1][2]:.1f} %, {spent:.2f} CPU ms each")
    return Curve(NUMPY, seed, evaluations, changes, spent)


def weights_by_cma(seed: int, evaluations: int) -> Curve:
    """Return the curve of CMA-ES on the weights, without merging: as the released code, with a diagonal covariance."""
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
    say(f"{CMA}, seed {seed}: {changes[-1][1]:.1f} %, unseen {changes[-1][2]:.1f} %, {spent:.2f} CPU ms each")
    return Curve(CMA, seed, evaluations, changes, spent)


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


def by_method(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {
        name: [row for row in rows if row["method"] == name] for name in dict.fromkeys(row["method"] for row in rows)
    }


def text(rows: Sequence[Row]) -> str:
    """Return the table: mean ± standard deviation over seeds of train / test accuracy."""
    counts = sorted({row["evaluations"] for row in rows})
    lines = []
    for method, of in by_method(rows).items():
        cells = []
        for count in counts:
            train, test = np.array([(row["train"], row["test"]) for row in of if row["evaluations"] == count]).T
            spread = f" ± {test.std(ddof=1):.1f}" if len(test) > 1 else ""
            cells.append(f"{train.mean():.1f} / {test.mean():.1f}{spread}")
        times = [row["cpu_ms_per_evaluation"] for row in of if row["cpu_ms_per_evaluation"] is not None]
        lines.append([method, str(len(of) // len(counts)), *cells, f"{np.mean(times):.2f}" if times else ""])
    head = ["accuracy (%), search / unseen ± sd, after", "seeds", *(f"{count:,}" for count in counts), "CPU ms each"]
    return f"{table(head, lines)}\n\n{stalled(rows)}{PAPER}"


def stalled(rows: Sequence[Row]) -> str:
    """Say how many searches by natural niches had stalled at the end, by the study and by the plain loop."""
    last = max(row["evaluations"] for row in rows)
    ends = by_method([row for row in rows if row["evaluations"] == last])
    lines = []
    for method in (f"{name}, from scratch" for name in ("natural niches", "natural niches in plain numpy")):
        if method in ends:
            values = np.sort([row["train"] for row in ends[method]])
            count = int((values < STALLED).sum())
            share, low, high = bootstrap.share_interval(count / len(values), len(values))
            lines.append(
                f"- {method}: {count} of {len(values)} stalled, {100 * share:.0f}% [{100 * low:.0f}, {100 * high:.0f}]; "
                f"median {np.median(values):.1f}, from {values[0]:.1f} to {values[-1]:.1f}"
            )
    if not lines:
        return ""
    about = (
        f"Below {STALLED}% on the search examples after {last:,} evaluations a search counts as stalled. Shares with 95% "
        "intervals by Clopper and Pearson; search accuracies in %. The study's driver and the plain loop are one algorithm: "
        "`tests/experiments/test_natural_niches.py` makes the candidates of a study again by the plain loop's functions, and finds the same "
        "scores, members and parents."
    )
    return "\n".join([f"{about}\n", *lines]) + "\n\n"


def draw(rows: Sequence[Row]) -> Figure:
    """Draw unseen accuracy against evaluations: mean and range over seeds."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = dict(zip(("from scratch", "from experts"), figure.subplots(1, 2, sharey=True), strict=True))
    counts = sorted({row["evaluations"] for row in rows})
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
    for start, axes in panels.items():
        methods = {name: of for name, of in by_method(rows).items() if name.endswith(start)}
        for colour, (name, of) in zip(colours, methods.items(), strict=False):
            values = np.array([[row["test"] for row in of if row["evaluations"] == count] for count in counts])
            axes.plot(
                counts,
                values.mean(1),
                "o-",
                markersize=3,
                color=colour,
                linewidth=1.8,
                label=name.removesuffix(f", {start}"),
            )
            axes.fill_between(counts, values.min(1), values.max(1), color=colour, alpha=0.12, linewidth=0)
        axes.set_xscale("log")
        axes.set_title(start, loc="left", fontsize=11)
        axes.set_xlabel("evaluations")
        axes.grid(visible=True, color="#e6e6e6", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if methods:
            axes.legend(frameon=False, fontsize=9, loc="upper left" if start == "from scratch" else "lower left")
    panels["from scratch"].set_ylabel("accuracy on 360 unseen digits (%)")
    return figure


if __name__ == "__main__":
    main("natural_niches", __doc__, measure, seeds=SEEDS, evaluations=(EVALUATIONS, SMOKE_EVALUATIONS), parts=METHODS)
