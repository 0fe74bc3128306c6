"""Figure of `evomerge.report.gains`: averages by their number of experts, and the line through their means."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evomerge.report import figures, wording
from evomerge.report.results import Results


def draw(results: Results) -> Figure | None:
    """Draw single averages, their means with 95% intervals, and the line floor + c / k to one expert more; None without a line."""
    found = results.gains
    if found is None or found.refused is not None:
        return None
    factor = 100 if wording.is_share(found.metric) else 1
    figure = figures.NotebookFigure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    figures.style(axes)
    along = np.linspace(found.sizes[0], found.experts + 1, 200)
    line = factor * (found.floor + found.slope / along)
    measured = along <= found.experts
    axes.plot(along[measured], line[measured], color=figures.BLUE, linewidth=1.5)
    axes.plot(along[~measured], line[~measured], color=figures.BLUE, linewidth=1.5, linestyle=(0, (3, 2)))
    for k, values in zip(found.sizes, found.values, strict=True):
        axes.plot([k] * len(values), factor * np.array(values), ".", color=figures.MUTED, alpha=0.6, markersize=5)
    shown = [*zip(found.sizes, found.means, strict=True), (found.experts + 1, found.predicted)]
    for k, (value, low, high) in shown:
        ahead = k > found.experts
        colour = figures.VERMILION if ahead else figures.BLUE
        axes.plot([k, k], [factor * low, factor * high], color=colour, linewidth=1.6, alpha=0.7)
        axes.plot(k, factor * value, "D" if ahead else "o", color=colour, markersize=6, markeredgecolor="white")
    axes.annotate(
        f"one more: {wording.interval(found.more, found.metric, sign=True)}",
        (found.experts + 1, factor * found.predicted[2]), xytext=(4, 6), textcoords="offset points",
        ha="right", va="bottom", fontsize=9, color=figures.VERMILION,
    )  # fmt: skip
    axes.set_xlim(found.sizes[0] - 0.4, found.experts + 1.4)
    axes.margins(y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("experts in the average", color=figures.INK)
    axes.set_ylabel(f"mean {found.metric}{wording.unit(found.metric)} on search examples", color=figures.INK)
    return figure
