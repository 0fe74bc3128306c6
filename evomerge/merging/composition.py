"""Composition: what a merge does to each point of a tensor, whatever its numbers; run as written, or compiled.

The stages are pure functions of a point, so a whole method is one loop over memory: `torch.compile` fuses it, and it then
costs little more than a copy. Run as written, operation by operation over blocks that stay in the processor's cache, it
gives the same bytes: every sum is spelled out in one order, and the compiler may not reorder or contract.
"""

import itertools
import logging
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from evomerge.merging.stage import Bound, Piece, Rows, Tensor, total
from evomerge.merging.stages import STAGES

_log = logging.getLogger("evomerge")

_INLINED = ("realize_opcount_threshold", "realize_cpu_opcount_threshold", "realize_reads_threshold")
"""From how many operations or uses on the compiler would split a loop, which here costs more than it saves: never.

But for intricate stages, whose expressions written out at each use would grow without end: there the compiler decides.
"""


@dataclass(frozen=True, slots=True)
class Composition:
    """Stages in order, with the parameters that are words. Two merges that differ only in numbers share it."""

    origin: str
    steps: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    reduce: str

    def rows(self, base: Tensor, tensors: Rows) -> tuple[Tensor | float, Rows]:
        """Return the origin, and the task vectors `(n,)` in fp32, of parts `(n,)` of the base and of the inputs."""
        wide = [tensor.float() for tensor in tensors]
        if self.origin == "zero":
            return 0.0, wide
        origin = base.float() if self.origin == "base" else total(wide) / len(wide)
        return origin, [row - origin for row in wide]

    def upto(self, stop: int, piece: Piece, bound: list[Bound]) -> Rows:
        """Return what the stage number `stop` finds: the rows after the edits before it, or the one row Δ of a post stage."""
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
        if stop == len(self.steps) or STAGES[self.steps[stop][0]].role == "post":
            return [_reduced(rows, field, self.reduce) if delta is None else delta]
        return rows

    def run(self, base: Tensor, tensors: Rows, outs: Rows, start: Tensor, bounds: list[list[Bound]]) -> None:
        """Merge parts `(n,)` of the base and of the inputs, from element `start` on, by each of `bounds`.

        The result of each goes to its `outs` `(n,)`, of any float dtype: base and inputs are read once for all of them.
        """
        origin, raw = self.rows(base, tensors)
        for out, bound in zip(outs, bounds, strict=True):
            (delta,) = self.upto(len(self.steps), Piece(raw, start), bound)
            # origin - (0 - Δ), not origin + Δ: where Δ is zero of either sign, the origin's own zero keeps its sign.
            out.copy_(delta if self.origin == "zero" else origin - (0.0 - delta))


def _reduced(rows: Rows, field: Rows | None, how: str) -> Tensor:
    """Σ P∘D, its quotient by Σ P, or the largest |P∘D|."""
    if field is None:
        weighted, weights = rows, None
    else:
        weighted, weights = [row * weight for row, weight in zip(rows, field, strict=True)], total(field)
    if how == "max":
        largest = weighted[0]
        for row in weighted[1:]:
            largest = torch.where(row.abs() > largest.abs(), row, largest)
        return largest
    found = total(weighted)
    if how == "sum":
        return found
    if weights is None:
        return found / len(rows)
    return found / torch.where(weights == 0, torch.inf, weights)


class Uncompilable(Exception):  # noqa: N818  # a fact about the machine, not somebody's error
    """The composition cannot be compiled here, and must run as written."""


@cache
def compiled(composition: Composition, *types_of_tensors: tuple[torch.dtype, ...]) -> Callable[..., None]:
    """Return `composition.run` as one compiled loop over memory, for inputs and outputs of the given dtypes.

    Nothing is compiled before its first run, which raises `Uncompilable` where there is no working compiler.
    """
    plain = Composition.run
    # A code object of its own: torch counts recompilations by code object, and gives up on one that has too many.
    code = plain.__code__.replace(co_name=f"merge_{next(_numbers)}")
    own = types.MethodType(types.FunctionType(code, plain.__globals__), composition)
    options: dict[str, Any] = {
        "cpp.dynamic_threads": True,  # as many as torch is told to use, not as when it was compiled
        "compile_threads": 1,
        **({} if any(STAGES[name].intricate for name, _ in composition.steps) else dict.fromkeys(_INLINED, 10**6)),
    }
    fused = torch.compile(own, dynamic=True, fullgraph=True, options=options)

    def run(base: Tensor, tensors: Rows, outs: Rows, start: Tensor, bounds: list[list[Bound]]) -> None:
        if (composition, *types_of_tensors) in _broken:
            raise Uncompilable
        try:
            fused(base, tensors, outs, start, bounds)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            if not _broken:
                _log.warning(
                    "merges run several times slower than they could: torch.compile does not work here (%s); "
                    "it needs a C++ compiler, such as the package g++",
                    str(error).strip().splitlines()[0],
                )
            _broken.add((composition, *types_of_tensors))
            raise Uncompilable from error

    return run


_numbers = itertools.count()
_broken: set[tuple[Any, ...]] = set()
"""What could not be compiled."""
