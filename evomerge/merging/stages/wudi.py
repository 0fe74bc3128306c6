"""WUDI-Merging: the matrix that interferes least with each input, whose task vector stands for its data (arXiv 2503.08099).

Of task vectors τₖ (out, in) it minimises Σ |(Δ - τₖ)τₖᵀ|² / |τₖ|² (eq. 12), Frobenius norms all: RegMean's objective, with the Gram
matrices τₖᵀτₖ / |τₖ|²: the rows of τₖ are sums of its inputs, as those of all gradients are. It is computed in float64.
"""

import torch

from evomerge.merging.adam import Adam
from evomerge.merging.parameters import Parameter
from evomerge.merging.site import Chunks, Prepared, Site, Tensor, Values
from evomerge.merging.stage import Measurement, Preparation, Stage
from evomerge.merging.stages.edits import complete
from evomerge.merging.stages.spectral import one_thread
from evomerge.merging.stages.whole import joined, measure

_NULL = 1e-12
"""Eigenvalues below this share of the largest are rounding noise: those of singular values below 1e-6."""


def _sums(vectors: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return ΣτₖGₖ `(out, in)` and ΣGₖ `(in, in)`, of Gₖ = τₖᵀτₖ / |τₖ|²; an input without a task vector says nothing."""
    out, width = vectors[0].shape
    right, left = vectors[0].new_zeros(out, width), vectors[0].new_zeros(width, width)
    for vector in vectors:
        size = float(vector.norm())
        unit = vector / size if size else vector
        gram = unit.mT @ unit
        right += vector @ gram
        left += gram
    return right, left


def _descended(vectors: list[Tensor], steps: int, rate: float) -> Tensor:
    """Return Δ after steps of Adam from Στₖ. The gradient is 2(ΔΣGₖ - ΣτₖGₖ)."""
    right, left = _sums(vectors)
    delta = torch.stack(vectors).sum(dim=0)
    adam = Adam(delta)
    for _ in range(steps):
        mean, size, correction = adam.step(2 * (delta @ left - right))
        delta.addcdiv_(mean, size, value=-rate / correction)
    return delta


def _least(vectors: list[Tensor]) -> Tensor:
    """Return the Δ of least norm among those of least interference."""
    right, left = _sums(vectors)
    values, basis = torch.linalg.eigh(left)
    inverse = torch.where(values > _NULL * values[-1:], 1 / values.clamp(min=1e-300), 0.0)
    least: Tensor = right @ (basis * inverse) @ basis.mT
    return least


def _prepare(site: Site, chunks: Chunks, values: Values) -> Prepared:
    rows = [complete(chunks, i) for i in range(len(site.labels))]
    if len(site.shape) != 2 or not site.numel:
        return {"row": (torch.stack(rows).double().sum(dim=0) / len(rows)).float()}
    vectors = [row.double().view(site.shape) for row in rows]
    with one_thread():
        exact = values["solver"] == "exact"
        delta = _least(vectors) if exact else _descended(vectors, int(values["steps"]), values["rate"])
    return {"row": delta.float().reshape(-1).contiguous()}


def _key(site: Site, values: Values) -> tuple[str | float, ...]:
    return ("exact",) if values["solver"] == "exact" else ("adam", values["steps"], values["rate"])


WUDI = {
    "wudi": Stage(
        "edit",
        "the matrix that changes least what each input computes of inputs like the rows of its task vector; the mean for tensors other than "
        "matrices (WUDI-Merging, arXiv 2503.08099)",
        joined,
        {
            "solver": Parameter.word(
                "`adam`: `steps` of Adam at `rate` from the sum of the task vectors (paper); `exact`: the minimum, of those the one of least "
                "norm, by one decomposition",
                ("adam", "exact"),
            ),
            "steps": Parameter("steps of Adam", 300, 0, 1_000_000, (50, 1000), integer=True, per_input=False),
            "rate": Parameter(
                "learning rate, in the weights' units: a step moves an element by at most about this",
                1e-5,
                0.0,
                1e6,
                (1e-6, 1e-3),
                log=True,
                per_input=False,
            ),
        },
        prepare=Preparation(_prepare, _key),
        measure=Measurement(measure, lambda values: "tensor", fields=True),
        bind=lambda site, values, fields: fields,
        joins=True,
    )
}
"""WUDI's stage, by name."""
