"""Scores as text: shares of examples in percent, other metrics unchanged, intervals in brackets."""

from collections.abc import Iterable, Mapping

from evomerge.report.data import Interval
from evomerge.report.results import Objective, Results

_SHARES = ("accuracy", "match")
"""Endings of the metrics that are a share of the examples."""

MANY = 0.2
"""Share of failed candidates from which there is a warning."""

SCALED = "scaled score"
"""What a mean over different metrics is of."""

SPLITS = {"search": "search examples", "report": "unseen examples", "final": "final examples"}


def metric(name: str) -> str:
    """Return a metric's name in words, without its task: `news/log_likelihood` is `log likelihood`."""
    return name.rpartition("/")[2].replace("_", " ")


def objective(name: str) -> str:
    """Return an objective in words: `news/log_likelihood` is `news: log likelihood`; other texts are returned unchanged."""
    task, slash, _ = name.rpartition("/")
    return f"{task}: {metric(name)}" if slash else name


def mean_metric(results: Results, metrics: Mapping[str, str] | None = None) -> str:
    """Return the metric that all objectives have in common, or `scaled score` where they differ.

    The reported ones, or those of `metrics`, by objective.
    """
    reported = [objective.report for objective in results.objectives]
    return common_metric(reported if metrics is None else metrics.values()) or SCALED


def common_metric(metrics: Iterable[str]) -> str | None:
    """Return the one metric in words, None where they differ: then they are scaled before a mean, see `estimates.scale`."""
    names = {*map(metric, metrics)}
    return names.pop() if len(names) == 1 else None


def is_share(name: str) -> bool:
    """Return whether the metric is a share of the examples, in [0, 1], and so shown in percent."""
    return name.endswith(_SHARES)


def value(number: float, name: str, *, sign: bool = False) -> str:
    """Return a value (with `sign`: a difference) of the metric `name`: 71.2 for an accuracy of 0.712, -0.532 otherwise."""
    plus = "+" if sign else ""
    return f"{100 * number:{plus}.1f}" if is_share(name) else f"{number:{plus}.3f}"


def interval(numbers: Interval, name: str, *, sign: bool = False) -> str:
    """Return a value with its interval: `71.2 [68.9, 73.5]`."""
    middle, low, high = (value(number, name, sign=sign) for number in numbers)
    return f"{middle} [{low}, {high}]"


def within(number: float, width: float, name: str) -> str:
    """Return a prediction with half the width of its interval: `71.2 ± 2.3`."""
    return f"{value(number, name)} ± {value(width, name)}"


def failures(failed: int, of: int, common: tuple[str, int] | None) -> str | None:
    """Return a warning about failed candidates where they are many, with the most frequent error; None for few."""
    if common is None or failed < MANY * of:
        return None
    reason, count = common
    return (
        f"Warning: {failed} of {of} candidates failed ({failed / of:.0%}), {count} of them by this: {reason}. The front is of the "
        "others. Fix the cause, then type `evomerge resume … --retry-failed`."
    )


def covered(coverage: float, entropy: float | None) -> str:
    """Return `coverage 0.93, entropy 0.41`, the entropy where there is one."""
    return f"coverage {coverage:.2f}" + ("" if entropy is None else f", entropy {entropy:.2f}")


def volume(number: float, *, sign: bool = False) -> str:
    """Return a hypervolume to four digits, without its unit: the product of the metrics' units."""
    return f"{number:{'+' if sign else ''}.4g}"


def unit(name: str) -> str:
    """Return the unit to append to a metric's name: ` (%)` for shares."""
    return " (%)" if is_share(name) else ""


def examples(objective: Objective, split: str) -> str:
    """Return `500 unseen examples` or `400 search examples`."""
    return f"{objective.examples[split == 'report']} {SPLITS[split]}"
