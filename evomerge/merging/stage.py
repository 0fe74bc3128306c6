"""Stage: one step of a merge, a pure function of one point of one tensor.

It reads rows `(n,)` of task vectors, one for each input, and has one of three roles:

- edit:  rows → rows, for example trim or drop;
- weigh: rows → P, a field with a row `(n,)` or one number for each input; several multiply;
- post:  Δ → Δ `(n,)`, after the reduction.

As every stage is a function of a point, a composition of them runs in one pass over memory. Whatever a stage needs besides
the point (a threshold, an angle, a singular basis) is computed before, in three steps:

- `prepare` reads one tensor of the pool, and the statistics that the stage `needs`; independent of the candidate, slow, cached for the search and on disk;
- `measure` reads the prepared tables or the rows of a region (a tensor or the model), for one candidate;
- `bind` turns parameters and measurements into what `apply` reads, for one tensor.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.merging.parameters import Parameter
from evomerge.merging.site import Bound, Chunks, Piece, Prepared, Region, Scope, Site, Values

Words: TypeAlias = Mapping[str, str]
"""Those of the parameters that are words: they choose the code that runs, and are not read by it."""


def as_constants(site: Site, values: Values, measured: Any) -> Bound:
    """Return the numeric parameters as tensors, float32 `(K,)` or `()`; the default of `Stage.bind`."""
    return {
        name: torch.tensor(value, dtype=torch.float32) for name, value in values.items() if not isinstance(value, str)
    }


Derivatives: TypeAlias = Mapping[str, NDArray[np.float64]]
"""Of a number with respect to each bound constant, in its shape."""

Slope: TypeAlias = Callable[[Site, Values, Callable[[Values], Any], Derivatives], NDArray[np.float64]]
"""(tensor, parameters, parameters → measurement, derivatives with respect to what was bound) → the derivative with respect to
one parameter, `(K,)` where it is per input, else `()`."""


def slope_of(name: str) -> Slope:
    """Return the slope of a parameter that is bound as it is, under `name`."""
    return lambda site, values, measure, derivatives: derivatives[name]


_STEP = 1e-6


def measured_slope(name: str, bound: str = "weight", read: Callable[[Any], Any] = lambda measured: measured) -> Slope:
    """Return the slope of a parameter through a measurement, by central differences of float64 numbers.

    `read` returns the numbers that are bound under `bound` from the measurement.
    """

    def slope(
        site: Site, values: Values, measure: Callable[[Values], Any], derivatives: Derivatives
    ) -> NDArray[np.float64]:
        value = np.asarray(values[name], dtype=np.float64)
        result = np.empty(value.shape)
        for entry in np.ndindex(value.shape):
            ends = []
            for sign in (-1.0, 1.0):
                moved = value.copy()
                moved[entry] += sign * _STEP
                there = tuple(moved.tolist()) if value.ndim else moved.item()
                ends.append(np.asarray(read(measure({**values, name: there}))))
            result[entry] = ((ends[1] - ends[0]) / (2 * _STEP) * derivatives[bound]).sum()
        return result

    return slope


@dataclass(frozen=True, slots=True)
class Preparation:
    """What a stage computes of one tensor of the pool, once for all candidates."""

    make: Callable[[Site, Chunks, Values], Prepared]
    key: Callable[[Site, Values], tuple[str | float, ...]] = lambda site, values: ()
    """What `make` depends on besides the tensor; part of the cache's key."""
    reads: tuple[int, ...] | None = None
    """The inputs that `make` reads, if not all: the tables then serve whatever the others are."""
    shared_as: str = ""
    """Name of the tables, where several stages prepare the same; else the stage's name."""
    cheap: bool = False
    """Whether a merge that is made once makes the tables when they are read, and stores none: they pay off in a search alone."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a stage computes over a region, for one candidate."""

    make: Callable[[Region, Values], Any]
    over: Callable[[Values], Scope | None] = lambda values: "model"
    """The region; None if these parameters need no measurement."""
    fields: bool = False
    """Whether the result is as large as the tensor, and so not cached."""
    smooth: bool = True
    """Whether the result changes with small changes of what is read. Thresholds and signs, in slopes, are held fixed."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: its parameters with their ranges, what it prepares and measures, and its function of a point."""

    role: Literal["edit", "weigh", "post"]
    about: str
    apply: Callable[[Piece, Any, Bound, Words], Any]
    """(piece, its rows or Δ, the bound values, the parameters that are words) → new rows, a field, or new Δ.

    It calls only operations that IEEE 754 rounds correctly, and no library's exp or tanh, which have other last bits in
    compiled code: see `arithmetic`.
    """
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    prepare: Preparation | None = None
    measure: Measurement | None = None
    bind: Callable[[Site, Values, Any], Bound] = as_constants
    """(tensor, parameters, measurement or None) → what `apply` reads."""
    needs: Callable[[Values], tuple[str, ...]] = lambda values: ()
    """(words among the parameters) → the kinds of statistics of each input that it reads, by `Site.statistics`."""
    arity: tuple[int, int | None] = (1, None)
    """The least and the greatest number of inputs; None: no limit."""
    adds: bool = False
    """Whether the result is not zero where all task vectors are zero."""
    joins: bool = False
    """Whether it leaves a single row: later stages cannot tell inputs apart."""
    slopes: Mapping[str, Slope] = field(default_factory=dict)
    """The parameters that the result is a smooth function of, masks, signs and thresholds held fixed."""
    linear: bool = False
    """Whether `apply` is linear in Δ, or gives weights that do not depend on the element: one number for each input."""
    reuses: bool = False
    """Whether `apply` uses intermediate results so often that inlining them at each use would blow up compiled code."""
