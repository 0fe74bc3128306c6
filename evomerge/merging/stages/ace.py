"""ACE-Merging: RegMean's solution with the inputs' covariances read from the task vectors (arXiv 2603.02945), as its authors' code has it.

Of task vectors τₖ (out, in), with rows Cₖ = τₖ - mean of its rows, the covariances are Σₖ = CₖᵀCₖ, and with ε that of white noise
Δ = ΣCₖ(Σₖ + εI) (Σ(Σₖ + εI) + 1sᵀ)⁻¹, s the mean row of ΣΣₖ. Where the inputs' sizes differ much, h = var(log|τ|²) / mean(log|τ|²)² above
`heterogeneity`, each Σₖ and its ε are divided by |Cₖ|² first, s by the mean of |τₖ|², and the first singular directions of
Δ + Στₖ(Σₖ - mean) are added with their mean singular value. Inputs without rows that differ are left out. It is computed in float64.
"""

import torch

from evomerge.errors import RecipeError
from evomerge.merging.parameters import Parameter
from evomerge.merging.site import Chunks, Prepared, Rows, Site, Tensor, Values
from evomerge.merging.stage import Measurement, Preparation, Stage
from evomerge.merging.stages.edits import complete
from evomerge.merging.stages.spectral import one_thread
from evomerge.merging.stages.whole import joined, measure

_TINY = 1e-12
"""What the authors' code adds to numbers that it takes the logarithm of or divides by."""

_NULL = 1e-6
"""Singular values below this share of the largest are rounding noise, and so are their vectors."""


def _differ(sizes: Tensor, threshold: float) -> bool:
    """Return whether squared norms `(K,)` differ much, by their logarithms."""
    logs = torch.log(sizes + _TINY)
    return len(sizes) > 1 and float(logs.var() / (logs.mean().square() + _TINY)) > threshold


def _merged(site: Site, vectors: list[Tensor], values: Values) -> Tensor:
    """Return Δ `(out, in)` of task vectors whose rows differ. Raises `RecipeError` where it has no solution."""
    sizes = torch.stack([vector.square().sum() for vector in vectors])
    apart = _differ(sizes, values["heterogeneity"])
    centred = [vector - vector.mean(dim=0, keepdim=True) for vector in vectors]
    scales = [1 / (part.square().sum() + _TINY) if apart else 1.0 for part in centred]
    covariances = [scale * (part.mT @ part) for scale, part in zip(scales, centred, strict=True)]
    identity = torch.eye(vectors[0].shape[1], dtype=vectors[0].dtype)
    raised = [one + values["epsilon"] * scale * identity for one, scale in zip(covariances, scales, strict=True)]
    total = torch.stack(raised).sum(dim=0)
    prior = torch.stack(covariances).sum(dim=0).mean(dim=0, keepdim=True)
    if apart:
        prior = prior / (sizes.mean() + _TINY)
    right = torch.stack([part @ one for part, one in zip(centred, raised, strict=True)]).sum(dim=0)
    delta: Tensor
    delta, failed = torch.linalg.solve_ex(total + prior, right, left=False)
    if int(failed):
        msg = f"ace: the covariances of `{site.tensor}` have no inverse; expected an `epsilon` larger than {values['epsilon']:g}"
        raise RecipeError(msg)
    if not apart:
        return delta
    mean = total / len(vectors)
    rest = [vector @ (one - mean) for vector, one in zip(vectors, covariances, strict=True)]
    u, sigma, vh = torch.linalg.svd(torch.stack(rest).sum(dim=0) + delta, full_matrices=False)
    rank = max(min(int(values["rank"] * len(sigma)), int((sigma > _NULL * sigma[0]).sum())), 1)
    delta += sigma[:rank].mean() * (u[:, :rank] @ vh[:rank])
    return delta


def _says(vector: Tensor) -> bool:
    """Return whether the rows of a task vector differ: of equal ones, or of the base, no covariance can be read."""
    centred = vector - vector.mean(dim=0, keepdim=True)
    return bool(centred.norm() > _TINY * vector.norm())


def _mean(rows: Rows) -> Tensor:
    mean: Tensor = (torch.stack(rows).double().sum(dim=0) / len(rows)).float()
    return mean


def _prepare(site: Site, chunks: Chunks, values: Values) -> Prepared:
    rows = [complete(chunks, i) for i in range(len(site.labels))]
    if len(site.shape) != 2 or not site.numel:
        return {"row": _mean(rows)}
    vectors = [vector for row in rows if _says(vector := row.double().view(site.shape))]
    if not vectors:
        return {"row": _mean(rows)}
    with one_thread():
        delta = _merged(site, vectors, values)
    return {"row": delta.float().reshape(-1).contiguous()}


ACE = {
    "ace": Stage(
        "edit",
        "the matrix whose outputs are nearest to those of all inputs, with covariances read from their task vectors; the mean for tensors "
        "other than matrices, and where no input has rows that differ (ACE-Merging, arXiv 2603.02945, as released)",
        joined,
        {
            "epsilon": Parameter(
                "white noise in each covariance, in the square of the weights' units",
                1e-2,
                1e-12,
                1e6,
                (1e-4, 1.0),
                log=True,
                per_input=False,
            ),
            "heterogeneity": Parameter(
                "variance of the logarithms of the inputs' squared norms, by their squared mean, above which each covariance is divided by "
                "its trace and singular directions are added",
                0.3,
                0.0,
                1e6,
                (0.0, 1.0),
                per_input=False,
            ),
            "rank": Parameter.share(
                "share of the singular directions that are added there, at least one", 0.3, (0.1, 1.0)
            ),
        },
        prepare=Preparation(_prepare, lambda site, values: tuple(values.values())),
        measure=Measurement(measure, lambda values: "tensor", fields=True),
        bind=lambda site, values, fields: fields,
        joins=True,
    )
}
"""ACE-Merging's stage, by name."""
