"""DOGE: one change Δ that is added to all task vectors of a matrix, so that each is disturbed less by the others (arXiv 2501.01230).

With λₖ = η / |τₖ| and S = Σ λₖ(τₖ + Δ), the loss is L = Σₖ Σ over rows of (τₖ·(τₖ - S))², an inner product for each row. Δ starts at 0
and follows Adam along the gradient without its part in a shared subspace, which stays as it is: the first singular vectors of the
inputs' own first left singular vectors, side by side. The merge is Σ λₖ(τₖ + Δ), where τₖ is among its largest. It is computed in
float64.
"""

import operator
from collections.abc import Iterable, Iterator

import torch

from evomerge.merging.adam import Adam
from evomerge.merging.arithmetic import compared, keep
from evomerge.merging.parameters import Parameter
from evomerge.merging.selection import Streamed
from evomerge.merging.site import Bound, Chunk, Chunks, Piece, Prepared, Region, Rows, Site, Tensor, Values
from evomerge.merging.stage import Measurement, Preparation, Stage, Words
from evomerge.merging.stages.edits import complete, how_many, magnitudes
from evomerge.merging.stages.spectral import one_thread
from evomerge.merging.stages.weights import bound_weight, measured_weight
from evomerge.merging.stages.whole import measure

_NULL = 1e-6
"""Singular values below this share of the largest are rounding noise, and so are their vectors."""

ETA = Parameter(
    "η: norm, in the weights' units, that each input's change of a matrix is scaled to", 0.07, 1e-12, 1e6, (0.02, 0.3), log=True, per_input=False
)  # fmt: skip


def _is_merged(site: Site) -> bool:
    """Return whether a tensor is a matrix, and no embedding: others stay the base."""
    return len(site.shape) == 2 and site.numel > 0 and site.place.kind != "embedding"


def _first(matrix: Tensor, count: int) -> Tensor:
    """Return at most `count` left singular vectors `(out, ·)`, without those of rounding noise."""
    if not count or not matrix.numel():
        return matrix[:, :0]
    vectors, sizes, _ = torch.linalg.svd(matrix, full_matrices=False)
    first: Tensor = vectors[:, : min(count, int((sizes > _NULL * sizes[0]).sum()))]
    return first


def _shared(vectors: list[Tensor], divisor: float) -> Tensor:
    """Return an orthonormal basis `(out, ·)` of the subspace of outputs in which Δ does not change the inputs."""
    rank = min(vectors[0].shape)
    own = [_first(vector, rank // len(vectors)) for vector in vectors]
    return _first(torch.cat(own, dim=1), int(rank / divisor))


def _descended(vectors: list[Tensor], values: Values) -> Tensor:
    """Return Δ `(out, in)` after steps of Adam. With rₖ = τₖ·(τₖ - S), the gradient is -2 Σλ Σₖ rₖτₖ, row by row."""
    basis = _shared(vectors, values["divisor"])
    sizes = [float(vector.norm()) for vector in vectors]
    scales = [values["eta"] / size if size else 0.0 for size in sizes]
    stack = torch.stack(vectors, dim=1)  # (out, inputs, in)
    start = torch.stack([scale * vector for scale, vector in zip(scales, vectors, strict=True)]).sum(dim=0)
    fixed = (stack * (stack - start[:, None])).sum(dim=2)
    total = sum(scales)
    delta = torch.zeros_like(start)
    adam = Adam(delta)
    by_gradient = values["project"] == "gradient"
    for _ in range(int(values["steps"])):
        rests = fixed - total * (stack @ delta[:, :, None])[:, :, 0]
        gradient = -2 * total * (rests[:, None] @ stack)[:, 0]
        if by_gradient:
            gradient -= basis @ (basis.mT @ gradient)
        mean, size, correction = adam.step(gradient)
        move = mean / size
        if not by_gradient:
            move -= basis @ (basis.mT @ move)
        delta.add_(move, alpha=-values["rate"] / correction)
    return delta


def _prepare(site: Site, chunks: Chunks, values: Values) -> Prepared:
    if not _is_merged(site):
        return {"row": torch.zeros(site.numel)}
    vectors = [complete(chunks, i).double().view(site.shape) for i in range(len(site.labels))]
    with one_thread():
        delta = _descended(vectors, values)
    return {"row": delta.float().reshape(-1).contiguous()}


def _moved(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    (delta,) = bound["rows"]
    return [torch.where(row != 0, row + delta, 0.0) for row in rows]


def _least(region: Region, values: Values) -> list[float]:
    """Return the least magnitude that is kept of each task vector; infinity where none is."""

    def count() -> int:
        return sum(len(chunk.base) for chunk in region.chunks() if _is_merged(chunk.site))

    def read(chunks: Iterable[Chunk]) -> Iterator[Rows]:
        return (magnitudes(chunk.piece.raw) for chunk in chunks if _is_merged(chunk.site))

    number = region.remember(count)
    sizes = Streamed(lambda: read(region.chunks()), number, lambda: read(region.sample()))
    return sizes.largest([how_many(density, number) for density in values["density"]])


def _kept(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    if "weight" not in bound:
        return rows
    return [
        keep(compared(operator.ge, size, least), row)
        for size, least, row in zip(magnitudes(piece.raw), bound["weight"].unbind(), rows, strict=True)
    ]


def _scales(region: Region, values: Values) -> list[float]:
    """Return η over the norm of each input's unedited task vector, 0 where there is none."""
    squares = [0.0] * len(region.site.labels)
    if not _is_merged(region.site):
        return squares
    for chunk in region.chunks():
        squares = [
            square + float(raw.double().square().sum()) for square, raw in zip(squares, chunk.piece.raw, strict=True)
        ]
    return [values["eta"] / square**0.5 if square else 0.0 for square in squares]


DOGE = {
    "doge": Stage(
        "edit",
        "add to each task vector, where it is not zero, one change by which all disturb each other less; to tensors other than matrices, and to "
        "embeddings, nothing (DOGE, adaptive projective gradient descent, arXiv 2501.01230)",
        _moved,
        {
            "eta": ETA,
            "steps": Parameter(
                "steps of Adam for each matrix", 400, 0, 1_000_000, (50, 1000), integer=True, per_input=False
            ),
            "rate": Parameter(
                "learning rate, in the weights' units: a step moves an element by at most about this",
                1e-4,
                0.0,
                1e6,
                (1e-5, 1e-3),
                log=True,
                per_input=False,
            ),
            "divisor": Parameter(
                "the shared subspace has the matrix's least side by this many dimensions, rounded down",
                6.0,
                1.0,
                1e6,
                (2.0, 12.0),
                per_input=False,
            ),
            "project": Parameter.word(
                "what is kept out of the shared subspace: the `gradient` (as released; Adam's steps then enter it again), or each `update`",
                ("gradient", "update"),
            ),
        },
        prepare=Preparation(_prepare, lambda site, values: tuple(values.values())),
        measure=Measurement(measure, lambda values: "tensor", fields=True, smooth=False),
        bind=lambda site, values, fields: fields,
    ),
    "keep": Stage(
        "edit",
        "keep elements where the task vector, before any edit, is among the fraction `density` of its largest, over all matrices but embeddings; "
        "zero elsewhere (DOGE, arXiv 2501.01230)",
        _kept,
        {"density": Parameter("fraction of each task vector that is kept", 0.3, 0.0, 1.0, (0.1, 1.0))},
        measure=Measurement(_least, lambda values: "model" if min(values["density"]) < 1 else None, smooth=False),
        bind=lambda site, values, least: {} if least is None else measured_weight(site, values, least),
    ),
    "unit": Stage(
        "weigh",
        "η over the norm of each input's task vector in the tensor, before any edit; 0 for tensors other than matrices, and for embeddings, which "
        "stay the base (DOGE's task-aware coefficients, arXiv 2501.01230)",
        bound_weight,
        {"eta": ETA},
        measure=Measurement(_scales, lambda values: "tensor"),
        bind=measured_weight,
        linear=True,
    ),
}
"""DOGE's stages, by name."""
