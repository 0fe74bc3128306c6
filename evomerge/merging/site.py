"""What stages read: a tensor's place, consecutive elements of it, and the region over which a stage measures."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import torch

from evomerge.errors import RecipeError
from evomerge.recipe import Place

Tensor = torch.Tensor
T = TypeVar("T")

Rows: TypeAlias = list[Tensor]
"""One float32 tensor for each input: `(n,)`, or `()` for a field of one number each."""

Values: TypeAlias = Mapping[str, Any]
"""A stage's parameters for one tensor: a tuple `(K,)` where per input, else one number or word."""

Bound: TypeAlias = dict[str, Any]
"""What `apply` reads: tensors are constants; a list of tensors is a field, float or integer rows as long as the tensor."""

Prepared: TypeAlias = dict[str, Tensor]
"""The tables prepared of one tensor, by name."""

Tables: TypeAlias = Mapping[str, Tensor]
"""What a statistic holds of one tensor of one model, by name; {} where it has nothing of that tensor."""

Scope = Literal["tensor", "kind", "model"]

Watch: TypeAlias = Callable[[str, int, int], None]
"""(phase, done, total): receives the progress of a phase, in units of its own; it begins with 0 of them."""


def unwatched(phase: str, done: int, total: int) -> None:
    """Ignore progress."""


SAMPLED, SAMPLE, SAMPLE_FROM = 1 << 11, 1 << 9, 1 << 24
"""Number and length of the pieces of a sample, and the number of elements from which a region has one."""

INDICES = 1 << 32
"""An element's index has 32 bits, and starts again after that many."""


class Evidence(Protocol):
    """The statistics of models by their labels: what a pool holds."""

    def digest(self, kind: str, expert: str) -> str:
        """Return what identifies a statistic. Raises `RecipeError` where there is none."""

    def tables(self, kind: str, expert: str, name: str) -> Tables:
        """Return the tables of one tensor, or of one matrix in it. Raises `RecipeError` where they are not collected."""


def _none(kind: str, *tensor: str) -> list[Any]:
    raise RecipeError(
        f"the merge needs the statistic `{kind}` of each expert, and there is no evidence; type `evomerge merge RECIPE --evidence "
        "STUDY.yaml`, a study file or any YAML with `tasks:`"
    )


@dataclass(frozen=True, slots=True)
class Statistics:
    """What data say of the inputs of a merge: see `evomerge.statistics`. By default nothing: each call raises `RecipeError`."""

    digests: Callable[[str], Sequence[str]] = _none
    """(kind) → what identifies the statistic of each input, `(K,)`: the model, the examples, the kind and its version."""
    tables: Callable[[str, str], Sequence[Tables]] = _none
    """(kind, tensor) → the tables of each input, `(K,)`."""

    @classmethod
    def of(cls, evidence: Evidence | None, labels: Sequence[str]) -> "Statistics":
        """Return the statistics of the experts with these labels."""
        if evidence is None:
            return cls()
        return cls(
            lambda kind: [evidence.digest(kind, label) for label in labels],
            lambda kind, name: [evidence.tables(kind, label, name) for label in labels],
        )


@dataclass(frozen=True, slots=True)
class Site:
    """The tensor to be merged."""

    tensor: str
    shape: tuple[int, ...]
    place: Place
    labels: tuple[str, ...]  # (K,)
    seed: int
    statistics: Statistics = field(default_factory=Statistics)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def index(self, element: int, what: str, instead: str) -> int:
        """Return an element's index as `Piece.index` counts it. Raises `RecipeError` where 32 bits do not tell elements apart."""
        if self.numel > INDICES:
            raise RecipeError(
                f"{what} inside of `{self.tensor}`, whose {self.numel:,} elements are more than the 2^32 that can be told "
                f"apart; {instead}"
            )
        return element - INDICES // 2


@lru_cache(maxsize=2)
def _counted(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.int32)


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive elements of a tensor, as `apply` reads them."""

    raw: Rows
    """The task vectors before any edit, `(n,)` each."""
    start: Tensor
    """Index of the first element in its tensor, minus 2^31, int32 `()`."""

    @property
    def index(self) -> Tensor:
        """Index of each element in its tensor, minus 2^31, int32 `(n,)`."""
        row = self.raw[0]
        if torch.compiler.is_compiling() or not row.is_cpu:
            return torch.arange(row.shape[0], dtype=torch.int32, device=row.device) + self.start
        return _counted(row.shape[0]) + self.start


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive elements of a tensor, as `prepare` and `measure` read them: with the edits so far applied."""

    site: Site
    span: slice
    piece: Piece
    rows: Rows
    """The rows after the edits so far; for a post stage, the one row Δ."""
    base: Tensor
    """The base's elements, `(n,)`, of any floating-point dtype."""
    origin: Tensor | float
    """What rows are counted from, float32 `(n,)` or 0."""


Chunks: TypeAlias = Callable[[], Iterator[Chunk]]
"""Starts a pass over a tensor."""


@dataclass(frozen=True, slots=True)
class Region:
    """The tensors over which a stage measures: one, those of its kind, or all."""

    site: Site
    """The tensor to be merged; one of the region's."""
    tensors: Sequence[str]
    """Names of the region's tensors, in the order of the model."""
    size: Callable[[str], int]
    """(tensor) → its number of elements."""
    lasting: bool
    """Whether prepared tables are cached: they depend on the pool alone, not on the candidate, and others will read them."""
    by_parts: bool
    """Whether parts of a tensor are read without the rest: not of the tensors of a nested merge."""
    prepare: Callable[[str], Prepared]
    """(tensor) → the tables the stage prepared of it."""
    read: Callable[[str, slice | None], Iterator[Chunk]]
    """(tensor, elements or None for all) → these elements, as the stage reads them."""
    cache: Callable[[str, Callable[[], Any]], Any]
    """(name, make) → the result of `make`, cached per input state, independent of this stage's parameters."""
    watch: Watch = unwatched
    """Receives the elements that a pass over several tensors has read."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return sum(map(self.size, self.tensors))

    def prepared(self) -> Sequence[Prepared]:
        """Return the tables the stage prepared, tensor by tensor."""
        return [self.prepare(tensor) for tensor in self._each()]

    def remember(self, make: Callable[[], T]) -> T:
        """Return the result of `make` from the `cache`."""
        result: T = self.cache(make.__qualname__, make)
        return result

    def chunks(self) -> Iterator[Chunk]:
        """Yield all elements of the region, as the stage reads them."""
        for tensor in self._each():
            yield from self.read(tensor, None)

    def _each(self) -> Iterator[str]:
        """Yield the region's tensors, and report the progress of a pass over several."""
        done, numel = 0, self.numel
        watch = self.watch if len(self.tensors) > 1 else unwatched
        watch("measuring", 0, numel)
        for tensor in self.tensors:
            yield tensor
            done += self.size(tensor)
            watch("measuring", done, numel)

    def sample(self) -> Iterator[Chunk]:
        """Yield short pieces at equal distances, as the stage reads them; none where that is no quicker than reading all."""
        numel = self.numel
        if numel < SAMPLE_FROM or not self.by_parts:
            return
        step = numel // SAMPLED
        at = step // 2
        for tensor in self.tensors:
            size = self.size(tensor)
            while at < size:
                yield from self.read(tensor, slice(at, min(at + SAMPLE, size)))
                at += step
            at -= size


def total(terms: Sequence[Any]) -> Any:
    """Return the sum of rows or numbers in their order: a library's reduction may use another, with other last bits."""
    result = terms[0]
    for number, term in enumerate(terms[1:]):
        if number and _is_plain(result, term):
            result.add_(term)  # new memory costs as much as the arithmetic
        else:
            result = result + term
    return result


def _is_plain(*terms: Any) -> bool:
    """Return whether terms are rows of one dtype without slopes, summed as written."""
    return not torch.compiler.is_compiling() and all(
        isinstance(term, torch.Tensor) and term.dim() == 1 and term.dtype == terms[0].dtype and not term.requires_grad
        for term in terms
    )


_EPS = 2.0**-23  # of float32


def cancels(terms: Sequence[Any]) -> Any:
    """Return whether rows or numbers sum to zero up to float32's rounding of them: |Σw| ≤ ε·K·Σ|w|.

    Weights like 0.3, 0.6 and -0.9 sum to 6e-8 in float32. Whatever divides by a sum of weights treats it as zero then.
    """
    return abs(total(terms)) <= _EPS * len(terms) * total([abs(term) for term in terms])


def part(bound: Bound, span: slice) -> Bound:
    """Return bound values with their fields cut to some of the tensor's elements."""
    return {name: [row[span] for row in value] if isinstance(value, list) else value for name, value in bound.items()}
