"""Composition: the computation of a merge at each point of a tensor, whatever its parameters; as written, or compiled.

The stages are pure functions of a point, so a whole method is one loop over memory: `torch.compile` fuses it, and it then
costs little more than a copy. Run as written, operation by operation over chunks that stay in the processor's cache, it
gives the same bytes: every sum is spelled out in one order, the compiler may not reorder or contract, and stages call only
operations whose results IEEE 754 defines.
"""

import itertools
import logging
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from evomerge.merging.arithmetic import divided, plain
from evomerge.merging.site import Bound, Piece, Rows, Tensor, cancels, total
from evomerge.merging.stages import STAGES

_log = logging.getLogger("evomerge")

_INLINED = ("realize_opcount_threshold", "realize_cpu_opcount_threshold", "realize_reads_threshold")
"""The compiler's limits on operations and reads of one loop, above which it splits the loop: a loss here, so there are none.

A stage that `reuses` intermediate results would grow without end if they were inlined: there the limits stay.
"""


@dataclass(frozen=True, slots=True)
class Composition:
    """Stages in order, with the parameters that are words. Merges that differ only in numeric parameters share it."""

    origin: str
    steps: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    reduce: str

    def rows(self, base: Tensor, tensors: Rows) -> tuple[Tensor | float, Rows]:
        """Return the origin, and the task vectors `(n,)` in fp32, of parts `(n,)` of the base and of the inputs."""
        wide = [tensor.float() for tensor in tensors]
        if self.origin == "zero":
            return 0.0, wide
        origin = base.float() if self.origin == "base" else divided(total(wide), len(wide))
        if torch.compiler.is_compiling():
            return origin, [row - origin for row in wide]
        # As written, what was made here is overwritten: new memory costs as much as the arithmetic.
        return origin, [
            row - origin if row is tensor else row.sub_(origin) for row, tensor in zip(wide, tensors, strict=True)
        ]

    def upto(self, stop: int, piece: Piece, bound: list[Bound]) -> Rows:
        """Return what stage number `stop` reads: the rows after the edits before it, or the one row Δ of a post stage."""
        rows, field, delta = self.through(stop, piece, bound)
        if stop == len(self.steps) or STAGES[self.steps[stop][0]].role == "post":
            return [_reduced(rows, field, self.reduce) if delta is None else delta]
        return rows

    def through(self, stop: int, piece: Piece, bound: list[Bound]) -> tuple[Rows, Rows | None, Tensor | None]:
        """Return rows, field and Δ after the first `stop` stages, as far as there are such."""
        rows = piece.raw
        field: Rows | None = None
        delta: Tensor | None = None
        for (name, words), constants in zip(self.steps[:stop], bound, strict=False):
            stage = STAGES[name]
            if stage.role == "edit":
                rows = stage.apply(piece, rows, constants, dict(words))
            elif stage.role == "weigh":
                weights = stage.apply(piece, rows, constants, dict(words))
                field = weights if field is None else [f * w for f, w in zip(field, weights, strict=True)]
            else:
                delta = _reduced(rows, field, self.reduce) if delta is None else delta
                delta = stage.apply(piece, delta, constants, dict(words))
        return rows, field, delta

    @property
    def edits(self) -> int:
        """Number of edits at the beginning."""
        roles = [STAGES[name].role for name, _ in self.steps]
        return next((i for i, role in enumerate(roles) if role != "edit"), len(roles))

    @property
    def linear(self) -> bool:
        """Whether Δ is Σ wₖ rowₖ of the rows after these edits, with one weight for each row."""
        stages = [STAGES[name] for name, _ in self.steps]
        edits = stages[: self.edits]
        return self.reduce != "max" and not any(s.slopes for s in edits) and all(s.linear for s in stages[self.edits :])

    def after_edits(self, rows: Rows, bound: list[Bound]) -> Tensor:
        """Return Δ of rows that these edits gave."""
        rest = Composition(self.origin, self.steps[self.edits :], self.reduce)
        (delta,) = rest.upto(len(rest.steps), Piece(rows, torch.zeros((), dtype=torch.int32)), bound[self.edits :])
        return delta

    def run(
        self, base: Tensor, tensors: Rows, out: Tensor, start: Tensor, bound: list[Bound], left: Tensor | None = None
    ) -> None:
        """Merge parts `(n,)` of the base and of the inputs, from element `start` on, into `out` `(n,)` of any float dtype.

        To `left`, int64 `(K,)`, the numbers of elements are added that are not zero after the edits.
        """
        origin, raw = self.rows(base, tensors)
        rows, field, delta = self.through(len(self.steps), Piece(raw, start), bound)
        if left is not None:
            left.add_(_left(rows))
        if delta is None:
            spent = rows is raw and not any(row is tensor for row, tensor in zip(raw, tensors, strict=True))
            delta = _reduced(rows, field, self.reduce, spent=spent)
        # origin - (0 - Δ), not origin + Δ: where Δ is zero of either sign, the origin's zero keeps its sign.
        if self.origin == "zero":
            out.copy_(delta)
        elif torch.compiler.is_compiling():
            out.copy_(origin - (0.0 - delta))
        else:
            change = 0.0 - delta
            out.copy_(torch.sub(origin, change, out=change))


def _left(rows: Rows) -> Tensor:
    """Return how many elements of each row are not zero, int64 `(K,)`."""
    if torch.compiler.is_compiling() or not rows[0].is_cpu:
        return torch.stack([(row != 0).sum() for row in rows])
    return torch.tensor([np.count_nonzero(row.numpy() != 0) for row in rows])  # torch takes ten times as long


def _reduced(rows: Rows, field: Rows | None, how: str, *, spent: bool = False) -> Tensor:
    """Return Σ P∘D, its quotient by Σ P (0 where the weights cancel), or the largest |P∘D|, `(n,)`.

    Rows that are `spent` may be overwritten: they were made here, and are not read again.
    """
    if field is None:
        weighted = rows
    elif spent and not field[0].dim() and plain(*rows, *field):
        weighted = [row.mul_(weight) for row, weight in zip(rows, field, strict=True)]
    else:
        weighted = [row * weight for row, weight in zip(rows, field, strict=True)]
    if how == "max":
        largest = weighted[0]
        for row in weighted[1:]:
            largest = torch.where(row.abs() > largest.abs(), row, largest)
        return largest
    summed: Tensor = total(weighted) if field is None or torch.compiler.is_compiling() else _summed(weighted)
    if how == "sum":
        return summed
    if field is None:
        return divided(summed, len(rows))
    if not field[0].dim() or not plain(summed, *field) or min(weight.numpy().min(initial=0) for weight in field) < 0:
        return summed / torch.where(cancels(field), torch.inf, total(field))
    # Weights of one sign cancel where all are 0, and then so is the sum: any divisor will do. Torch is slow at comparisons.
    weights = total(field)
    return summed.div_(weights + torch.from_numpy(np.equal(weights.numpy(), 0).view(np.int8).astype(np.float32)))


def _summed(rows: Rows) -> Tensor:
    """Return `total(rows)`, which overwrites the first row."""
    result = rows[0]
    for row in rows[1:]:
        if result.requires_grad or row.requires_grad:
            result = result + row
        else:
            result.add_(row)
    return result


class Uncompilable(Exception):  # noqa: N818  # a property of the machine, not a user's error
    """The composition cannot be compiled here, and must run as written."""


@cache
def compiled(composition: Composition, *dtypes: torch.dtype) -> Callable[..., None]:
    """Return `composition.run` as one compiled loop over memory, for a base, inputs and an output of the given dtypes.

    Nothing is compiled before its first run, which raises `Uncompilable` where there is no working compiler.
    """
    plain = Composition.run
    # A separate code object: torch counts recompilations by code object, and gives up on one that has too many.
    code = plain.__code__.replace(co_name=f"merge_{next(_serial)}")
    method = types.MethodType(types.FunctionType(code, plain.__globals__), composition)
    options: dict[str, Any] = {
        "cpp.dynamic_threads": True,  # as many as torch is set to use now, not as when it was compiled
        "compile_threads": 1,
        **({} if any(STAGES[name].reuses for name, _ in composition.steps) else dict.fromkeys(_INLINED, 10**6)),
    }
    fused = torch.compile(method, dynamic=True, fullgraph=True, options=options)

    def run(
        base: Tensor, tensors: Rows, out: Tensor, start: Tensor, bound: list[Bound], left: Tensor | None = None
    ) -> None:
        if (composition, *dtypes) in _broken:
            raise Uncompilable
        before = time.perf_counter()
        try:
            fused(base, tensors, out, start, bound, left)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            if not _broken:
                _log.warning(
                    "merges run several times slower than they could: torch.compile does not work here (%s); "
                    "it needs a C++ compiler, such as the package g++",
                    str(error).strip().splitlines()[0],
                )
            _broken.add((composition, *dtypes))
            raise Uncompilable from error
        finally:
            _first_runs.setdefault((composition, *dtypes), time.perf_counter() - before)

    return run


def seconds_compiling() -> float:
    """Return the seconds for which this process has compiled merges so far: those of the first run of each compiled form."""
    return sum(_first_runs.values())


_serial = itertools.count()
_first_runs: dict[tuple[Any, ...], float] = {}
_broken: set[tuple[Any, ...]] = set()
"""The compositions, with their dtypes, that could not be compiled."""
