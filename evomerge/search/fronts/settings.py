"""The settings of `front`."""

from typing import Literal

from pydantic import BaseModel, Field

MANY_IN_FLIGHT = 256
MOST_FITTED, MOST_FITTED_OF_MANY = 1000, 400
"""`most` of new studies, and with `MANY_IN_FLIGHT` or more."""


class FrontSettings(BaseModel, extra="forbid", frozen=True):
    """`driver:` of a study that searches by surrogates for a front, or for the best of one objective."""

    kind: Literal["front"] = "front"
    seed_known: bool = True
    """Evaluate the known recipes (base, each expert, mean) first, as part of the design."""
    mixtures: bool = False
    """Make half of the design's other candidates mixtures, and half of each batch, where the space has weights of experts
    (`SearchSpace.weights`). New studies have it so, unless it is set to false."""
    points: int | None = Field(default=None, ge=4)
    """Candidates of the design. Default: 1.2 p, with p = (d + 1)(d + 2) / 2 the unknowns of a quadratic in d genes, or
    5 (d + 1) if that is less, as it is from 7 genes on; and two more than the known recipes at least. With slopes, (d + 2) / 2
    more than the known recipes."""
    batch: int | None = Field(default=None, ge=1)
    """Candidates chosen together after it; fixed, so that the search does not depend on the number of workers. Default: 4,
    or 2 with slopes. New studies with 256 or more in flight have a 32nd of them unless it is set."""
    in_flight: int | None = Field(default=None, ge=1)
    """Candidates that may wait for their results when more are chosen, so that workers need not wait for a batch: two to four times the number of
    workers. A candidate is chosen from the results of all but the last `in_flight` before it, and from predictions of these. The search
    depends on it, and not on the number of workers. Default: each batch is chosen from the results of all before it."""
    bounds: dict[str, tuple[float | None, float | None]] = Field(default_factory=dict)
    """Objective → [lowest, highest] mean score, null where there is none. Default: the metric's range."""
    slopes: Literal[True, False, "surrogates"] | None = None
    """With `surrogates`, fit surrogates to slopes of the scores too (`SlopedFront`), over up to 40 genes. With true, follow the slopes
    instead of surrogates (`Continuation`), for two or more objectives; then only `seed_known`, `batch` and `in_flight` count, and there is no surface.
    Default: true with more than 40 genes, where there are slopes."""
    most: int | None = Field(default=None, ge=50)
    """Candidates that surrogates are fitted to at most, at least twice the design: the design and the front, and what is dominated by little.
    So that a large study's driver keeps up with many workers, from 300 evaluated candidates on (100 with 64 in flight; or `most`, or twice the design) they are fitted
    again when there are an eighth more, their hyperparameters to 100 at most, and a batch has at least a 32nd of the evaluated candidates, or
    an eighth of those in flight if that is less. Default: all, after each batch. New studies have 1000, or 400 with 256 or more in flight,
    unless it is set. Fewer cost the driver less, and the front some of its hypervolume."""
    tolerance: float = Field(default=1.0, ge=0)
    """The search ends when two consecutive batches are expected to add less hypervolume than this multiple of the examples'
    noise, or than a thousandth of the hypervolume if that is more. Where the surface would then be refused, Sobol points
    are added until it is not, or up to three times the design's size. 0 searches until the budget is spent."""
