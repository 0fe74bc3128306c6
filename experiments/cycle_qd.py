"""Do populations of models (CycleQD, natural niches) beat searches for one recipe, at equal evaluations?

A small version of the comparison in Agent Skill Acquisition for Large Language Models via CycleQD (arXiv 2410.14735): the three
experts of the `language` zoo (German, Python, sums), with the log-likelihood of each expert's task as objectives. CMA-ES
and NSGA-II search one weight per expert; CycleQD and M2N2 cross earlier candidates. Evaluated on unseen examples is the candidate
with the best mean over tasks on the search examples, on a scale with 0 for the base and 1 for the task's expert; for CycleQD
also the last proposal, the merge of all tasks' best elites.

    python experiments/cycle_qd.py [--smoke] [--seeds N] [--evaluations N] [--json] [--out DIR]

An interrupted run resumes with the same command: its studies are kept in `runs/cycle_qd/`.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from shared.harness import Findings, Switches, main, say, table
from shared.layers import BATCHES

from evomerge import recipe, zoo
from evomerge.evaluate import Setup, Worker
from evomerge.recipe import Recipe
from evomerge.settings import StudySettings
from evomerge.study import Study
from evomerge.trial import Evaluation, Split

SEEDS = 3
EVALUATIONS = 40
SMOKE_EVALUATIONS = 8
STUDIES = Path("runs") / "cycle_qd"
TASKS = ("german", "python", "addition")  # each with an expert of its name
SMOKE_TASKS = ("turned", "inverted")
PAPER = (
    "The paper, mean over MBPP, DB and OS of Llama-3-8B-Instruct experts, 1,200 evaluations: best expert 45.6, naive merge 46.7, "
    "CMA-ES 46.9, NSGA-II 51.6, CycleQD 52.4."
)
MERGED = "CycleQD, each task's best merged"


class Judge:
    """Scores candidates: on each task 0 is the base's mean log-likelihood and 1 that of the task's expert."""

    def __init__(self, tasks: Sequence[str], setup: Setup) -> None:
        """Score on `tasks`, each with an expert of the same name."""
        self.tasks = tasks
        self.worker = Worker(setup)
        self._cache: dict[tuple[str, Split], NDArray[np.float64]] = {}

    def unseen(self, candidate: Recipe) -> NDArray[np.float64]:
        """Return a candidate's scores on unseen examples, `(tasks,)`."""
        return self.scale(self._means(candidate, "report"), "report")

    def scale(self, values: NDArray[np.float64], split: Split) -> NDArray[np.float64]:
        """Return mean log-likelihoods `(tasks,)` relative to the difference between expert and base."""
        zero = self._means(recipe.base(), split)
        one = np.diag([self._means(recipe.expert(name), split) for name in self.tasks])
        scaled: NDArray[np.float64] = (values - zero) / (one - zero)
        return scaled

    def _means(self, candidate: Recipe, split: Split) -> NDArray[np.float64]:
        key = candidate.id, split
        if key not in self._cache:
            self._cache[key] = means(self.worker.evaluate(candidate, split), self.tasks)
        return self._cache[key]


def means(evaluation: Evaluation, tasks: Sequence[str]) -> NDArray[np.float64]:
    if evaluation.error is not None:
        raise RuntimeError(evaluation.error)
    return evaluation.means([f"{task}/log_likelihood" for task in tasks])


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    embedded = zoo.find_or_build(
        "digits" if switches.smoke else "language",
        seed=0,
        progress=lambda done, doing: say(f"cycle_qd: {done:4.0%} {doing}"),
    )
    tasks = SMOKE_TASKS if switches.smoke else TASKS
    pool = {"base": embedded.pool["base"], "experts": {name: embedded.pool["experts"][name] for name in tasks}}
    batches = {} if switches.smoke else {**BATCHES, "python": BATCHES["german"]}
    settings = {
        "pool": pool,
        "tasks": {name: {**embedded.tasks[name], **batches.get(name, {})} for name in tasks},
        "precision": str(zoo.fast_precision()).removeprefix("torch."),
        "evaluations": switches.evaluations,
    }
    judge = Judge(tasks, Setup(pool["base"], pool["experts"], settings["tasks"], precision=settings["precision"]))
    scores: dict[str, list[NDArray[np.float64]]] = {"average": [judge.unseen(recipe.merge("linear", list(tasks)))]}
    scores |= {f"expert {name}": [judge.unseen(recipe.expert(name))] for name in tasks}
    recipes: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="cycle_qd-") as scratch:
        folder = Path(scratch) if switches.smoke else STUDIES
        for seed in switches.seeds:
            for method, driver, space in methods(switches.evaluations):
                study = search(folder, method, seed, {**settings, "driver": driver, "space": space})
                judge.worker.members.lineage.update(study.lineage())
                best, last = chosen(study, judge)
                recipes[f"{method}, seed {seed}"] = best.id
                scores.setdefault(method, []).append(judge.unseen(best))
                if driver["kind"] == "cycle":
                    recipes[f"{MERGED}, seed {seed}"] = last.id
                    scores.setdefault(MERGED, []).append(judge.unseen(last))
                say(f"{method}, seed {seed}: {scores[method][-1].mean():.3f} on unseen examples")
    figures = {
        "rows": [
            {
                "method": method,
                "seed": seed,
                "evaluations": switches.evaluations if len(values) == len(switches.seeds) else 0,
                "mean": float(value.mean()),
                **dict(zip(tasks, value.tolist(), strict=True)),
            }
            for method, values in scores.items()
            for seed, value in enumerate(values)
        ],
        "paper": PAPER,
    }
    return Findings(figures, text(scores, tasks), draw(scores), recipes)


def methods(evaluations: int) -> list[tuple[str, dict[str, Any], Any]]:
    """Return each method's name, driver and space."""
    weights = "task_arithmetic"
    return [
        ("CMA-ES", {"kind": "cma"}, weights),
        ("NSGA-II", {"kind": "nsga2", "population": 20}, weights),
        ("natural niches", {"kind": "niches", "relative": True, "population": 15}, "natural_niches"),
        ("CycleQD", {"kind": "cycle", "aggregate": evaluations}, "cycle_qd"),
    ]


def search(folder: Path, method: str, seed: int, data: Mapping[str, Any]) -> Study:
    """Run or resume the study of a method and seed."""
    name = f"{method.replace(' ', '_')}-{seed}"
    settings = StudySettings.parse({**data, "name": name, "seed": seed}, name, Path())
    study = Study.create(folder / name, settings)
    say(f"{method}, seed {seed}: {settings.evaluations} evaluations")
    with study.evaluator() as evaluator:
        study.run(evaluator)
    return study


def chosen(study: Study, judge: Judge) -> tuple[Recipe, Recipe]:
    """Return the candidate with the best mean over tasks on the search examples, and the last one."""
    successes = [(proposal, evaluation) for proposal, evaluation in study.population() if evaluation.error is None]
    values = [judge.scale(means(evaluation, judge.tasks), "search").mean() for _, evaluation in successes]
    return successes[int(np.argmax(values))][0].recipe, successes[-1][0].recipe


def text(scores: Mapping[str, Sequence[NDArray[np.float64]]], tasks: Sequence[str]) -> str:
    rows = []
    for method, values in scores.items():
        each = np.array([*values])
        spread = f" ± {each.mean(1).std(ddof=1):.3f}" if len(each) > 1 else ""
        rows.append([method, str(len(each)), f"{each.mean():.3f}{spread}", *(f"{v:.3f}" for v in each.mean(0))])
    about = (
        "Log-likelihood on unseen examples: 0 is the base, 1 the task's expert. ± is the standard deviation over seeds."
    )
    return f"{table(['method', 'seeds', 'mean', *tasks], rows)}\n\n{about}\n\n{PAPER}"


def draw(scores: Mapping[str, Sequence[NDArray[np.float64]]]) -> Figure:
    figure = Figure(figsize=(8, 0.9 + 0.4 * len(scores)), layout="constrained")
    axes = figure.subplots()
    for row, values in enumerate(scores.values()):
        means_of = [float(value.mean()) for value in values]
        axes.barh(row, np.mean(means_of), color="#0072B2" if len(values) > 1 else "#b9c4cc")
        if len(values) > 1:
            axes.plot(means_of, [row] * len(means_of), "o", color="black", markersize=4)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.invert_yaxis()
    axes.axvline(0, color="#6b6b6b", linewidth=0.8)
    axes.set_xlabel("mean over tasks, unseen examples: 0 base, 1 own expert (dots: seeds)")
    return figure


if __name__ == "__main__":
    main("cycle_qd", __doc__, measure, seeds=SEEDS, evaluations=(EVALUATIONS, SMOKE_EVALUATIONS))
