"""What travels between search and evaluation: a `Proposal` out, an `Evaluation` back. No tensors, no torch."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.recipe import Recipe

Split = Literal["search", "report"]
"""Which disjoint examples of a task are scored: those that a search may look at, or those that it never sees."""


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """A candidate that somebody wants evaluated.

    `number` counts a study's asks from 0. `genome` is the driver's encoding, float64 `(genes,)`, or None where a recipe
    came from elsewhere.
    """

    number: int
    recipe: Recipe
    genome: NDArray[np.float64] | None = None
    split: Split = "search"


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What an evaluation found: score vectors, or the reason why there are none. Higher is better everywhere.

    `scores` maps `task/metric` to float32 `(examples,)`, in the order of the task's split. `outputs` maps names to larger
    arrays that were asked for (logits, `(examples, classes)`); they are not journaled. `seconds` says where the time went
    and is no part of the result.
    """

    scores: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    error: str | None = None
    outputs: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def means(self, objectives: Sequence[str]) -> NDArray[np.float64]:
        """Return the mean score of each objective, float64 `(objectives,)`; all NaN for a failed evaluation."""
        if self.error is not None:
            return np.full(len(objectives), np.nan)
        return np.array([self.scores[name].mean(dtype=np.float64) for name in objectives])

    def to_json(self) -> dict[str, Any]:
        """Return the result (scores and error, not the time) as JSON data; `from_json` gives back the same bytes."""
        if self.error is not None:
            return {"error": self.error}
        return {"scores": {name: _encode(vector) for name, vector in sorted(self.scores.items())}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Evaluation":
        """Return the evaluation that `to_json` wrote."""
        scores = {name: _decode(text) for name, text in data.get("scores", {}).items()}
        return cls(scores=scores, error=data.get("error"))


def _encode(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(np.ascontiguousarray(vector, dtype="<f4").tobytes()).decode("ascii")


def _decode(text: str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32, copy=False)
