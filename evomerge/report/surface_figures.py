"""Figures of a surface: the predicted front with its intervals, and left-out predictions against measured scores."""

import itertools
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from evomerge.report import figures, wording
from evomerge.report.results import Objective, ObjectiveFit, Results, Surface
from evomerge.trial import Metric

_BAND = "#cfe3f1"
_EVALUATED: dict[str, Any] = {
    "linestyle": "", "marker": "o", "color": figures.VERMILION, "markerfacecolor": "none", "markersize": 4.5,
    "markeredgewidth": 0.9,
}  # fmt: skip
_COLUMNS = 3


def front(results: Results) -> Figure | None:
    """Draw the predicted front, its 90% intervals and the evaluated candidates, one panel for each pair of objectives.

    None for one objective or more than four, and where the surface is refused.
    """
    surface = results.surface
    pairs = list(itertools.combinations(range(len(results.objectives)), 2))
    if surface is None or surface.refused is not None or not 0 < len(pairs) <= figures.MOST_PAIRS:
        return None
    columns = min(len(pairs), _COLUMNS)
    rows = len(pairs) // columns
    size = (7.6, 5.6) if len(pairs) == 1 else (11, 0.6 + 3.8 * rows)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.1))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, pair in zip(panels, pairs, strict=True):
        _panel(axes, results, surface, pair)
    others = " (colour: the other objective)" if len(results.objectives) == 3 else ""
    handles = [
        Line2D([], [], **_EVALUATED),
        Line2D([], [], linestyle="", marker="o", color=figures.BLUE, markersize=4),
        Patch(facecolor=_BAND),
    ]
    names = ["evaluated", f"predicted front{others}", "90% intervals of the predicted front"]
    figure.legend(
        handles, names, loc="outside upper left", ncols=3, frameon=False, fontsize=9, handletextpad=0.4,
        columnspacing=1.4, labelcolor=figures.INK,
    )  # fmt: skip
    return figure


def predicted(results: Results) -> Figure | None:
    """Draw each candidate's prediction from all the others against its score, one panel for each objective that varies."""
    surface = results.surface
    if surface is None or not surface.fits:
        return None
    columns = min(len(surface.fits), _COLUMNS)
    rows = -(-len(surface.fits) // columns)
    figure = Figure(
        figsize=(3.8 * columns if columns > 1 else 4.8, 3.9 * rows + 0.3), layout=ConstrainedLayoutEngine(w_pad=0.1)
    )
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(surface.fits) :]:
        axes.set_visible(False)
    named = {objective.name: objective for objective in results.objectives}
    for axes, (name, fit) in zip(panels, surface.fits.items(), strict=False):
        _against(axes, named[name], fit)
    return figure


def _panel(axes: Axes, results: Results, surface: Surface, pair: tuple[int, int]) -> None:
    figures.style(axes)
    chosen = [results.objectives[i] for i in pair]
    factors = np.array([figures.factor(objective.search) for objective in results.objectives])
    evaluated, means, widths = (
        factors * np.array(table) for table in (surface.evaluated, surface.means, surface.widths)
    )
    across, up = pair
    (x, dx), (y, dy) = ((means[:, i], widths[:, i]) for i in pair)
    # Rectangles of one opaque colour form the band, wherever they overlap.
    lowest, highest = np.transpose([Metric.named(objective.search).bounds for objective in chosen]) * factors[[*pair]]
    corners = [
        np.clip(np.stack([x + i * dx, y + j * dy], axis=1), lowest, highest)
        for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))
    ]
    axes.add_collection(PolyCollection(list(np.stack(corners, axis=1)), facecolor=_BAND, edgecolor=_BAND, zorder=1))
    _points(axes, results, means, pair)
    axes.plot(evaluated[:, across], evaluated[:, up], **_EVALUATED, zorder=4)
    axes.autoscale_view()
    for axis, objective in zip((axes.xaxis, axes.yaxis), chosen, strict=True):
        axis.set_label_text(figures.label(objective.name, objective.search), color=figures.INK)


def _points(axes: Axes, results: Results, means: NDArray[np.float64], pair: tuple[int, int]) -> None:
    """Draw the predicted front, joined for two objectives, for three coloured by the one without an axis."""
    x, y = means[:, pair[0]], means[:, pair[1]]
    if len(results.objectives) == 2:
        order = np.argsort(x, kind="stable")
        axes.plot(x[order], y[order], "-o", color=figures.BLUE, linewidth=1.2, markersize=2.5, zorder=3)
        return
    if len(results.objectives) > 3:
        axes.plot(x, y, "o", color=figures.BLUE, markersize=2.5, zorder=3)
        return
    [hidden] = set(range(3)) - set(pair)
    third = results.objectives[hidden]
    dots: PathCollection = axes.scatter(x, y, c=means[:, hidden], s=9, cmap="cividis", zorder=3, linewidths=0)
    bar = axes.figure.colorbar(dots, ax=axes, location="top", pad=0.02, aspect=30)
    bar.outline.set_visible(False)
    bar.set_label(figures.label(third.name, third.search), color=figures.INK, fontsize=8.5)
    bar.ax.tick_params(length=3, colors=figures.MUTED, labelsize=8)


def _against(axes: Axes, objective: Objective, fit: ObjectiveFit) -> None:
    """Draw left-out predictions with 90% intervals over measured scores; the dashed line is equality."""
    figures.style(axes)
    factor = figures.factor(objective.search)
    measured, mean, width = (factor * np.array(row) for row in (fit.measured, fit.predicted, fit.widths))
    inside = np.abs(measured - mean) <= width
    ends = [min(measured.min(), mean.min()), max(measured.max(), mean.max())]
    axes.plot(ends, ends, color=figures.MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for rows, colour in ((inside, figures.BLUE), (~inside, figures.VERMILION)):
        axes.errorbar(
            measured[rows], mean[rows], yerr=width[rows], fmt="o", color=colour, markersize=3.5, elinewidth=0.9,
            ecolor=colour, alpha=0.75,
        )  # fmt: skip
    title = f"{figures.plain(objective.name, 24)}: R² {fit.r2:.2f}, coverage {fit.coverage:.0%}\n{fit.rung}"
    axes.set_title(title, fontsize=9.5, loc="left", color=figures.INK)
    what = f"{figures.plain(wording.metric(objective.search), 24)}{wording.unit(objective.search)}"
    axes.set_xlabel(f"measured {what}", color=figures.INK)
    axes.set_ylabel(f"predicted {what} from the others", color=figures.INK)
