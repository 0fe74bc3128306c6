"""What travels between search and evaluation: a `Proposal` out, an `Evaluation` back, of declared `Metric`s. No torch."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evomerge.errors import EvaluatorError, printable
from evomerge.recipe import Recipe

Split = Literal["search", "report", "final"]
"""Which disjoint examples of a task are scored: those that a search may use, those that its reports judge it on, or those
that are left for a last measurement, where a task has them."""

Examples = Mapping[str, tuple[int, ...]]
"""Task → indices of some of its examples in a split, each once. A task that is not named has none."""

_Float = TypeVar("_Float", np.float32, np.float64)

SLOPES_COST = 3
"""Examples without slopes that one with slopes counts as in a budget: a backward pass takes about twice the time of a forward pass."""

LONGEST_ERROR = 1000
"""Characters of an evaluation's error."""


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
    slopes: bool = False
    """Whether the task can differentiate it with respect to the model's weights."""
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
    """A candidate to be evaluated.

    `number` counts a study's asks from 0. `genome` is the driver's encoding, float64 `(genes,)`, or None for a recipe from
    elsewhere. `examples` are those to score, in this order; None means all examples of all tasks. `slopes` are the examples,
    among those scored, over whose mean score slopes are wanted; None wants no slopes.
    """

    number: int
    recipe: Recipe
    genome: NDArray[np.float64] | None = None
    split: Split = "search"
    examples: Examples | None = None
    slopes: Examples | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The result of a proposal: score vectors, or the reason why there are none. Higher is better everywhere.

    `scores` maps `task/metric` to float32 `(examples,)`, in the order of the task's split, or of the proposal's examples.
    `outputs` maps `task/name` to tables, float32 `(examples, columns)`, in the same order. `slopes` maps objectives to the
    derivatives of their mean scores with respect to the recipe's `numbers`, float64 `(numbers,)`, NaN for a number that has
    none; a search space turns them into slopes of genes (`SearchSpace.slopes`). `seconds` says where the time went and is
    not part of the result. An `error` is at most 1,000 characters; control characters, and what is not valid Unicode, are
    escaped in it: it can always be recorded, and printed to a terminal.
    """

    scores: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    error: str | None = None
    outputs: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    slopes: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.error is not None:
            object.__setattr__(self, "error", printable(self.error)[:LONGEST_ERROR])

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
        """Return the result (without the time) as JSON data; `from_json` gives back the same bytes."""
        if self.error is not None:
            return {"error": self.error}
        scores = {name: to_base64(vector, np.float32) for name, vector in sorted(self.scores.items())}
        outputs = {
            name: {"columns": table.shape[1], "rows": to_base64(table, np.float32)}
            for name, table in sorted(self.outputs.items())
        }
        slopes = {name: to_base64(vector, np.float64) for name, vector in sorted(self.slopes.items())}
        optional = {"outputs": outputs, "slopes": slopes}
        return {"scores": scores, **{key: value for key, value in optional.items() if value}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Evaluation":
        """Return the evaluation that `to_json` wrote. Raises `ValueError` for text that is not base64 of such an array."""
        scores = {name: from_base64(text, np.float32) for name, text in data.get("scores", {}).items()}
        tables = data.get("outputs", {}).items()
        outputs = {name: from_base64(table["rows"], np.float32).reshape(-1, table["columns"]) for name, table in tables}
        slopes = {name: from_base64(text, np.float64) for name, text in data.get("slopes", {}).items()}
        return cls(scores=scores, error=data.get("error"), outputs=outputs, slopes=slopes)


class ScoreTable:
    """The scores of one recipe on one split, example by example, collected from evaluations of parts of the examples.

    Not to be confused with an `Evaluation`, which is the result of one proposal.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        """Start empty, for tasks that have `sizes` examples, by name."""
        self._scored = {task: np.zeros(size, dtype=np.bool_) for task, size in sizes.items()}
        # By `task/metric`, (examples,), and outputs by `task/name`, (examples, columns); 0 where not scored.
        self._arrays: dict[str, NDArray[np.float32]] = {}

    @property
    def complete(self) -> bool:
        """Whether every example of every task is scored."""
        return all(scored.all() for scored in self._scored.values())

    def add(self, examples: Examples | None, evaluation: Evaluation) -> None:
        """Add an evaluation of these `examples` (None: of all). An example that is already scored keeps its score.

        Raises `EvaluatorError` for scores that are not one for each of the examples.
        """
        arrays = {**evaluation.scores, **evaluation.outputs}
        for task, indices in self._indices(examples).items():
            scored, rows = self._scored[task], np.array(indices, dtype=np.intp)
            new = {name: array for name, array in arrays.items() if _task(name) == task}
            expected = {name for name in self._arrays if _task(name) == task} or new.keys()
            shapes = {name: array.shape for name, array in new.items()}
            dimensions = {name: 1 if name in evaluation.scores else 2 for name in new}
            fits = all(shape[:1] == rows.shape and len(shape) == dimensions[name] for name, shape in shapes.items())
            if not new or new.keys() != expected or not fits:
                msg = f"task `{task}`: expected a score for each of {len(rows)} examples, {(len(rows),)}, by the metrics {sorted(expected)}; got {shapes}"
                raise EvaluatorError(msg)
            fresh = ~scored[rows]
            for name, array in new.items():
                empty = np.zeros((len(scored), *array.shape[1:]), np.float32)
                self._arrays.setdefault(name, empty)[rows[fresh]] = array[fresh]
            scored[rows] = True

    def missing(self, examples: Examples | None) -> dict[str, tuple[int, ...]]:
        """Return which of the `examples` (None: of all) are not scored, in their order; tasks without any are left out."""
        missing = {}
        for task, indices in self._indices(examples).items():
            unscored = ~np.isin(indices, np.flatnonzero(self._scored.get(task, ())))
            if unscored.any():
                missing[task] = tuple(np.array(indices, dtype=np.intp)[unscored].tolist())
        return missing

    def take(self, examples: Examples | None = None) -> Evaluation:
        """Return the evaluation of these `examples` (None: of all) in their order. All of them must be scored."""
        rows = {task: np.array(indices, dtype=np.intp) for task, indices in self._indices(examples).items()}
        arrays = {name: array[rows[_task(name)]] for name, array in self._arrays.items() if _task(name) in rows}
        scores = {name: array for name, array in arrays.items() if array.ndim == 1}
        return Evaluation(scores, outputs={name: array for name, array in arrays.items() if name not in scores})

    def _indices(self, examples: Examples | None) -> Examples:
        if examples is not None:
            return examples
        return {task: tuple(range(len(scored))) for task, scored in self._scored.items()}


def to_base64(array: NDArray[Any], dtype: type[_Float]) -> str:
    """Return the bytes of the array, as little-endian `dtype`, as base64."""
    return base64.b64encode(np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<")).tobytes()).decode("ascii")


def from_base64(text: str, dtype: type[_Float]) -> NDArray[_Float]:
    """Return the flat array that `to_base64` wrote. Raises `ValueError` if it did not."""
    little = np.dtype(dtype).newbyteorder("<")
    return np.frombuffer(base64.b64decode(text, validate=True), little).astype(dtype, copy=False)


def _task(objective: str) -> str:
    return objective.rpartition("/")[0]
