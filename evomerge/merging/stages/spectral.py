"""Edits of complete matrices by their singular vectors. Other tensors are averaged, or summed in order.

Most do not depend on the candidate: their result is prepared once, and a candidate reads it like a task vector. For a
mutation the decomposition is prepared, and a candidate multiplies its factors.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from evomerge.merging.parameters import Parameter
from evomerge.merging.randomness import bits, own_key, uniform
from evomerge.merging.site import Bound, Chunks, Piece, Prepared, Region, Rows, Site, Tensor, Values
from evomerge.merging.stage import Measurement, Preparation, Stage, Words, slope_of
from evomerge.merging.stages.edits import complete

_NULL = 1e-6
"""Singular values below this share of the largest are rounding noise, and so are their vectors."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread: the last bits of a decomposition depend on the number of threads; a recipe's bytes must not."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, Σ, V of a matrix, without the directions that are rounding noise."""
    u, sigma, vh = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((sigma > _NULL * sigma[0]).sum()) if sigma.numel() else 0
    return u[:, :rank], sigma[:rank], vh[:rank].mH


def _polar(matrix: Tensor) -> Tensor:
    """Return the nearest matrix with orthonormal columns, in the span of the directions that are not noise."""
    u, _, v = _svd(matrix)
    return u @ v.mH  # eq. 8 (arXiv 2412.00081), eq. 11 (arXiv 2502.04959)


def _decorrelate(matrices: list[Tensor], values: Values) -> list[Tensor]:
    rank = max(min(matrices[0].shape) // len(matrices), 1)  # algorithm 1, line 3 (arXiv 2412.00081)
    factors = [tuple(part[..., :rank] for part in _svd(matrix)) for matrix in matrices]
    left, right = (_polar(torch.cat([factor[side] for factor in factors], dim=1)) for side in (0, 2))
    parts, start = [], 0
    for _, sigma, _ in factors:
        columns = slice(start, start + len(sigma))
        parts.append(left[:, columns] * sigma @ right[:, columns].mH)  # eq. 5 (arXiv 2412.00081)
        start = columns.stop
    return parts


def _isotropise(matrices: list[Tensor], values: Values) -> list[Tensor]:
    """Split the rank as the authors' code does: int(common·rank) directions of the sum, rounded so that the rest divides by K."""
    inputs, rank = len(matrices), min(matrices[0].shape)
    u, sigma, v = _svd(torch.stack(matrices).sum(dim=0))
    each = min(round((rank - int(values["common"] * rank)) / inputs), rank // inputs)
    common = rank - each * inputs  # k of algorithm 2 (arXiv 2502.04959)
    lefts, sigmas, rights = [u[:, :common]], [sigma[:common]], [v[:, :common]]
    if each:
        for matrix in matrices:
            specific_u, specific_sigma, specific_v = _svd(matrix - lefts[0] @ (lefts[0].mH @ matrix))  # eq. 10
            lefts.append(specific_u[:, :each])
            sigmas.append(specific_sigma[:each])
            rights.append(specific_v[:, :each])
    singular = torch.cat(sigmas)
    mean = singular.mean() if len(singular) else singular.sum()  # eq. 7, 13 (arXiv 2502.04959)
    return [mean * _polar(torch.cat(lefts, dim=1)) @ _polar(torch.cat(rights, dim=1)).mH]  # eq. 8, 12


def _project(matrices: list[Tensor], values: Values) -> list[Tensor]:
    """Remove from each task vector the part along the singular directions of the sum of those before it."""
    projected = [matrices[0]]
    merged = matrices[0]
    for matrix in matrices[1:]:
        u, sigma, v = _svd(merged)
        along = u.mH @ matrix @ v
        share = sigma.cumsum(0)
        share = share / share[-1:]  # exactly 1 at the end: at alpha = 1 the complete subspace is removed
        above = (share > values["alpha"]).nonzero()
        head = int(above[0]) if len(above) else len(sigma)
        removed = torch.diag(along.diagonal())
        removed[:head, :head] = along[:head, :head]
        projected.append(matrix - u @ removed @ v.mH)
        merged = merged + projected[-1]
    return projected


def _prepare(
    rule: Callable[[list[Tensor], Values], list[Tensor]], otherwise: Callable[[Rows], Rows]
) -> Callable[[Site, Chunks, Values], Prepared]:
    """Return the preparation of a rule for matrices, float64 inside, and of another for all other tensors."""

    def prepare(site: Site, chunks: Chunks, values: Values) -> Prepared:
        rows = [complete(chunks, i) for i in range(len(site.labels))]
        if len(site.shape) == 2 and rows[0].numel():
            with one_thread():
                matrices = rule([row.double().view(site.shape) for row in rows], values)
            rows = [matrix.float().reshape(-1) for matrix in matrices]
        else:
            rows = otherwise(rows)
        return {f"row.{i}": row.contiguous() for i, row in enumerate(rows)}

    return prepare


def _centre(site: Site, chunks: Chunks, values: Values) -> Prepared:
    """Prepare the mean, and of matrices the summed low-rank approximations of what each input is away from it."""
    rows = [complete(chunks, i) for i in range(len(site.labels))]
    mean = torch.stack(rows).double().sum(dim=0) / len(rows)
    tables = {"mean": mean.float()}
    if len(site.shape) == 2 and site.numel:
        rank = max(round(values["rank"] * min(site.shape)), 1)
        summed = torch.zeros(site.shape, dtype=torch.float64)
        with one_thread():
            for row in rows:
                u, sigma, v = _svd((row.double() - mean).view(site.shape))
                summed += u[:, :rank] * sigma[:rank] @ v[:, :rank].mH
        tables["away"] = summed.float().reshape(-1).contiguous()
    return tables


def _centred(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    away = bound["away"][0] if "away" in bound else 0.0
    return [bound["mean"][0] + bound["strength"] * away]


def _bind_centre(site: Site, values: Values, tables: Prepared) -> Bound:
    strength = torch.tensor(values["strength"], dtype=torch.float32)
    return {**{name: [table] for name, table in tables.items()}, "strength": strength}


def _mean_parts(rows: Rows) -> Rows:
    return [row / len(rows) for row in rows]


def _mean(rows: Rows) -> Rows:
    return [(torch.stack(rows).double().sum(dim=0) / len(rows)).float()]


def _measure(region: Region, values: Values) -> Bound:
    (tables,) = region.prepared()
    return {"rows": [tables[f"row.{i}"] for i in range(len(tables))]}


def _replaced(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    replacement: Rows = bound["rows"]
    return replacement


def _factors(site: Site, chunks: Chunks, values: Values) -> Prepared:
    """Prepare U∘Σ `(rows, r)` and Vᵀ `(r, columns)` of the second input's task vector; nothing for norms and non-matrices."""
    if len(site.shape) != 2 or not site.numel or site.place.kind == "norm":
        return {}
    # Counted from the base, whatever the origin is.
    vectors = [chunk.rows[1] - (chunk.base.float() - chunk.origin) for chunk in chunks()]
    matrix = torch.cat(vectors).double().view(site.shape)
    with one_thread():
        u, sigma, v = _svd(matrix)
    return {"left": (u * sigma).float().contiguous(), "right": v.mH.float().contiguous()}


def _mutation(region: Region, values: Values) -> Bound:
    (tables,) = region.prepared()
    if not tables:
        return {}
    left, right = tables["left"], tables["right"]
    key = own_key(region.site.seed, "svd_mutate", region.site.tensor)
    directions = torch.arange(len(right)).sub(2**31).to(torch.int32)
    shares = values["rate"] * uniform(bits(directions, key))
    with one_thread():
        # The copy is aligned in memory, as a view of a file may not be: a product's last bits may depend on that.
        mutation = (left * shares.float()) @ right.clone()
    return {"rows": [mutation.view(-1)]}


def _mutated(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    return [rows[0] + bound["rows"][0]] if "rows" in bound else rows[:1]


def _spectral(about: str, prepare: Any, parameters: dict[str, Parameter], *, joins: bool = False) -> Stage:
    return Stage(
        "edit",
        about,
        _replaced,
        parameters,
        prepare=Preparation(prepare, lambda site, values: tuple(values.values())),
        measure=Measurement(_measure, lambda values: "tensor", fields=True),
        bind=lambda site, values, fields: fields,
        joins=joins,
    )


SPECTRAL = {
    "decorrelate": _spectral(
        "keep the first 1/K of each input's singular vectors, and make all inputs' orthogonal to each other; the mean for "
        "tensors other than matrices (TSV-Merge, arXiv 2412.00081)",
        _prepare(_decorrelate, _mean_parts),
        {},
    ),
    "isotropise": _spectral(
        "the summed task vector with all its singular values set to their mean; with `common` below 1, some singular vectors "
        "are those of single inputs; the mean for tensors other than matrices (ISO-C, ISO-CTS, arXiv 2502.04959)",
        _prepare(_isotropise, _mean),
        {
            "common": Parameter.share(
                "share of singular vectors that are the sum's; rounded so that the others are as many for each input",
                1.0,
                (0.5, 1.0),
            )
        },
        joins=True,
    ),
    "svd_mutate": Stage(
        "edit",
        "add U diag(u∘Σ) Vᵀ of the second input's task vector UΣVᵀ to the first, u uniform in [0, rate] for each singular "
        "direction; norms and tensors other than matrices are the first's (CycleQD, arXiv 2410.14735, as released: the paper "
        "mutates along the first's own task vector)",
        _mutated,
        {"rate": Parameter.share("the largest share of a singular value", 0.1, (0.0, 0.3))},
        prepare=Preparation(_factors, reads=(1,)),
        measure=Measurement(_mutation, lambda values: "tensor" if values["rate"] else None, fields=True),
        bind=lambda site, values, fields: fields or {},
        arity=(2, 2),
        joins=True,
    ),
    "centre": Stage(
        "edit",
        "the mean, plus a low-rank approximation of what each input's matrix is away from it; the mean for tensors other than matrices (CART, "
        "arXiv 2412.12153)",
        _centred,
        {
            "rank": Parameter.share("share of the singular values that are kept, at least one", 0.08, (0.02, 0.5)),
            "strength": Parameter(
                "scale of what is added to the mean, which the paper searches",
                1.0,
                -10,
                10,
                (0.1, 3.0),
                per_input=False,
            ),
        },
        prepare=Preparation(_centre, lambda site, values: (values["rank"],)),
        measure=Measurement(lambda region, values: region.prepared()[0], lambda values: "tensor", fields=True),
        bind=_bind_centre,
        slopes={"strength": slope_of("strength")},
        joins=True,
    ),
    "project": _spectral(
        "input by input, in order, remove the part along the singular directions of the merge so far, of every matrix, "
        "embeddings and heads included, where the authors' code projects linear layers only (OPCM, arXiv 2501.09522)",
        _prepare(_project, list),
        {
            "alpha": Parameter.share(
                "share of the singular values' sum whose complete subspace is removed", 0.5, (0.0, 0.9)
            )
        },
    ),
}
