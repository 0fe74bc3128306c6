"""Masks: one mask of all task vectors, learnt on examples of all experts without their labels (Concrete subspace learning, arXiv 2312.06173).

Of logits x, one for each element and 0 at the start, a mask is drawn at each step, m = sigmoid((x + log u - log(1 - u)) / T) with u
uniform in (0, 1). In each tensor m / mean(m) multiplies the sum of task vectors: θ = θ₀ + λ Σ m τₖ / mean(m), with λ fixed (Concrete task
arithmetic). Adam lowers the sum over experts of the mean entropy of predictions on a batch of each one's examples.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.checkpoints.folder import Checkpoint, Computed
from evomerge.checkpoints.pool import Pool
from evomerge.merging import Watch, unwatched
from evomerge.merging.adam import Adam
from evomerge.statistics import Statistic, Subject, store

LAMBDA, TEMPERATURE, RATE, STEPS, BATCH = 0.3, 0.5, 1e-3, 2000, 16
"""λ, T, the learning rate, steps, and examples of each expert in a step: the paper's."""


def settings(pool: Pool) -> dict[str, Any]:
    """Return what the masks of a pool depend on beside its models and the examples."""
    return {"mask": [LAMBDA, TEMPERATURE, RATE, STEPS, BATCH]}


def draw(seed: str, step: int, name: str, shape: torch.Size) -> Tensor:
    """Return log u - log(1 - u) of a matrix's uniform numbers in a step, float32; they depend on nothing else."""
    key = hashlib.sha256(f"{seed}\n{step}\n{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
    return torch.rand(shape, generator=generator).logit(eps=1e-7)


def batch(step: int, expert: int, count: int) -> list[int]:
    """Return the positions of the examples of one of the experts, by its number, that a step reads, out of `count`."""
    chosen = np.random.default_rng([step, expert]).choice(count, min(BATCH, count), replace=False)
    return sorted(chosen.tolist())


@dataclass
class _Logits:
    """The logits x of one matrix, which follow Adam."""

    delta: Tensor
    """λ Στₖ."""
    x: Tensor = field(init=False)
    mask: Tensor = field(init=False)
    """The mask that was drawn last."""

    def __post_init__(self) -> None:
        self.x = torch.zeros_like(self.delta)
        self._adam = Adam(self.x)

    def draw(self, noise: Tensor) -> Tensor:
        """Draw a mask, and return the masked change."""
        self.mask = ((self.x + noise) / TEMPERATURE).sigmoid()
        return self.delta * (self.mask / self.mask.mean())

    def move(self, gradient: Tensor) -> None:
        """Take a step of Adam by the gradient with respect to the masked change's tensor.

        With h = gradient · λΣτ and r = m / mean(m): ∂L/∂m = (h - mean(h r)) / mean(m), and ∂m/∂x = m(1 - m) / T.
        """
        mean = self.mask.mean()
        inner = gradient * self.delta
        slope = (inner - (inner * self.mask).mean() / mean) / mean * self.mask * (1 - self.mask) / TEMPERATURE
        first, size, correction = self._adam.step(slope)
        self.x.addcdiv_(first, size, value=-RATE / correction)


def collect(
    statistic: Statistic,
    pool: Pool,
    subject: Callable[[str, Checkpoint], Subject],
    folders: Mapping[str, tuple[Path, Mapping[str, Any]]],
    watch: Watch,
) -> None:
    """Learn a mask of all experts together, and store it in the folder of each; see `partial_merges.collect`.

    `statistic` collects the mean gradient of the entropy of predictions. Two float32 numbers of each element are in memory for the task
    vectors, and four for the logits.
    """
    names = list(folders)
    with store.emptied([folder for folder, _ in folders.values()]) as to_do:
        if not to_do:
            return
        changes = {name: _change(pool, names, name) for name in pool.merged}
        model = _changed(pool, changes)
        whole = subject(names[0], model)
        seed, matrices = whole.seed, whole.matrices
        logits = {
            name: _Logits(one.of(changes[one.tensor]).clone())
            for name, one in matrices.items()
            if whole.live.has_gradient(one.tensor)
        }
        total = STEPS * BATCH * len(names)
        for step in range(1, STEPS + 1):
            watch("examples", total * (step - 1) // STEPS, total)
            for name, one in logits.items():
                matrices[name].of(changes[matrices[name].tensor]).copy_(one.draw(draw(seed, step, name, one.x.shape)))
            gradients: dict[str, Tensor] = {}
            for number, expert in enumerate(names):
                of = subject(expert, model)  # with the head of its task
                examples = [of.examples[i] for i in batch(step, number, len(of.examples))]
                for name, tables in statistic.collect(replace(of, examples=examples), unwatched).items():
                    gradients[name] = gradients[name] + tables["slope"] if name in gradients else tables["slope"]
            for name, gradient in gradients.items():
                logits[name].move(gradient)
        count = torch.tensor(len(names))
        tables_of = {name: {"logits": one.x, "experts": count} for name, one in logits.items()}
        for folder, about in folders.values():
            store.add(folder, list(matrices), tables_of)
            store.finish(folder, about, list(matrices))


def _change(pool: Pool, names: Sequence[str], tensor: str) -> Tensor:
    """Return λ Στₖ of a tensor, float32."""
    base = pool.base.tensor(tensor).float()
    change = torch.zeros_like(base)
    for name in names:
        change += pool.experts[name].tensor(tensor).float() - base
    return change.mul_(LAMBDA)


def _changed(pool: Pool, changes: Mapping[str, Tensor]) -> Checkpoint:
    """Return the base with the tensors of `changes`, as they are when it is read, added to it."""

    def read(name: str) -> Tensor:
        name = pool.aliases.get(name, name)
        tensor = pool.base.tensor(name)
        return (tensor.float() + changes[name]).to(tensor.dtype) if name in changes else tensor

    return Computed(pool.base.info, read, (pool.base,))
