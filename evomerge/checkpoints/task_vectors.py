"""Task vectors, measured: their norms and the angles between them, by block and kind of tensor, in one pass over a pool."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.checkpoints.folder import Sparing
from evomerge.checkpoints.pool import Pool

_CHUNK = 1 << 18
"""Elements of each model at a time. Products are summed in fp32 within a chunk, in fp64 between chunks."""
_NEAR = 0.05
"""Distance of two task vectors, relative to the longer one, up to which they are taken for one."""
_STILL = 1e-6
"""Norm of a task vector, relative to the base's, below which it is taken for none."""

Group = tuple[int | None, str]
"""The number of a block, None outside of blocks, and a kind of tensor."""


@dataclass(frozen=True)
class TaskVectors:
    """Inner products of the task vectors of a pool's experts."""

    experts: tuple[str, ...]
    products: Mapping[Group, NDArray[np.float64]]
    """<τᵢ, τⱼ> over the tensors of a group, `(experts, experts)`."""
    bases: Mapping[Group, float]
    """The squared norm of the base's tensors of a group."""
    both: NDArray[np.int64]
    """Numbers of elements that two task vectors both change, `(experts, experts)`."""
    opposed: NDArray[np.int64]
    """Those of them that they change in opposite directions."""
    equal: NDArray[np.bool_]
    """Which two task vectors are equal, element by element, `(experts, experts)`: inner products are rounded."""

    @property
    def blocks(self) -> list[int | None]:
        """The blocks in order; at the end None, for what is outside of blocks."""
        blocks = {block for block, _ in self.products}
        return [*sorted(block for block in blocks if block is not None), *([None] if None in blocks else [])]

    @property
    def kinds(self) -> list[str]:
        """The kinds of tensor."""
        return list(dict.fromkeys(kind for _, kind in self.products))

    def norms(self, group: Group | None = None) -> NDArray[np.float64]:
        """Return the norm of each task vector relative to the base's, `(experts,)`, over a group or all; NaN where the base is 0."""
        groups = [*self.products] if group is None else [group]
        squares: NDArray[np.float64] = np.sum([np.diag(self.products[one]) for one in groups], axis=0)
        base = sum(self.bases[one] for one in groups)
        relative: NDArray[np.float64] = squares / base if base else np.full(len(self.experts), np.nan)
        return np.sqrt(relative)

    def cosines(self, block: int | None = None, *, everywhere: bool = True) -> NDArray[np.float64]:
        """Return the cosines between task vectors, `(experts, experts)`, of all tensors, or of one block where not `everywhere`.

        NaN where one of the two is zero.
        """
        gram = np.sum([p for (at, _), p in self.products.items() if everywhere or at == block], axis=0)
        norms = np.sqrt(np.diag(gram))
        with np.errstate(invalid="ignore", divide="ignore"):
            cosines: NDArray[np.float64] = np.clip(gram / np.outer(norms, norms), -1, 1)
        return cosines

    def conflicts(self) -> NDArray[np.float64]:
        """Return the share of the elements that two experts both change that they change in opposite directions, `(experts, experts)`.

        Half of them for task vectors that have nothing to do with each other; NaN where they have none in common.
        """
        with np.errstate(invalid="ignore"):
            shares: NDArray[np.float64] = self.opposed / self.both
        return shares

    def duplicates(self) -> list[str]:
        """Return in words which experts are the base, and which two are one, exactly or nearly."""
        gram = np.sum([*self.products.values()], axis=0)
        said = []
        for i, name in enumerate(self.experts):
            if gram[i, i] == 0:
                said.append(f"`{name}` has the weights of the base: it adds nothing to the pool")
            elif self.norms()[i] < _STILL:
                said.append(
                    f"`{name}` nearly has the weights of the base: its task vector is {self.norms()[i]:.1e} of the base's norm"
                )
            for j in range(i):
                apart, larger = gram[i, i] + gram[j, j] - 2 * gram[i, j], max(gram[i, i], gram[j, j])
                if larger > 0 and (self.equal[i, j] or apart <= _NEAR**2 * larger):
                    how = "has" if self.equal[i, j] else "nearly has"
                    said.append(f"`{name}` {how} the weights of `{self.experts[j]}`: they count twice in a merge")
        return said


def measure(pool: Pool, progress: Callable[[int, int], None] = lambda done, total: None) -> TaskVectors:
    """Return the inner products of a pool's task vectors, reading one tensor at a time. `progress` receives bytes done and in all."""
    count = len(pool.experts)
    products: dict[Group, NDArray[np.float64]] = {}
    bases: dict[Group, float] = {}
    both, opposed = (np.zeros((count, count), dtype=np.int64) for _ in range(2))
    equal = np.ones((count, count), dtype=bool)
    done, files = 0, Sparing(pool.models)
    total = sum(entry.nbytes for entry in pool.merged.values())
    for name, entry in pool.merged.items():
        place = pool.layout.place(name)
        group = (place.model + place.block if place.inside else None, place.kind)
        base, *experts = [tensor.reshape(-1) for tensor in files.tensors(pool.models, name)]
        gram, square = torch.zeros(count, count, dtype=torch.float64), 0.0
        for start in range(0, entry.numel, _CHUNK):
            origin, *parts = [flat[start : start + _CHUNK].float() for flat in (base, *experts)]
            rows = torch.stack(parts).sub_(origin)
            for i, j in np.argwhere(np.tril(equal, -1)):
                equal[i, j] = equal[j, i] = torch.equal(rows[i], rows[j])
            gram += (rows @ rows.T).double()
            signs = rows.sign_()
            agreed, common = signs @ signs.T, signs.square() @ signs.square().T  # counts up to 2^18: exact in fp32
            both += common.numpy().astype(np.int64)
            opposed += ((common - agreed) / 2).numpy().astype(np.int64)
            square += float(origin @ origin)
        products[group] = products.get(group, 0) + gram.numpy()
        bases[group] = bases.get(group, 0.0) + square
        done += entry.nbytes
        del base, experts  # views of files, which the next tensor closes
        progress(done, total)
    files.close()
    return TaskVectors(tuple(pool.experts), products, bases, both, opposed, equal)
