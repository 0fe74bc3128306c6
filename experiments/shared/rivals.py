"""Published methods that follow slopes, as searches at the budget of the package's own drivers.

A `Bed` scores recipes, each once; a `Trail` is one search on it. All of them score the known recipes first, as the drivers do.
"""

import json
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from shared import directions
from shared.harness import say

from evomerge import zoo
from evomerge.evaluate import Worker
from evomerge.models.pretrained import load_model
from evomerge.parts import open_parts
from evomerge.recipe import Recipe
from evomerge.search.driver import known_recipes
from evomerge.search.slopes.ascent import BETAS, Adam, deviations, shared_levels
from evomerge.search.slopes.measure import Measure, Measured, units
from evomerge.settings import StudySettings
from evomerge.trial import SLOPES_COST, Evaluation, Examples, Proposal

EXAMPLES = 100  # per task
RATE = 0.05  # of Adam, as in the driver `gradient`
CENTRED = 6  # steps for equal weights, before the points of a front part
SHARE = 0.3  # of the way from there to an expert or the mean of two, where MGDA and hypervolume ascent begin

Array = NDArray[np.float64]
Done = list[tuple[Proposal, Evaluation]]


class Bed:
    """The experts of one zoo. Every recipe is scored once, with slopes or without, however many methods ask for it."""

    def __init__(self, seed: int) -> None:
        built = zoo.find_or_build("digits", seed=seed, progress=lambda done, doing: say(f"digits: {done:4.0%} {doing}"))
        recipe = {
            "merge": {
                "method": "task_arithmetic",
                "inputs": "experts",
                "parameters": {"weight": {"float": [0, 1.2], "init": 0.25, "per": ["expert", "tensor"]}, "lambda": 1},
            }
        }
        tasks = {name: {**task, "batch": EXAMPLES} for name, task in built.tasks.items()}
        given = {"pool": built.pool, "tasks": tasks, "space": {"recipe": recipe}}
        self.parts = open_parts(StudySettings.parse(given, "slope_methods", Path()))
        self.space = self.parts.space
        self.metrics = {
            name: task.metrics[task.search_metric]
            for name, task in zip(self.parts.searched, self.parts.tasks.values(), strict=True)
        }
        self.objectives = tuple(self.metrics)
        self.sizes = dict.fromkeys(self.parts.tasks, EXAMPLES)
        self._worker = Worker(self.parts.setup)
        self._known: dict[str, Evaluation] = {}
        self._module: Any = None  # in which torch differentiates single examples

    def score(self, recipe: Recipe, slopes: Examples | None = None, *, unseen: bool = False) -> Evaluation:
        """Return the scores of the search examples, or of all unseen ones. Raises `ValueError` for a failure."""
        key = f"{recipe.id} {unseen} {sorted(slopes.items()) if slopes else ''}"
        if key not in self._known:
            examples = None if unseen else {task: tuple(range(size)) for task, size in self.sizes.items()}
            done = self._worker.evaluate(recipe, "report" if unseen else "search", examples, slopes)
            if done.error is not None:
                raise ValueError(done.error)
            self._known[key] = done
        return self._known[key]

    def unseen(self, recipe: Recipe, metric: str = "accuracy") -> Array:
        """Return the mean unseen scores, `(tasks,)`."""
        done = self.score(recipe, unseen=True)
        return np.asarray(done.means([f"{task}/{metric}" for task in self.parts.tasks]))

    def jacobian(self, recipe: Recipe, examples: Examples) -> Array:
        """Return the slopes of each example's log-likelihood with respect to the genes, `(examples, genes)`, task by task.

        They are torch's own, by example, of the model that holds the recipe's weights; none of the package's slopes is used.
        """
        self._worker.evaluate(recipe, "search", dict.fromkeys(examples, (0,)))  # writes the weights
        live, pool = self._worker.prepare().model, self.parts.pool
        merged = dict(live.module.named_parameters())
        if self._module is None:
            self._module = load_model(pool.base.path, "AutoModelForImageClassification")
            self._module.set_attn_implementation("eager")  # the other has no rule for batches of slopes
        module = self._module
        weights = {name: merged[name].detach() for name, _ in module.named_parameters()}

        def likelihood(weights: Any, image: torch.Tensor, label: torch.Tensor) -> Any:
            logits = torch.func.functional_call(module, weights, (), {"pixel_values": image[None]}).logits
            return logits[0].log_softmax(0).gather(0, label[None])[0]

        by_example = torch.func.vmap(torch.func.grad(likelihood), (None, 0, 0))
        files = {name: self.parts.setup.tasks[name]["search"] for name in examples}
        parts = []
        for task, rows in examples.items():
            lines = Path(files[task]).read_text(encoding="utf-8").splitlines()
            read = [json.loads(lines[row]) for row in rows]
            images, labels = torch.tensor([row["pixels"] for row in read]), torch.tensor([row["label"] for row in read])
            gradients = by_example(weights, images, labels)
            names = {merged[name].data_ptr(): name for name in gradients}
            result = np.zeros((len(rows), len(self.space.genes)))
            for gene, (one, tensor) in enumerate(self.space.holes[0].keys):
                [view] = live.views(tensor)
                vector = pool.experts[one].tensor(tensor).float() - pool.base.tensor(tensor).float()
                result[:, gene] = gradients[names[view.data_ptr()]].flatten(1) @ vector.flatten()
            parts.append(result)
        return np.concatenate(parts)


class Spent(Exception):  # noqa: N818  # no error: the end of a search
    """The budget is used."""


class Trail:
    """One search by a rival: what it evaluated, in unit coordinates, within its budget."""

    def __init__(self, bed: Bed, seed: int, budget: float, validation: float) -> None:
        """Score the known recipes, and start at the best of them. `validation` is the share of examples without slopes."""
        self.bed, self.budget = bed, budget
        self.measure = Measure("gradient", bed.space, bed.metrics, bed.sizes, validation, seed)
        self.count = sum(map(len, self.measure.training.values()))
        self.done: list[tuple[Proposal, Evaluation]] = []
        self._read: dict[bytes, Measured] = {}
        known = known_recipes(bed.space)
        scored = [bed.score(bed.space.decode(genome)) for genome in known]
        for genome, evaluation in zip(known, scored, strict=True):
            self._add(genome, evaluation, None)
        means = np.array([evaluation.means(bed.objectives) for evaluation in scored])
        row = next(i for i, genome in enumerate(known) if np.array_equal(genome, bed.space.landmarks()["base"]))
        self.units = units(means, scored, bed.objectives, row)
        self.weights = 1 / len(self.units) / self.units
        self.known = means / self.units
        self.start = bed.space.to_unit(known[int(np.argmax(means @ self.weights))])

    def __call__(self, point: Array) -> Measured:
        """Return what an evaluation with slopes of a point says. Raises `Spent` where the budget has no room for it."""
        genome = self.bed.space.from_unit(np.clip(point, 0, 1))
        if genome.tobytes() not in self._read:
            full = sum(self.bed.sizes.values())
            if spent(self.done, self.bed)[-1] + 1 + (SLOPES_COST - 1) * self.count / full > self.budget:
                raise Spent
            evaluation = self.bed.score(self.bed.space.decode(genome), self.measure.training)
            self._add(genome, evaluation, self.measure.training)
            measured = self.measure.read(genome, evaluation)
            assert measured is not None
            self._read[genome.tobytes()] = measured
        return self._read[genome.tobytes()]

    def _add(self, genome: Array, evaluation: Evaluation, slopes: Examples | None) -> None:
        recipe = self.bed.space.decode(genome)
        self.done.append((Proposal(len(self.done), recipe, genome, slopes=slopes), evaluation))


def spent(done: Done, bed: Bed) -> Array:
    """Return the units that were spent after each evaluation."""
    full = sum(bed.sizes.values())
    return np.cumsum(
        [1 + (SLOPES_COST - 1) * sum(map(len, (proposal.slopes or {}).values())) / full for proposal, _ in done]
    )


def adam(trail: Trail) -> None:
    ascent = Adam(trail.start, RATE)
    while True:
        ascent.step(trail.weights @ trail(ascent.position).slopes)


def lbfgs(trail: Trail, ridge: float = 0.0) -> None:
    """Follow L-BFGS-B, less `ridge` / 2 over the number of training examples times the squared deviations from the levels' means."""
    levels, strength = shared_levels(trail.bed.space), ridge / trail.count

    def falls(point: Array) -> tuple[float, Array]:
        measured, away = trail(point), deviations(point, levels)
        value = trail.weights @ measured.training - strength / 2 * away @ away
        return -float(value), strength * away - trail.weights @ measured.slopes

    bounds, free = [(0, 1)] * len(trail.start), {"maxiter": 10**6, "maxfun": 10**6, "ftol": 0.0, "gtol": 0.0}
    minimize(falls, trail.start, jac=True, method="L-BFGS-B", bounds=bounds, options=free)


def gauss_newton(trail: Trail) -> None:
    """Follow Levenberg-Marquardt steps; damping falls threefold after one that gains as expected, and rises fourfold after a bad one."""
    bed, training = trail.bed, trail.measure.training
    shares = np.concatenate(
        [np.full(len(rows), w / len(rows)) for w, rows in zip(trail.weights, training.values(), strict=True)]
    )
    spans = bed.space.upper - bed.space.lower
    point, damping, value = trail.start, 1.0, float(trail.weights @ trail(trail.start).training)
    while True:
        recipe = bed.space.decode(bed.space.from_unit(point))
        jacobian = bed.jacobian(recipe, training) * spans
        scores = bed.score(recipe, training).scores
        scored = [scores[name][list(training[name.rpartition("/")[0]])] for name in bed.objectives]
        losses = np.maximum(-np.concatenate(scored), 1e-6)
        uphill = shares @ jacobian
        np.testing.assert_allclose(
            uphill, trail.weights @ trail(point).slopes, rtol=0.01, atol=1e-3 * abs(uphill).max()
        )
        free = ~((point <= 0) & (uphill < 0) | (point >= 1) & (uphill > 0))
        while True:
            step = directions.levenberg_marquardt(jacobian, losses, shares, damping, free)
            tried = np.clip(point + step, 0, 1)
            moved = tried - point
            expected = uphill @ moved - 0.5 * (shares / (2 * losses)) @ (jacobian @ moved) ** 2
            reached = float(trail.weights @ trail(tried).training)
            share = (reached - value) / max(expected, 1e-300)
            damping *= 4 if share < 0.25 else 1 / 3 if share > 0.75 else 1
            if reached > value:
                point, value = tried, reached
                break
            if not moved.any() or damping > 1e9:
                return


Rule = Callable[[int, Sequence[Measured]], Array]


def side_by_side(trail: Trail, spread: float, rule: Rule) -> None:
    """Improve the equal weights, and then ten points in turn, which start a share `spread` of the way to experts and pairs of them."""
    ascent = Adam(trail.start, RATE, BETAS, shared_levels(trail.bed.space))
    for _ in range(CENTRED):
        ascent.step(trail.weights @ trail(ascent.position).slopes)
    space, marks = trail.bed.space, trail.bed.space.landmarks()
    corners = [space.to_unit(marks[f"expert {name}"]) for name in trail.bed.parts.pool.experts]
    starts = [
        (1 - spread) * ascent.position + spread * np.mean([corners[i] for i in of], axis=0)
        for of in subsets(len(corners))
    ]
    climbs = [Adam(start, RATE, BETAS, shared_levels(space)) for start in starts]
    while True:
        measured = [trail(climb.position) for climb in climbs]
        for row, climb in enumerate(climbs):
            climb.step(rule(row, measured))


def subsets(count: int) -> list[tuple[int, ...]]:
    """Return each task alone, and each pair."""
    return [of for size in (1, 2) for of in combinations(range(count), size)]


def preferences(count: int) -> Array:
    """Return weights that count some tasks four times as much as others, `(preferences, tasks)`, sums of 1."""
    rows = np.ones((len(subsets(count)), count))
    for row, of in zip(rows, subsets(count), strict=True):
        row[list(of)] = 4.0
    return rows / rows.sum(axis=1, keepdims=True)


def mgda(trail: Trail) -> None:
    side_by_side(trail, SHARE, lambda row, all_: directions.mgda(all_[row].slopes / trail.units[:, None]))


def epo(trail: Trail) -> None:
    rays = preferences(len(trail.units))

    def rule(row: int, all_: Sequence[Measured]) -> Array:
        losses = np.maximum(-all_[row].training / trail.units, 1e-6)
        return directions.epo(all_[row].slopes / trail.units[:, None], losses, rays[row])

    side_by_side(trail, 0.0, rule)


def hypervolume(trail: Trail) -> None:
    corner = trail.known.min(axis=0)

    def rule(row: int, all_: Sequence[Measured]) -> Array:
        wanted = directions.hypervolume_slopes(np.array([one.training / trail.units for one in all_]), corner)[row]
        slopes = all_[row].slopes / trail.units[:, None]
        return wanted @ slopes if wanted.any() else slopes.mean(axis=0)  # below the corner

    side_by_side(trail, SHARE, rule)


def weighted(trail: Trail) -> None:
    rows = preferences(len(trail.units)) / trail.units
    side_by_side(trail, 0.0, lambda row, all_: rows[row] @ all_[row].slopes)
