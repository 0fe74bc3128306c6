"""The figure of `evomerge check`: norms of task vectors over depth and kind of tensor, and cosines between experts."""

from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from evomerge.checkpoints.task_vectors import TaskVectors
from evomerge.report.figures import INK, MUTED, plain

_MOST_PAIRS = 15
_NUMBERED = 8
"""Experts up to which cosines are also printed in their cells."""


def check_figure(vectors: TaskVectors) -> Figure:
    """Return the figure: one map of relative norms per expert, one of cosines, and one of cosines by block."""
    count = len(vectors.experts)
    pairs = list(combinations(range(count), 2))[:_MOST_PAIRS]
    heights = [0.28 * max(4, len(vectors.kinds))] * count
    heights += [max(1.4, 0.35 * count), max(1.2, 0.3 * len(pairs))] if pairs else []
    figure = Figure(figsize=(8, sum(heights) + 0.8 * len(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    labels = ["outside" if block is None else f"block {block}" for block in vectors.blocks]
    norms = [_norms(vectors, expert) for expert in range(count)]
    largest = max((float(np.nanmax(values)) for values in norms if not np.isnan(values).all()), default=0.0) or 1.0
    for expert, name in enumerate(vectors.experts):
        title = f"{plain(name)}: norm of the task vector, relative to the base's"
        _draw(axes[expert], norms[expert], title, labels, vectors.kinds, "viridis", (0.0, largest))
    if pairs:
        names = [plain(name) for name in vectors.experts]
        whole = vectors.cosines()
        _draw(axes[count], whole, "cosines between task vectors", names, names, "RdBu_r", (-1.0, 1.0))
        for i, j in np.ndindex(whole.shape) if count <= _NUMBERED else ():
            dark = abs(whole[i, j]) > 0.6
            axes[count].text(
                j,
                i,
                f"{round(float(whole[i, j]), 2) + 0.0:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else INK,
            )
        blocks = [vectors.cosines(block, everywhere=False) for block in vectors.blocks]
        by_block = np.array([[cosines[i, j] for cosines in blocks] for i, j in pairs])
        rows = [f"{names[i]}, {names[j]}" for i, j in pairs]
        _draw(axes[count + 1], by_block, "cosines by block", labels, rows, "RdBu_r", (-1.0, 1.0))
    return figure


def _norms(vectors: TaskVectors, expert: int) -> NDArray[np.float64]:
    return np.array(
        [
            [vectors.norms((b, kind))[expert] if (b, kind) in vectors.products else np.nan for b in vectors.blocks]
            for kind in vectors.kinds
        ]
    )


def _draw(
    axes: Axes,
    values: NDArray[np.float64],
    title: str,
    columns: list[str],
    rows: list[str],
    colours: str,
    limits: tuple[float, float],
) -> None:
    image = axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="nearest")
    axes.set_title(title, fontsize=9, loc="left", color=INK)
    step = max(1, len(columns) // 10)
    shown = sorted({*range(0, len(columns), step), len(columns) - 1})
    axes.set_xticks(shown, [columns[i] for i in shown], fontsize=8, color=MUTED)
    axes.set_yticks(range(len(rows)), rows, fontsize=8, color=MUTED)
    axes.figure.colorbar(image, ax=axes, pad=0.01)
