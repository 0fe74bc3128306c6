"""Searches for fronts of merged experts where every candidate is merged and scored once, however many methods ask for it.

A `Bench` scores recipes, and remembers them on disk; `drive` lets a driver search on it; `dense` is the reference that
costs more evaluations than any search.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cmaes
import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc
from shared.harness import say

from evomerge import files, pareto, surrogate, zoo
from evomerge.evaluate import Worker
from evomerge.parts import Parts, open_parts
from evomerge.recipe import Recipe
from evomerge.search import Driver
from evomerge.search.driver import known_recipes, propose
from evomerge.settings import StudySettings
from evomerge.space import SearchSpace
from evomerge.trial import Evaluation, Proposal, Split

Points = NDArray[np.float64]
KEPT = 200  # evaluations after which what is new is written


class Bench:
    """Scores recipes, each once on each split: what was scored before is read from `folder`, which belongs to one setup."""

    def __init__(self, parts: Parts, folder: Path) -> None:
        self.parts = parts
        self.space = parts.space
        self.objectives = parts.searched
        self._tasks = parts.tasks
        self._worker = Worker(parts.setup)
        self.folder = folder
        self._known: dict[tuple[Split, str], Evaluation] = {}
        self._new: list[tuple[Split, str]] = []
        for path in sorted(folder.glob("*.npz")):
            self._read(path)

    def score(self, recipe: Recipe, split: Split = "search", count: int | None = None) -> Evaluation:
        """Return the recipe's scores, of the first `count` examples per task or of all; a failure is not remembered.

        A bench is always asked for the same `count`.
        """
        key: tuple[Split, str] = (split, recipe.id)
        if key not in self._known:
            examples = None if count is None else {name: np.arange(count) for name in self._tasks}
            found = self._worker.evaluate(recipe, split, examples)
            if found.error is not None:
                return found
            self._known[key] = Evaluation(found.scores, outputs=found.outputs if split == "search" else {})
            self._new.append(key)
            if len(self._new) >= KEPT:
                self.save()
        return self._known[key]

    def examples(self, split: Split) -> dict[str, list[str]]:
        """Return the keys of each objective's examples, for `bootstrap.resamples`: views of one image have equal keys."""
        return {name: self._tasks[name.rpartition("/")[0]].example_keys(split) for name in self.objectives}

    def means(self, recipes: Sequence[Recipe], split: Split = "search") -> Points:
        """Return mean scores, `(recipes, objectives)`: NaN for those that fail."""
        return np.array([self.score(recipe, split).means(self.objectives) for recipe in recipes])

    def save(self) -> None:
        """Write what is new as one more file, which appears whole or not at all."""
        for split in dict.fromkeys(split for split, _ in self._new):
            ids = [name for other, name in self._new if other == split]
            found = [self._known[split, name] for name in ids]
            arrays = {name: np.stack([one.scores[name] for one in found]) for name in found[0].scores}
            arrays |= {name: np.stack([one.outputs[name] for one in found]) for name in found[0].outputs}
            out = io.BytesIO()
            np.savez_compressed(out, ids=np.array(ids), **arrays)
            files.write(self.folder / f"{split}-{len(list(self.folder.glob('*.npz'))):05}.npz", out.getvalue())
        self._new = []

    def _read(self, path: Path) -> None:
        split: Split = "search" if path.name.startswith("search") else "report"
        with np.load(path) as arrays:
            tables = dict(arrays)
        for row, recipe in enumerate(tables.pop("ids").tolist()):
            found = {name: table[row] for name, table in tables.items()}
            scores = {name: array for name, array in found.items() if array.ndim == 1}
            outputs = {name: array for name, array in found.items() if name not in scores}
            self._known[split, recipe] = Evaluation(scores, outputs=outputs)


def open_bench(
    name: str,
    tasks: int,
    folder: Path,
    *,
    precision: str = "float32",
    batch: int = 64,
    scored: Mapping[str, Any] = MappingProxyType({"metrics": ["accuracy"], "keep_margins": True}),
) -> Bench:
    """Return what scores merges of the experts of a zoo's first `tasks` by task arithmetic, by accuracy.

    What was scored is kept in `folder`, with margins, or as the tasks' settings in `scored` say. `precision` may be `fast`: the
    machine's fastest.
    """
    built = zoo.find_or_build(name, progress=lambda done, doing: say(f"{name}: {done:4.0%} {doing}"))
    names = list(built.tasks)[:tasks]
    if len(names) < tasks:
        raise ValueError(f"the zoo {name} has {len(names)} tasks; expected {tasks}")
    given = {
        "name": f"{name}-{tasks}",
        "pool": {"base": built.pool["base"], "experts": {task: built.pool["experts"][task] for task in names}},
        "tasks": {task: {**built.tasks[task], "batch": batch, **scored} for task in names},
        "space": "task_arithmetic",
        "precision": str(zoo.fast_precision()).removeprefix("torch.") if precision == "fast" else precision,
    }
    parts = open_parts(StudySettings.parse(given, name, Path()))
    digest = hashlib.sha256(json.dumps(asdict(parts.setup), sort_keys=True).encode()).hexdigest()
    return Bench(parts, folder / f"{name}-{tasks}-{digest[:16]}")


@dataclass(frozen=True)
class Run:
    """What one search evaluated, in order."""

    method: str
    seed: int
    recipes: Sequence[Recipe]
    points: Points
    """Mean scores on the search split, `(evaluations, objectives)`."""
    budget: int
    over: bool
    """Whether the search ended by itself: then what it has is also what it would have after more evaluations."""

    def reaches(self, count: int) -> bool:
        """Return whether it is known what this search has after `count` evaluations."""
        return self.over or count <= len(self.points)

    def front(self, count: int) -> list[Recipe]:
        """Return what is not dominated, on the search split, of the first `count` candidates: each recipe once."""
        best = np.flatnonzero(pareto.nondominated(self.points[:count]))
        return list({self.recipes[i].id: self.recipes[i] for i in best}.values())


def drive(driver: Driver, bench: Bench, budget: int, trail: list[tuple[Proposal, Evaluation]]) -> bool:
    """Search, one candidate at a time, until `trail` holds `budget`; return whether the driver had no more to ask."""
    while len(trail) < budget:
        proposal = driver.ask()
        if proposal is None:
            return True
        evaluation = bench.score(proposal.recipe)
        driver.tell(proposal, evaluation)
        trail.append((proposal, evaluation))
    return False


def as_run(method: str, seed: int, trail: Sequence[tuple[Proposal, Evaluation]], bench: Bench, *, over: bool) -> Run:
    """Return what a search evaluated."""
    points = np.array([evaluation.means(bench.objectives) for _, evaluation in trail])
    return Run(method, seed, [proposal.recipe for proposal, _ in trail], points, len(trail), over)


class Como:
    """A driver: COMO-CatCMA with margin (Hamano et al. 2025, arXiv 2504.07884) of cmaes, for two objectives and float genes.

    The known recipes come first, as with all other drivers; it is not told of them, for it learns of its own samples only.
    """

    def __init__(self, space: SearchSpace, objectives: Sequence[str], seed: int) -> None:
        self._space = space
        self._objectives = tuple(objectives)
        self._known = known_recipes(space)
        self._number = 0
        self._asked: cmaes.COMOCatCMAwM.Solution | None = None
        start = int(np.random.SeedSequence([seed]).generate_state(1)[0])
        self._optimiser = cmaes.COMOCatCMAwM(x_space=[[0.0, 1.0]] * len(space.genes), seed=start)

    def ask(self) -> Proposal:
        """Return the next known recipe or sample. The last one must have been told."""
        number, self._number = self._number, self._number + 1
        if number < len(self._known):
            return propose(self._space, number, self._known[number])
        self._asked = self._optimiser.ask()
        return propose(self._space, number, self._space.from_unit(self._asked.x[None])[0])

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Learn what a sample was worth."""
        if proposal.number >= len(self._known):
            self._optimiser.tell((self._asked, (-evaluation.means(self._objectives)).tolist()))

    def members(self) -> tuple[str, ...]:
        """Return nothing: a candidate is made of its genome alone."""
        return ()


class Simplex:
    """A driver: the known recipes, then weights that sum to 1, drawn from a flat Dirichlet distribution. It learns nothing."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space = space
        self._known = known_recipes(space)
        self._number = 0
        self._rng = np.random.default_rng(np.random.SeedSequence([seed]))

    def ask(self) -> Proposal:
        """Return the next known recipe or mixture."""
        number, self._number = self._number, self._number + 1
        mixture = self._rng.dirichlet(np.ones(len(self._space.genes)))
        return propose(self._space, number, self._known[number] if number < len(self._known) else mixture)

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Ignore the evaluation."""

    def members(self) -> tuple[str, ...]:
        """Return nothing: a candidate is made of its genome alone."""
        return ()


def dense(bench: Bench, levels: int, points: int, refinements: int, seed: int = 0) -> tuple[list[Recipe], Points]:
    """Return the recipes of a dense reference, each once, and their mean scores on the search split.

    The known recipes, a grid of `levels` a gene if that is not 0, scrambled Sobol `points`, and then `refinements` of the front
    so far, a hundred at a time: normal steps of a twentieth of each gene's range.
    """
    space, genes = bench.space, len(bench.space.genes)
    unit = [space.to_unit(known_recipes(space))]
    if levels:
        axes = np.meshgrid(*[np.linspace(0, 1, levels)] * genes, indexing="ij")
        unit.append(np.stack([axis.ravel() for axis in axes], axis=1))
    if points:
        unit.append(qmc.Sobol(genes, rng=np.random.default_rng(np.random.SeedSequence([seed, 0]))).random(points))
    tried = np.concatenate(unit)
    recipes = [space.decode(genome) for genome in space.from_unit(tried)]
    means = bench.means(recipes)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    while refinements > 0:
        best = tried[pareto.nondominated(means)]
        count = min(100, refinements)
        steps = best[rng.integers(len(best), size=count)] + 0.05 * rng.standard_normal((count, genes))
        new = np.clip(steps, 0.0, 1.0)
        made = [space.decode(genome) for genome in space.from_unit(new)]
        tried, means = np.concatenate([tried, new]), np.concatenate([means, bench.means(made)])
        recipes += made
        refinements -= count
    once = np.sort(np.unique([recipe.id for recipe in recipes], return_index=True)[1])
    bench.save()
    return [recipes[i] for i in once], means[once]


def corner(points: Points) -> Points:
    """Return the reference point that a front is measured above: its nadir, less a tenth of its range."""
    best = points[pareto.nondominated(points)]
    spans = np.ptp(best, axis=0)
    found: Points = best.min(axis=0) - 0.1 * np.where(spans > 0, spans, 1.0)
    return found


def few(points: Points, count: int) -> NDArray[np.intp]:
    """Return the rows of at most `count` points that keep much of a front's hypervolume."""
    return pareto.subset(points, corner(points), count) if len(points) else np.array([], dtype=np.intp)


def unknowns(tasks: int) -> int:
    """Return p, the coefficients of a quadratic in as many weights."""
    return surrogate.unknowns(tasks)
