"""data: what results are made of, and the part that `evomerge.report.gains` measures."""

from pydantic import BaseModel, ConfigDict

Interval = tuple[float, float, float]
"""A value and the ends of its interval over examples, 95% if nothing else is stated: (value, low, high)."""


class Data(BaseModel):
    """A part of results."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Gains(Data):
    """What one expert more would add: see `evomerge.report.gains`.

    Means over objectives on the search split, as in `Choice`: of averages of k experts, and by the line floor + c / k.
    """

    refused: str | None = None
    """Why there is no line; all other numbers are then empty."""
    metric: str = ""
    experts: int = 0
    """Number of the pool's experts, K."""
    sizes: tuple[int, ...] = ()
    """Each k, increasing."""
    values: tuple[tuple[float, ...], ...] = ()
    """For each k, the mean of each average that was scored."""
    means: tuple[Interval, ...] = ()
    """For each k, the mean of its `values`."""
    floor: float = 0.0
    slope: float = 0.0
    """c: below 0 where more experts are better."""
    residual: float = 0.0
    """Root mean square of `means` minus the line."""
    more: Interval = (0.0, 0.0, 0.0)
    """The line at K + 1 minus the line at K."""
    predicted: Interval = (0.0, 0.0, 0.0)
    """The line at K + 1."""
