"""What travels between search and evaluation: a `Proposal` out, an `Evaluation` back, of declared `Metric`s. No torch."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evomerge.errors import EvaluatorError
from evomerge.recipe import Recipe

Split = Literal["search", "report"]
"""Which disjoint examples of a task are scored: those that a search may look at, or those that it never sees."""

Examples = Mapping[str, tuple[int, ...]]
"""Task → numbers of some of its examples in a split, each once. A task that is not named has none."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A kind of score that a task gives each example; higher is better. Not to be confused with the scores themselves."""

    name: str
    low: float = -math.inf
    """Lowest possible mean score; -inf where there is none."""
    high: float = math.inf
    """Highest possible mean score; inf where there is none."""
    smooth: bool = False
    """Whether it is a smooth function of the model's weights, such as a log-likelihood; accuracy is a step function."""
    margins: str | None = None
    """Name of the table in `Evaluation.outputs`, `(examples, columns)`, that decides the metric: an example scores 1 where
    all of its margins are positive, else 0. None where there is no such table."""

    @classmethod
    def named(cls, name: str) -> "Metric":
        """Return the metric that is assumed where only a name is declared: the one place where names imply ranges.

        `accuracy…`, `exact_match…` and `rouge…` lie in [0, 1], `log_likelihood` is at most 0, others are unbounded.
        """
        if name.startswith(("accuracy", "exact_match", "rouge")):
            return cls(name, 0.0, 1.0, margins="margins" if name == "accuracy" else None)
        return cls(name, high=0.0 if name == "log_likelihood" else math.inf)

    @property
    def bounds(self) -> tuple[float, float]:
        """The range, `(low, high)`."""
        return self.low, self.high


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """A candidate that somebody wants evaluated.

    `number` counts a study's asks from 0. `genome` is the driver's encoding, float64 `(genes,)`, or None where a recipe
    came from elsewhere. `examples` are those to score, in this order; None means all examples of all tasks.
    """

    number: int
    recipe: Recipe
    genome: NDArray[np.float64] | None = None
    split: Split = "search"
    examples: Examples | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What an evaluation found: score vectors, or the reason why there are none. Higher is better everywhere.

    `scores` maps `task/metric` to float32 `(examples,)`, in the order of the task's split, or of the examples that were
    asked for, where these are a part. `outputs` maps `task/name` to tables that were asked for, float32 `(examples, columns)`,
    in the same order. `seconds` says where the time went and is no part of the result.
    """

    scores: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    error: str | None = None
    outputs: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, scores: Mapping[str, ArrayLike]) -> "Evaluation":
        """Return the evaluation of plain numbers: for each objective one score, or a vector of one per example.

        Scores that are not finite in float32 give a failed evaluation.
        """
        with np.errstate(over="ignore"):
            vectors = {name: np.atleast_1d(np.asarray(score, dtype=np.float32)) for name, score in scores.items()}
        bad = [name for name, vector in vectors.items() if not np.isfinite(vector).all()]
        return cls(error=f"the score `{bad[0]}` is not finite") if bad else cls(vectors)

    def means(self, objectives: Sequence[str]) -> NDArray[np.float64]:
        """Return the mean score of each objective, float64 `(objectives,)`; all NaN for a failed evaluation."""
        if self.error is not None:
            return np.full(len(objectives), np.nan)
        return np.array([self.scores[name].mean(dtype=np.float64) for name in objectives])

    def to_json(self) -> dict[str, Any]:
        """Return the result (all but the time) as JSON data; `from_json` gives back the same bytes."""
        if self.error is not None:
            return {"error": self.error}
        data: dict[str, Any] = {"scores": {name: _encode(vector) for name, vector in sorted(self.scores.items())}}
        if self.outputs:
            tables = sorted(self.outputs.items())
            data["outputs"] = {name: {"columns": table.shape[1], "rows": _encode(table)} for name, table in tables}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Evaluation":
        """Return the evaluation that `to_json` wrote."""
        scores = {name: _decode(text) for name, text in data.get("scores", {}).items()}
        tables = data.get("outputs", {}).items()
        outputs = {name: _decode(table["rows"]).reshape(-1, table["columns"]) for name, table in tables}
        return cls(scores=scores, error=data.get("error"), outputs=outputs)


class ScoreTable:
    """What is known of one recipe on one split, example by example: parts of its evaluation, put together.

    Not to be confused with an `Evaluation`, which answers one proposal.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        """Know nothing yet of tasks that have `sizes` examples, by name."""
        self._known = {task: np.zeros(size, dtype=np.bool_) for task, size in sizes.items()}
        # By `task/metric`, (examples,), and outputs by `task/name`, (examples, columns); 0 where not known.
        self._scores: dict[str, NDArray[np.float32]] = {}

    @property
    def complete(self) -> bool:
        """Whether every example of every task is known."""
        return all(known.all() for known in self._known.values())

    @property
    def examples(self) -> dict[str, tuple[int, ...]]:
        """Which examples are known, in the order of the split."""
        return {task: tuple(np.flatnonzero(known).tolist()) for task, known in self._known.items()}

    def add(self, examples: Examples | None, evaluation: Evaluation) -> None:
        """Take in an evaluation of these `examples` (None: of all). Where a score was known before, that one stays.

        Raises `EvaluatorError` for scores that are not one for each of the examples.
        """
        arrays = {**evaluation.scores, **evaluation.outputs}
        for task, numbers in self._asked(examples).items():
            known, rows = self._known[task], np.array(numbers, dtype=np.intp)
            found = {name: array for name, array in arrays.items() if _task(name) == task}
            before = {name for name in self._scores if _task(name) == task} or found.keys()
            wrong = [
                name
                for name, array in found.items()
                if array.shape[:1] != rows.shape or array.ndim != (1 if name in evaluation.scores else 2)
            ]
            if not found or found.keys() != before or wrong:
                shapes = {name: array.shape for name, array in found.items()}
                msg = f"task `{task}`: expected a score for each of {len(rows)} examples, {(len(rows),)}, by the metrics {sorted(before)}; got {shapes}"
                raise EvaluatorError(msg)
            new = ~known[rows]
            for name, array in found.items():
                empty = np.zeros((len(known), *array.shape[1:]), np.float32)
                self._scores.setdefault(name, empty)[rows[new]] = array[new]
            known[rows] = True

    def missing(self, examples: Examples | None) -> dict[str, tuple[int, ...]]:
        """Return which of the `examples` (None: of all) are not known, in their order; tasks without any are left out."""
        left = {}
        for task, numbers in self._asked(examples).items():
            known = np.flatnonzero(self._known.get(task, ()))
            left[task] = tuple(np.array(numbers, dtype=np.intp)[~np.isin(numbers, known)].tolist())
        return {task: numbers for task, numbers in left.items() if numbers}

    def take(self, examples: Examples | None = None) -> Evaluation:
        """Return the evaluation of these `examples` (None: of all) in their order. All of them must be known."""
        rows = {task: np.array(numbers, dtype=np.intp) for task, numbers in self._asked(examples).items()}
        found = {name: array[rows[_task(name)]] for name, array in self._scores.items() if _task(name) in rows}
        scores = {name: array for name, array in found.items() if array.ndim == 1}
        return Evaluation(scores, outputs={name: array for name, array in found.items() if name not in scores})

    def _asked(self, examples: Examples | None) -> Examples:
        whole = {task: tuple(range(len(known))) for task, known in self._known.items()}
        return whole if examples is None else examples


def _task(objective: str) -> str:
    return objective.rpartition("/")[0]


def _encode(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(np.ascontiguousarray(vector, dtype="<f4").tobytes()).decode("ascii")


def _decode(text: str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32, copy=False)
