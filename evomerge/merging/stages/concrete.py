"""Concrete: one mask of all task vectors, learnt without labels: see `evomerge.masks` (Concrete subspace learning, arXiv 2312.06173)."""

from evomerge.errors import RecipeError
from evomerge.merging.site import Bound, Piece, Region, Rows, Values
from evomerge.merging.stage import Measurement, Stage, Words

_KIND = "mask"


def _measure(region: Region, values: Values) -> Bound:
    """Return each input's mask, by its expected value over the mean in the tensor; nothing for a tensor without masks."""
    site = region.site
    inputs = list(site.statistics.tables(_KIND, site.tensor))
    if not all(inputs) or not site.numel:
        return {}
    count = int(inputs[0].get("experts", len(inputs)))
    if count != len(inputs):
        raise RecipeError(
            f"concrete: the statistic `{_KIND}` is learnt of {count} experts, and this merge is of {len(inputs)}: "
            f"{', '.join(site.labels)}; give a pool of these experts alone"
        )
    masks = [tables["logits"].double().sigmoid().reshape(-1) for tables in inputs]
    return {"rows": [(mask / mask.mean()).float() for mask in masks]}


def _masked(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    if "rows" not in bound:
        return rows
    return [row * mask for row, mask in zip(rows, bound["rows"], strict=True)]


CONCRETE = {
    "concrete": Stage(
        "edit",
        "multiply all task vectors by one mask, learnt without labels so that the merge is sure of its predictions: the mask's expected value "
        "over its mean in the tensor (Concrete subspace learning, arXiv 2312.06173)",
        _masked,
        needs=lambda values: (_KIND,),
        measure=Measurement(_measure, lambda values: "tensor", fields=True),
        bind=lambda site, values, fields: fields,
    )
}
"""The stage of Concrete subspace learning, by name."""
