"""Edits of whole matrices by their singular vectors. What is no matrix is averaged, or summed in order.

Most do not depend on the candidate, so their result is prepared once, and a candidate reads it like a task vector. Of a
mutation the decomposition is, and a candidate multiplies its factors.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from evomerge.merging.parameters import Parameter
from evomerge.merging.randomness import bits, own_key, uniform
from evomerge.merging.stage import Blocks, Bound, Numbers, Piece, Prepared, Region, Rows, Site, Stage, Tensor
from evomerge.merging.stages.edits import whole

Words = Mapping[str, str]

_NULL = 1e-6
"""Singular values below this share of the largest are noise, and so are their vectors."""


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Decompositions differ in their last bits with the number of threads; a recipe's bytes must not."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, Σ, V of a matrix, without the directions that are only noise."""
    u, sigma, vh = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((sigma > _NULL * sigma[0]).sum()) if sigma.numel() else 0
    return u[:, :rank], sigma[:rank], vh[:rank].mH


def _polar(matrix: Tensor) -> Tensor:
    """Return the nearest matrix with orthonormal columns, in the span of what is not noise."""
    u, _, v = _svd(matrix)
    return u @ v.mH


def _decorrelate(matrices: list[Tensor], numbers: Numbers) -> list[Tensor]:
    rank = max(min(matrices[0].shape) // len(matrices), 1)
    factors = [tuple(part[..., :rank] for part in _svd(matrix)) for matrix in matrices]
    left, right = (_polar(torch.cat([parts[side] for parts in factors], dim=1)) for side in (0, 2))
    found, start = [], 0
    for _, sigma, _ in factors:
        own = slice(start, start + len(sigma))
        found.append(left[:, own] * sigma @ right[:, own].mH)
        start = own.stop
    return found


def _isotropise(matrices: list[Tensor], numbers: Numbers) -> list[Tensor]:
    inputs, rank = len(matrices), min(matrices[0].shape)
    u, sigma, v = _svd(torch.stack(matrices).sum(dim=0))
    each = (rank - round(numbers["common"] * rank)) // inputs
    common = rank - each * inputs
    lefts, sigmas, rights = [u[:, :common]], [sigma[:common]], [v[:, :common]]
    if each:
        for matrix in matrices:
            own_u, own_sigma, own_v = _svd(matrix - lefts[0] @ (lefts[0].mH @ matrix))
            lefts.append(own_u[:, :each])
            sigmas.append(own_sigma[:each])
            rights.append(own_v[:, :each])
    values = torch.cat(sigmas)
    mean = values.mean() if len(values) else values.sum()
    return [mean * _polar(torch.cat(lefts, dim=1)) @ _polar(torch.cat(rights, dim=1)).mH]


def _project(matrices: list[Tensor], numbers: Numbers) -> list[Tensor]:
    """Take from each task vector what lies along the singular directions of the sum of those before it."""
    found = [matrices[0]]
    merged = matrices[0]
    for matrix in matrices[1:]:
        u, sigma, v = _svd(merged)
        along = u.mH @ matrix @ v
        share = sigma.cumsum(0)
        share = share / share[-1:]  # exactly 1 at the end, which no alpha is below: then all of it is taken away
        above = (share > numbers["alpha"]).nonzero()
        head = int(above[0]) if len(above) else len(sigma)
        taken = torch.diag(along.diagonal())
        taken[:head, :head] = along[:head, :head]
        found.append(matrix - u @ taken @ v.mH)
        merged = merged + found[-1]
    return found


def _prepare(
    rule: Callable[[list[Tensor], Numbers], list[Tensor]], otherwise: Callable[[Rows], Rows]
) -> Callable[[Site, Blocks, Numbers], Prepared]:
    def prepare(site: Site, blocks: Blocks, numbers: Numbers) -> Prepared:
        rows = [whole(blocks, i) for i in range(len(site.labels))]
        if len(site.shape) == 2 and rows[0].numel():
            with _one_thread():
                made = rule([row.double().view(site.shape) for row in rows], numbers)
            rows = [matrix.float().reshape(-1) for matrix in made]
        else:
            rows = otherwise(rows)
        return {f"row.{i}": row.contiguous() for i, row in enumerate(rows)}

    return prepare


def _mean_parts(rows: Rows) -> Rows:
    return [row / len(rows) for row in rows]


def _mean(rows: Rows) -> Rows:
    return [(torch.stack(rows).double().sum(dim=0) / len(rows)).float()]


def _measure(region: Region, numbers: Numbers) -> Bound:
    (prepared,) = region.prepared()
    return {"rows": [prepared[f"row.{i}"] for i in range(len(prepared))]}


def _replaced(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    made: Rows = bound["rows"]
    return made


# -- mutation along singular directions --------------------------------------------------------------------------------


def _factors(site: Site, blocks: Blocks, numbers: Numbers) -> Prepared:
    """Prepare U∘Σ `(rows, r)` and Vᵀ `(r, columns)` of the second input's task vector; nothing of what is not mutated."""
    if len(site.shape) != 2 or not site.numel or site.place.kind == "norm":
        return {}
    matrix = torch.cat([block.task_vector(1) for block in blocks()]).double().view(site.shape)
    with _one_thread():
        u, sigma, v = _svd(matrix)
    return {"left": (u * sigma).float().contiguous(), "right": v.mH.float().contiguous()}


def _mutation(region: Region, numbers: Numbers) -> Bound:
    (prepared,) = region.prepared()
    if not prepared:
        return {}
    left, right = prepared["left"], prepared["right"]
    key = own_key(region.site.seed, "svd_mutate", region.site.tensor)
    directions = torch.arange(len(right)).sub(2**31).to(torch.int32)
    shares = numbers["rate"] * uniform(bits(directions, key))
    with _one_thread():
        # A view of a file begins anywhere, and a product's last bits may depend on where: hence the copy.
        made = (left * shares.float()) @ right.clone()
    return {"rows": [made.view(-1)]}


def _mutated(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    return [rows[0] + bound["rows"][0]] if "rows" in bound else rows[:1]


# -- the table ---------------------------------------------------------------------------------------------------------


def _spectral(about: str, prepare: Any, parameters: dict[str, Parameter], *, joins: bool = False) -> Stage:
    return Stage(
        "edit",
        about,
        _replaced,
        parameters,
        scope=lambda numbers: "tensor",
        prepare=prepare,
        prepared_for=lambda site, numbers: tuple(numbers.values()),
        gives_fields=True,
        measure=_measure,
        bind=lambda site, numbers, fields: fields,
        joins=joins,
    )


SPECTRAL = {
    "decorrelate": _spectral(
        "keep the first 1/K of each input's singular vectors, and make all inputs' orthogonal to each other; the mean for "
        "tensors that are no matrices (TSV-Merge, arXiv 2412.00081)",
        _prepare(_decorrelate, _mean_parts),
        {},
    ),
    "isotropise": _spectral(
        "the summed task vector with all its singular values made equal to their mean; with `common` below 1, the rest of "
        "its singular vectors are the inputs' own; the mean for tensors that are no matrices (ISO-C, ISO-CTS, arXiv 2502.04959)",
        _prepare(_isotropise, _mean),
        {
            "common": Parameter(
                "share of singular vectors that are the sum's", 1.0, 0.0, 1.0, (0.5, 1.0), per_input=False
            )
        },
        joins=True,
    ),
    "svd_mutate": Stage(
        "edit",
        "add U diag(u∘Σ) Vᵀ of the second input's task vector UΣVᵀ to the first, u uniform in [0, rate] for each singular "
        "direction; the first's own for norms and what is no matrix (CycleQD, arXiv 2410.14735, as released: the paper "
        "writes it on the first's own task vector)",
        _mutated,
        {"rate": Parameter("the largest share of a singular value", 0.1, 0.0, 1.0, (0.0, 0.3), per_input=False)},
        scope=lambda numbers: "tensor" if numbers["rate"] else "block",
        prepare=_factors,
        reads=(1,),
        gives_fields=True,
        measure=_mutation,
        bind=lambda site, numbers, fields: fields or {},
        inputs=2,
        joins=True,
    ),
    "project": _spectral(
        "input by input, in their order, take away what lies along the singular directions of the merge so far "
        "(OPCM, arXiv 2501.09522)",
        _prepare(_project, list),
        {
            "alpha": Parameter(
                "share of the singular values' sum whose whole subspace is taken away",
                0.5,
                0.0,
                1.0,
                (0.0, 0.9),
                per_input=False,
            )
        },
    ),
}
