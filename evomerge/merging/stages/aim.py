"""AIM: smaller changes where the base's own inputs are large (activation-informed merging, arXiv 2502.02421)."""

from collections.abc import Sequence

from evomerge.merging.parameters import Parameter
from evomerge.merging.site import Bound, Piece, Region, Tables, Tensor, Values, total
from evomerge.merging.stage import Measurement, Stage, Words

_KIND = "base_activation"


def _sizes(found: Sequence[Tables]) -> Tensor:
    """Return the mean magnitude of each input channel over the tokens of all inputs' examples, float64 `(d,)`."""
    seen = [tables for tables in found if tables]
    tokens = total([int(tables["tokens"]) for tables in seen])
    summed: Tensor = total([int(tables["tokens"]) * tables["size"].double() for tables in seen])
    return summed.div(tokens)


def _measure(region: Region, values: Values) -> Bound:
    site = region.site
    found = list(site.statistics.tables(_KIND, site.tensor))
    if not any(found):  # no matrix of a product, or one that no example reached
        return {}
    sizes = _sizes(found)
    factor = 1 - (1 - values["omega"]) * sizes / sizes.max().clamp(min=1e-300)
    rows = next(int(tables["axis"]) == 0 for tables in found if tables)
    table = factor[:, None].expand(site.shape) if rows else factor.expand(site.shape[0], len(factor))
    return {"rows": [table.float().reshape(-1)]}


def _relaxed(piece: Piece, delta: Tensor, bound: Bound, words: Words) -> Tensor:
    return delta * bound["rows"][0] if "rows" in bound else delta


AIM = {
    "aim": Stage(
        "post",
        "multiply each input channel of a matrix by 1 - (1 - ω)·a/max a, where a is the mean magnitude of the base's inputs on the examples of "
        "all experts together; other tensors stay as they are (AIM, arXiv 2502.02421)",
        _relaxed,
        {"omega": Parameter.share("ω: what is left of the change at the largest channel; 1 changes nothing", 0.4)},
        needs=lambda values: (_KIND,),
        measure=Measurement(_measure, lambda values: "tensor", fields=True),
        bind=lambda site, values, fields: fields,
    )
}
"""AIM's stage, by name."""
