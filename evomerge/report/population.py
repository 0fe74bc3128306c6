"""Figures of a population of models: its coverage of the examples during the search, and its cells at the end.

Qualities are drawn in cividis, which suits colour-blind readers (Nuñez, Anderton & Renslow 2018).
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from evomerge.report import figures, wording
from evomerge.report.results import Cells, Results

_COLUMNS = 2  # grids side by side
_EDGES = 5  # intervals between labelled edges along an axis, at most


def curves(results: Results) -> Figure | None:
    """Draw coverage and, where scores have one, entropy against the number of evaluations; None without a population."""
    diagnostics = results.diagnostics
    if diagnostics is None:
        return None
    examples = sum(objective.examples[0] for objective in results.objectives)
    panels = {f"coverage of {examples} search examples": diagnostics.coverage}
    if diagnostics.entropy is not None:
        panels["entropy of the members' scores (bits)"] = diagnostics.entropy
    figure = Figure(figsize=(7.2, 0.6 + 2.5 * len(panels)), layout="constrained")
    rows = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (what, series) in zip(rows, panels.items(), strict=True):
        figures.style(axes)
        axes.step(diagnostics.evaluations, series, where="post", color=figures.BLUE, linewidth=1.8)
        axes.plot(diagnostics.evaluations[-1], series[-1], "o", color=figures.BLUE, markersize=4.5, clip_on=False)
        axes.annotate(
            f"{series[-1]:.2f}", (diagnostics.evaluations[-1], series[-1]), xytext=(7, 0), textcoords="offset points",
            va="center", fontsize=9, color=figures.INK, annotation_clip=False,
        )  # fmt: skip
        axes.set_ylabel(what, color=figures.INK)
    figure.align_ylabels()
    rows[-1].set_xlim(1, max(diagnostics.evaluations[-1], 2))
    rows[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    rows[-1].set_xlabel("evaluations", color=figures.INK)
    return figure


def maps(results: Results) -> Figure | None:
    """Draw each grid of cells: colours are qualities, empty cells are blank, a star marks the best. None without cells.

    A grid of one axis is a strip. Of more than two axes the first two are shown, and each cell has the best over the others.
    """
    if not results.cells:
        return None
    strips = all(len(cells.axes) < 2 for cells in results.cells)
    columns = 1 if strips else min(_COLUMNS, len(results.cells))
    rows = -(-len(results.cells) // columns)
    size = (7.6, 2.1 * rows) if strips else (5.4 * columns, 4.8 * rows)
    figure = Figure(size, layout=ConstrainedLayoutEngine(wspace=0.05, hspace=0.05))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, cells in zip(panels, results.cells, strict=False):
        _map(axes, results, cells)
    for axes in panels[len(results.cells) :]:
        axes.set_axis_off()
    return figure


def _map(axes: Axes, results: Results, cells: Cells) -> None:
    qualities = _projected(cells)
    grid = np.atleast_2d(qualities.T)  # rows are the second axis, upwards
    colours = axes.pcolormesh(
        grid * _factor(results, cells.quality), cmap="cividis", edgecolors="#dddddd", linewidth=0.5
    )
    if not np.isnan(grid).all():
        y, x = np.unravel_index(np.nanargmax(grid), grid.shape)
        axes.plot(
            x + 0.5, y + 0.5, "*", color=figures.VERMILION, markersize=13, markeredgecolor="white", markeredgewidth=0.8
        )
    for i, axis in enumerate((axes.xaxis, axes.yaxis)):
        axis.set_ticks([])
        if i < len(cells.axes):
            count, factor = cells.shape[i], _factor(results, cells.axes[i])
            shown = np.linspace(0, count, min(count, _EDGES) + 1).round().astype(int).tolist()
            axis.set_ticks(shown, [f"{factor * cells.edges[i][edge]:.3g}" for edge in shown])
            axis.set_label_text(_label(results, cells.axes[i]), color=figures.INK, fontsize=9.5)
    axes.tick_params(length=3, colors=figures.MUTED, labelsize=8.5)
    for side in axes.spines.values():
        side.set_color("#bbbbbb")
    title = f"{_words(cells.quality)}, filled {len(cells.elites)} of {cells.size} cells"
    if others := cells.axes[2:]:
        title += "\neach the best over " + figures.plain(", ".join(map(wording.objective, others)), 60)
    axes.set_title(title, fontsize=9.5, loc="left", color=figures.INK)
    bar = axes.figure.colorbar(colours, ax=axes, pad=0.02)
    what = _label(results, cells.quality)
    bar.set_label(what.replace(": ", "\n") if len(cells.axes) < 2 else what, color=figures.INK, fontsize=9.5)
    bar.ax.tick_params(length=3, colors=figures.MUTED, labelsize=8.5)


def _projected(cells: Cells) -> NDArray[np.float64]:
    """Return the best quality over all axes but the first two, `shape[:2]`, NaN where no cell is filled."""
    best = np.full(cells.shape[:2], np.nan)
    for elite in cells.elites:
        best[elite.cell[:2]] = np.fmax(best[elite.cell[:2]], elite.quality)
    return best


def _factor(results: Results, name: str) -> float:
    """Return the factor with which scores of the objective `name`, or means of several, are shown."""
    named = [objective for objective in results.objectives if f"{objective.name}/{objective.search}" == name]
    return 100 if all(wording.is_share(objective.search) for objective in named or results.objectives) else 1


def _label(results: Results, name: str) -> str:
    return _words(name) + (" (%)" if _factor(results, name) == 100 else "")


def _words(name: str) -> str:
    return figures.plain(wording.objective(name))
