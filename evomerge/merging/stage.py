"""What a stage of a merge is.

Three roles, each a pure function of one point of one tensor, on rows `(n,)` of task vectors, one row for each input:

- edit:  rows → rows, for example trim or drop;
- weigh: rows → P, a field with a row `(n,)` or one number for each input; several multiply;
- post:  Δ → Δ `(n,)`, after the reduction.

Because every stage is a function of a point, a whole composition of them runs in one pass over memory. What a stage must
know of more than a point (a threshold, an angle, a singular basis) comes to it as constants and as fields, by three steps
that run before:

- `prepare` reads one tensor of the pool, whatever the candidate: slow, and kept for the whole search and on disk;
- `measure` reads what was prepared over a region (a tensor or the model) for one candidate;
- `bind` turns numbers and measures into what `apply` reads, for one tensor.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import torch

from evomerge.merging.parameters import Parameter
from evomerge.recipe import Place

Tensor = torch.Tensor
T = TypeVar("T")

Rows: TypeAlias = list[Tensor]
"""One float32 tensor for each input: `(n,)`, or `()` for a field of one number each."""

Numbers: TypeAlias = Mapping[str, Any]
"""A stage's parameters for one tensor: a tuple `(K,)` where per input, else one number or word."""

Bound: TypeAlias = dict[str, Any]
"""What `apply` reads: tensors are constants; a list of tensors is a field, float or integer rows as long as the tensor."""

Prepared: TypeAlias = dict[str, Tensor]
"""What was prepared of one tensor."""

Scope = Literal["block", "tensor", "kind", "model"]


@dataclass(frozen=True, slots=True)
class Site:
    """The tensor that a merge is about to make."""

    tensor: str
    shape: tuple[int, ...]
    place: Place
    labels: tuple[str, ...]  # (K,)
    seed: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """Rows of a matrix, of a kernel's filters, 1 of a vector."""
        return self.shape[0] if len(self.shape) > 1 else 1


@dataclass(frozen=True, slots=True)
class Piece:
    """Some consecutive elements of a tensor, on their way through the stages."""

    raw: Rows
    """The task vectors as they were before any edit, `(n,)` each."""
    start: Tensor
    """Index of the first element in its tensor, int32 `()`."""

    @property
    def index(self) -> Tensor:
        """Index of each element in its tensor, int32 `(n,)`."""
        first = self.raw[0]
        return torch.arange(first.shape[0], dtype=torch.int32, device=first.device) + self.start


@dataclass(frozen=True, slots=True)
class Block:
    """Some consecutive elements of a tensor as a stage that measures finds them."""

    site: Site
    span: slice
    piece: Piece
    rows: Rows
    """After the edits so far; for a post stage, the one row Δ."""
    base: Tensor
    """The base's own numbers, `(n,)`, of any floating-point dtype."""
    origin: Tensor | float
    """What rows are counted from, float32 `(n,)` or 0."""

    def task_vector(self, i: int) -> Tensor:
        """Return the row of input `i` counted from the base, whatever the rows are counted from, float32 `(n,)`."""
        return self.rows[i] - (self.base.float() - self.origin)


Blocks: TypeAlias = Callable[[], Iterator[Block]]
"""Starts a pass over a tensor."""


class Region(Protocol):
    """The tensors over which a stage measures."""

    @property
    def site(self) -> Site:
        """The tensor, or the first of a model's."""

    @property
    def tensors(self) -> Sequence[str]:
        """Their names, in the order of the model."""

    @property
    def lasting(self) -> bool:
        """Whether what is prepared here is kept: it depends on the pool alone, not on the candidate."""

    def prepared(self) -> Sequence[Prepared]:
        """What the stage prepared, tensor by tensor."""

    def remember(self, make: Callable[[], T]) -> T:
        """Return what `make` makes of what the stage finds, whatever its own numbers: made once for as long as it finds that."""

    def blocks(self) -> Iterator[Block]:
        """All elements, block by block, as the stage finds them."""

    def within(self, tensor: str, span: slice) -> Iterator[Block]:
        """Some elements of one of the tensors, block by block, as the stage finds them."""


def total(rows: Rows) -> Tensor:
    """Return the sum of rows in their order: a reduction by the library may choose another, and with it other last bits."""
    found = rows[0]
    for row in rows[1:]:
        found = found + row
    return found


def as_constants(site: Site, numbers: Numbers, measured: Any) -> Bound:
    """Return the numbers as tensors, float32 `(K,)` or `()`; the default of `Stage.bind`."""
    return {
        name: torch.tensor(value, dtype=torch.float32) for name, value in numbers.items() if not isinstance(value, str)
    }


def part(bound: Bound, span: slice) -> Bound:
    """Return what is bound with its fields cut to some of the tensor's elements."""
    return {name: [row[span] for row in value] if isinstance(value, list) else value for name, value in bound.items()}


def moved(bound: Bound, device: torch.device) -> Bound:
    """Return what is bound with its fields on `device`; constants may stay where they are, as numbers do."""
    if device.type == "cpu":
        return bound
    return {
        name: [row.to(device) for row in value] if isinstance(value, list) else value for name, value in bound.items()
    }


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: its parameters with their ranges, what it prepares and measures, and what it does to a point."""

    role: Literal["edit", "weigh", "post"]
    about: str
    apply: Callable[[Piece, Any, Bound, Mapping[str, str]], Any]
    """(piece, its rows or Δ, what was bound, the parameters that are words) → new rows, a field, or new Δ."""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    scope: Callable[[Numbers], Scope] = lambda numbers: "block"
    prepare: Callable[[Site, Blocks, Numbers], Prepared] | None = None
    """(tensor, its blocks, numbers) → what does not depend on the candidate."""
    prepared_for: Callable[[Site, Numbers], tuple[str | float, ...]] = lambda site, numbers: ()
    """What `prepare` reads beside the tensor: another value, and it is prepared again."""
    reads: tuple[int, ...] | None = None
    """Which inputs `prepare` reads, where not all: what is prepared serves whatever the others are."""
    prepared_as: str = ""
    """A name for what is prepared, where several stages prepare the same; else the stage's own."""
    gives_fields: bool = False
    """Whether what it measures is as large as the tensor."""
    measure: Callable[[Region, Numbers], Any] = lambda region, numbers: None
    bind: Callable[[Site, Numbers, Any], Bound] = as_constants
    inputs: int | None = None
    """How many inputs it takes, where that is not free."""
    fewest: int = 1
    """How many inputs it needs at least."""
    adds: bool = False
    """Whether it gives something where all task vectors are zero."""
    intricate: bool = False
    """Whether `apply` uses its own results so often that the compiler would not end if it wrote them out at each use."""
    joins: bool = False
    """Whether only one row is left after it, so that nothing can be told apart by input any more."""
