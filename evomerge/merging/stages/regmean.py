"""RegMean: the matrix whose outputs are nearest to those of all experts, each on its own inputs (arXiv 2212.09849).

RegMean++ (arXiv 2508.03121) is the same with the inputs that each expert's block has after merged blocks.

Of experts with matrices Wₖ (out, in) and Gram matrices Gₖ = XₖᵀXₖ / tokens of their inputs, it minimises
Σ wₖ |Xₖ(W - Wₖ)ᵀ|² / tokens: Wᵀ = (Σ wₖG̃ₖ)⁻¹ Σ wₖG̃ₖWₖᵀ, with G̃ = aG + (1-a) diag G for a = `alpha`. It is computed of task
vectors, in float64. The ridge ε = `ridge`·mean(diag Σ wₖG̃ₖ) pulls towards the weighted mean, which features without any input have.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from evomerge.errors import RecipeError
from evomerge.merging.parameters import Parameter
from evomerge.merging.site import (
    Bound,
    Chunks,
    Piece,
    Prepared,
    Region,
    Rows,
    Site,
    Tables,
    Tensor,
    Values,
    cancels,
    total,
)
from evomerge.merging.stage import Measurement, Preparation, Stage, Words
from evomerge.merging.stages.edits import complete
from evomerge.merging.stages.spectral import one_thread

_KINDS = {"experts": "gram", "merged": "gram_merged"}


def _grams(site: Site, values: Values) -> list[Tables] | None:
    """Return the tables of each input; None where no example reached the tensor, or it is no matrix of a product.

    Raises `RecipeError` where the partial merges are of other experts.
    """
    found = list(site.statistics.tables(_KINDS[values["grams"]], site.tensor))
    count = next((int(tables["experts"]) for tables in found if "experts" in tables), len(found))
    if count != len(found):
        raise RecipeError(
            f"regmean: the statistic `gram_merged` is of merges of {count} experts, and this one is of {len(found)}: "
            f"{', '.join(site.labels)}; give a pool of these experts alone, or type `grams: experts`"
        )
    return found if any(found) else None


@dataclass(frozen=True, slots=True)
class _Problem:
    """The least squares of one matrix: Grams `(d, d)` and task vectors `(d, out)` of each input, float64."""

    grams: list[Tensor]
    vectors: list[Tensor]

    @classmethod
    def read(cls, site: Site, found: Sequence[Tables], rows: Rows) -> "_Problem":
        """Return the problem of one tensor; a convolution is a matrix of its unfolded inputs."""
        size, turned = next(len(tables["gram"]) for tables in found if tables), _turned(found)
        shape = site.shape if turned else (site.shape[0], size)
        matrices = [row.double().view(shape) for row in rows]
        zeros = torch.zeros(size, size, dtype=torch.float64)  # an expert that no token reached says nothing
        grams = [tables["gram"].double() if tables else zeros for tables in found]
        return cls(grams, matrices if turned else [matrix.mT for matrix in matrices])

    def scaled(self, alpha: float) -> list[Tensor]:
        """Return the Grams with their off-diagonal elements times `alpha`."""
        return [alpha * gram + (1 - alpha) * torch.diag(gram.diagonal()) for gram in self.grams]

    def ridges(self, ridge: float) -> list[float]:
        """Return the ridge of each input of weight 1."""
        return [ridge * float(gram.diagonal().mean()) for gram in self.grams]


def _turned(found: Sequence[Tables]) -> bool:
    """Return whether a matrix is stored as (in, out)."""
    return next(int(tables["axis"]) == 0 for tables in found if tables)


def _row(solution: Tensor, found: Sequence[Tables]) -> Tensor:
    """Return a solution `(d, out)` as a row of its tensor, float32 `(n,)`."""
    return (solution if _turned(found) else solution.mT).float().reshape(-1)


def _singular(site: Site, values: Values) -> RecipeError:
    """Return the error of a problem without one solution."""
    return RecipeError(
        f"regmean: the Gram matrices of `{site.tensor}` have no inverse at `alpha` {values['alpha']:g}; expected a smaller `alpha`, or a "
        f"`ridge` larger than {values['ridge']:g}, such as 1e-4, or statistics of more examples"
    )


def _solved(site: Site, problem: _Problem, values: Values) -> Tensor:
    """Return Δᵀ `(d, out)` by a Cholesky factorisation."""
    weights, alpha = values["weight"], values["alpha"]
    grams = problem.scaled(alpha)
    ridge = sum(w * r for w, r in zip(weights, problem.ridges(values["ridge"]), strict=True))
    left = total([w * gram for w, gram in zip(weights, grams, strict=True)])
    left.diagonal().add_(ridge)
    sides = [w * (gram @ vector) for w, gram, vector in zip(weights, grams, problem.vectors, strict=True)]
    right = total(sides).add_(_mean(problem.vectors, weights), alpha=ridge)
    solution: Tensor = torch.cholesky_solve(right, _factor(site, left, values))
    return solution


def _factor(site: Site, gram: Tensor, values: Values) -> Tensor:
    """Return the Cholesky factor of a matrix `(d, d)`. Raises `RecipeError` where its rank is less than d, up to rounding."""
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(gram)
    noise = len(gram) * torch.finfo(gram.dtype).eps * float(gram.diagonal().max())
    if int(failed) or float(factor.diagonal().min()) ** 2 <= noise:
        raise _singular(site, values)
    return factor


def _mean(rows: Rows, weights: Sequence[float]) -> Tensor:
    mean: Tensor = total([w * row for w, row in zip(weights, rows, strict=True)]) / total(weights)
    return mean


def _decomposed(site: Site, chunks: Chunks, values: Values) -> Prepared:
    """Prepare what serves every `alpha` of equal weights; of two inputs with other weights, what serves all weights at one `alpha`."""
    found = _grams(site, values)
    if found is None:
        return {}
    problem = _Problem.read(site, found, [complete(chunks, i) for i in range(len(site.labels))])
    with one_thread():
        tables = _over_alpha(problem, values) if _equal(values) else _over_weights(site, problem, values)
    return {name: table.contiguous() for name, table in tables.items()}


def _over_alpha(problem: _Problem, values: Values) -> Prepared:
    """Diagonalise ΣG and diag ΣG together: S(a) = Z⁻ᵀ(aΛ + 1-a)Z⁻¹."""
    ridge = total(problem.ridges(values["ridge"]))
    gram = total(problem.grams)
    gram.diagonal().add_(ridge)
    size = gram.diagonal()
    scale = torch.where(size > 0, size.clamp(min=1e-300).rsqrt(), 0.0)
    spectrum, basis = torch.linalg.eigh(scale[:, None] * gram * scale)
    basis = scale[:, None] * basis
    pull = ridge * _mean(problem.vectors, [1.0] * len(problem.grams))
    pairs = list(zip(problem.grams, problem.vectors, strict=True))
    full = total([g @ vector for g, vector in pairs]) + pull
    diagonal = total([g.diagonal()[:, None] * vector for g, vector in pairs]) + pull
    return {"basis": basis, "spectrum": spectrum, "full": basis.mT @ full, "diagonal": basis.mT @ diagonal}


def _over_weights(site: Site, problem: _Problem, values: Values) -> Prepared:
    """Diagonalise two Grams together: S(w) = Z⁻ᵀ(w₁Λ + w₂(1-Λ))Z⁻¹."""
    grams, ridges = problem.scaled(values["alpha"]), problem.ridges(values["ridge"])
    raised = [gram + ridge * torch.eye(len(gram), dtype=gram.dtype) for gram, ridge in zip(grams, ridges, strict=True)]
    factor = _factor(site, raised[0] + raised[1], values)
    half = torch.linalg.solve_triangular(factor, raised[0], upper=False)
    spectrum, basis = torch.linalg.eigh(torch.linalg.solve_triangular(factor, half.mT, upper=False))
    basis = torch.linalg.solve_triangular(factor.mT, basis, upper=True)
    tables = {"basis": basis, "spectrum": spectrum, "ridges": torch.tensor(ridges, dtype=torch.float64)}
    for i, (gram, vector) in enumerate(zip(grams, problem.vectors, strict=True)):
        tables |= {f"side.{i}": basis.mT @ (gram @ vector), f"vector.{i}": basis.mT @ vector}
    return tables


def _from_tables(site: Site, tables: Prepared, values: Values) -> Tensor:
    """Return Δᵀ `(d, out)` from what `_decomposed` prepared."""
    spectrum, alpha, weights = tables["spectrum"], values["alpha"], values["weight"]
    if "full" in tables:
        above = alpha * tables["full"] + (1 - alpha) * tables["diagonal"]
        below = alpha * spectrum + (1 - alpha)
    else:
        ridge = float(total([w * float(r) for w, r in zip(weights, tables["ridges"], strict=True)])) / total(weights)
        above = total([w * (tables[f"side.{i}"] + ridge * tables[f"vector.{i}"]) for i, w in enumerate(weights)])
        below = weights[0] * spectrum + weights[1] * (1 - spectrum)
    if float(below.min()) <= 0:
        raise _singular(site, values)
    solution: Tensor = tables["basis"].clone() @ (above / below[:, None])
    return solution


def _equal(values: Values) -> bool:
    return len(set(values["weight"])) == 1


def _measure(region: Region, values: Values) -> Bound:
    site, weights = region.site, values["weight"]
    found = _grams(site, values)
    if found is None:
        return {}
    if cancels(weights):
        return {"rows": [torch.zeros(site.numel)]}
    if values["solver"] == "cholesky":
        problem = _Problem.read(site, found, [complete(region.chunks, i) for i in range(len(weights))])
        with one_thread():
            return {"rows": [_row(_solved(site, problem, values), found)]}
    if not _equal(values) and len(weights) > 2:  # two matrices have common eigenvectors, three have none
        msg = f"regmean: `solver: eigen` takes equal weights, or two inputs, got weights {', '.join(f'{w:g}' for w in weights)}; type `solver: cholesky`"
        raise RecipeError(msg)
    (tables,) = region.prepared()
    with one_thread():
        return {"rows": [_row(_from_tables(site, tables, values), found)]}


def _bind(site: Site, values: Values, measured: Bound) -> Bound:
    return measured or {"weight": torch.tensor(values["weight"], dtype=torch.float32)}


def _joined(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    if "rows" in bound:
        solution: Rows = bound["rows"]
        return solution
    weights = list(bound["weight"].unbind())
    summed = total([weight * row for weight, row in zip(weights, rows, strict=True)])
    return [summed / torch.where(cancels(weights), torch.inf, total(weights))]


def _key(site: Site, values: Values) -> tuple[str | float, ...]:
    return ("alpha" if _equal(values) else values["alpha"], values["ridge"])  # statistics are part of every key


REGMEAN = {
    "regmean": Stage(
        "edit",
        "the matrix whose outputs are nearest to those of all inputs, each on examples of its own task; the weighted mean for "
        "tensors other than matrices, embeddings among them (RegMean, arXiv 2212.09849)",
        _joined,
        {
            "weight": Parameter("weight of each input", 1.0, 0.0, 10.0, (0.0, 1.0)),
            "alpha": Parameter.share("factor of the Gram matrices' off-diagonal elements", 0.9),
            "ridge": Parameter(
                "pull towards the weighted mean, as a share of the mean of the Gram matrix's diagonal",
                1e-6,
                0.0,
                10.0,
                per_input=False,
            ),
            "solver": Parameter.word(
                "`cholesky`: a factorisation for each candidate; `eigen`: one for all `alpha` of equal weights, or for all weights of two "
                "inputs at one `alpha`, kept for the search. They differ in the last bits",
                ("cholesky", "eigen"),
            ),
            "grams": Parameter.word(
                "whose inputs: `experts`, of each expert by itself; `merged`, of its own block after the merged blocks before it, which "
                "were merged with equal weights at `alpha` 0.95 (RegMean++, arXiv 2508.03121)",
                ("experts", "merged"),
            ),
        },
        needs=lambda values: (_KINDS[values["grams"]],),
        prepare=Preparation(_decomposed, _key),
        measure=Measurement(_measure, lambda values: "tensor", fields=True),
        bind=_bind,
        joins=True,
    )
}
