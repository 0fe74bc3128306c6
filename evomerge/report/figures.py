"""Figures: the front on unseen examples, and the progress of the search. PNG at 150 dots an inch, SVG.

Colours are those of Okabe and Ito, which suit colour-blind readers; markers differ too.
"""

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from evomerge.errors import StudyError
from evomerge.report import wording
from evomerge.report.results import Candidate, Objective, Results

_DPI = 150
INK, MUTED, _GRID = "#222222", "#6b6b6b", "#e6e6e6"
BLUE, VERMILION = "#0072B2", "#D55E00"
MOST_PAIRS = 6  # scatters of pairs stay readable for up to four objectives

_LEADER: dict[str, Any] = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
"""Style of a line from a name to its mark."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class _Look:
    colour: str
    marker: str
    size: float


_FRONT = _Look(BLUE, "o", 4.5)
_PICKED = _Look(VERMILION, "*", 13)
_BASE = _Look(INK, "X", 7)
_EXPERT = _Look("#009E73", "^", 7)
_OTHERS = tuple(_Look(colour, marker, 6.5) for colour, marker in (("#CC79A7", "s"), ("#E69F00", "D"), ("#56B4E9", "P")))


class NotebookFigure(Figure):
    """A figure that a notebook shows inline, without pyplot."""

    def _repr_png_(self) -> bytes:
        return png(self)


def png(figure: Figure) -> bytes:
    """Return the figure as PNG: the same bytes for the same figure."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def svg(figure: Figure) -> bytes:
    """Return the figure as SVG, its text as outlines: the same bytes for the same figure."""
    out = io.BytesIO()
    with rc_context({"svg.hashsalt": "evomerge"}):
        figure.savefig(out, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def check_pairs(pairs: Sequence[Sequence[str]], tasks: Sequence[str]) -> None:
    """Raise `StudyError` unless each of `pairs` is two different names of `tasks`."""
    for pair in pairs:
        if len(set(pair)) != 2 or len(pair) != 2 or not {*pair} <= {*tasks}:
            raise StudyError(
                f"pair `{','.join(pair)}`: expected two of the tasks {', '.join(tasks)}, such as `maths,code`"
            )


def front_figure(results: Results, pairs: Sequence[Sequence[str]] = ()) -> Figure:
    """Draw the front and the references on the report split, with 95% intervals.

    One scatter for two objectives; for more, every objective side by side, and a scatter for each of `pairs`, by the names of
    objectives. Without them: for all pairs of up to four objectives. Raises `StudyError` for a pair of other names.
    """
    objectives = results.objectives
    by_name = {objective.name: objective for objective in objectives}
    check_pairs(pairs, list(by_name))
    if len(objectives) == 1:
        return _one_objective(results)
    drawn = [(by_name[x], by_name[y]) for x, y in pairs] or [*itertools.combinations(objectives, 2)]
    if not pairs and len(drawn) > MOST_PAIRS:
        lines = len(results.references) + len(results.front)
        figure = NotebookFigure(figsize=(10, max(4.4, 1.2 + 0.12 * lines)), layout="constrained")
        axes = figure.subplots()
        _number(axes, results, _parallel(axes, results))
        _legend(figure, results)
        return figure
    if len(objectives) == 2:
        figure = NotebookFigure(figsize=(7.6, 5.4), layout="constrained")
        drawn, panels = drawn[:1], [figure.subplots()]
    else:
        rows = -(-len(drawn) // 3)
        figure = NotebookFigure(figsize=(11, 3.9 * rows + 3.4), layout="constrained")
        grid = figure.add_gridspec(rows + 1, 3, height_ratios=[1.25] * rows + [1])
        panels = [figure.add_subplot(grid[i // 3, i % 3]) for i in range(len(drawn))]
        _parallel(figure.add_subplot(grid[rows, :]), results)
    for axes, pair in zip(panels, drawn, strict=True):
        _scatter(axes, results, pair)
    _legend(figure, results)
    figure.draw_without_rendering()  # places the panels, which the positions of names depend on
    figure.set_layout_engine("none")  # names do not change the layout
    for axes, pair in zip(panels, drawn, strict=True):
        _name(axes, figure.dpi / 72, results, pair)
    return figure


def hypervolume_figure(results: Results) -> Figure | None:
    """Draw the hypervolume of the candidates so far, on the search split, with the references' level; None without them."""
    if results.hypervolume is None:
        return None
    figure = NotebookFigure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    style(axes)
    history = results.hypervolume.history
    axes.step(range(1, len(history) + 1), history, where="post", color=BLUE, linewidth=1.8)
    axes.fill_between(range(1, len(history) + 1), history, step="post", color=BLUE, alpha=0.08, linewidth=0)
    level = results.hypervolume.search_references
    axes.axhline(level, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.annotate(
        f"base, experts, average and scale sweep together: {wording.volume(level)}",
        (1, level),
        xycoords=("axes fraction", "data"),
        xytext=(-6, -4),
        textcoords="offset points",
        ha="right",
        va="top",
        color=MUTED,
        fontsize=9,
    )
    axes.set_xlim(1, max(len(history), 2))
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("evaluations", color=INK)
    counts = sorted({objective.examples[0] for objective in results.objectives})
    spread = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    axes.set_ylabel(f"hypervolume on {spread} search examples a task", color=INK)
    return figure


def _one_objective(results: Results) -> Figure:
    """Draw a dot plot with a row for each model."""
    [objective] = results.objectives
    models = [*results.references.values(), *results.front]
    figure = NotebookFigure(figsize=(7.2, 1.2 + 0.32 * len(models)), layout="constrained")
    axes = figure.subplots()
    style(axes)
    for row, model in enumerate(models):
        look = _look(results, model)
        (x,), (low,), (high,) = (np.array([part]) for part in _scaled(model, objective))
        axes.plot([low, high], [row, row], color=look.colour, linewidth=1.4, alpha=0.6)
        axes.plot(x, row, linestyle="", marker=look.marker, color=look.colour, markersize=look.size)
    axes.set_yticks(range(len(models)), [plain(model.name) for model in models])
    axes.invert_yaxis()
    axes.set_xlabel(_label(objective))
    return figure


def _scatter(axes: Axes, results: Results, pair: tuple[Objective, Objective]) -> None:
    """Draw the front and the references over two objectives, references named beside their marks."""
    style(axes)
    others = [point for point in results.front if point.recipe_id != results.picked]
    chosen = [point for point in results.front if point.recipe_id == results.picked]
    _marks(axes, others, pair, _FRONT, intervals=0.16)
    for reference in results.references.values():
        _marks(axes, [reference], pair, _look(results, reference), intervals=0.55)
    _marks(axes, chosen, pair, _PICKED, intervals=0.9)
    axes.set_xlabel(_label(pair[0]), color=INK)
    axes.set_ylabel(_label(pair[1]), color=INK)
    axes.margins(0.08)


def _marks(
    axes: Axes, models: Sequence[Candidate], pair: tuple[Objective, Objective], look: _Look, intervals: float
) -> None:
    if not models:
        return
    x, y = (np.array([_scaled(model, objective) for model in models]).T for objective in pair)
    level = 4 if look is _PICKED else 3
    lines: dict[str, Any] = {"color": look.colour, "zorder": level - 0.5, "alpha": intervals, "linewidth": 1}
    axes.hlines(y[0], x[1], x[2], **lines)
    axes.vlines(x[0], y[1], y[2], **lines)
    axes.plot(
        x[0], y[0], linestyle="", marker=look.marker, color=look.colour, markersize=look.size,
        markeredgecolor="white", markeredgewidth=0.7, zorder=level,
    )  # fmt: skip


def _name(axes: Axes, unit: float, results: Results, pair: tuple[Objective, Objective]) -> None:
    """Write names, the front's numbers too, where they overlap the fewest marks and other names, with a line to a mark that is far.

    `unit` is pixels per point.
    """
    models = [*results.references.values(), *results.front]
    marks = axes.transData.transform([[_scaled(model, objective)[0] for objective in pair] for model in models])
    frame = axes.get_window_extent()
    taken: list[tuple[float, float, float, float]] = []
    longest_first = sorted(zip(models, marks, strict=True), key=lambda pair: -len(pair[0].name))
    for model, (x, y) in longest_first:
        size = 6 if _look(results, model) is _FRONT else 8.5
        width, height = 0.58 * size * len(model.name) * unit, 1.2 * size * unit

        def cost(offset: tuple[float, float, str], at: Point = (x, y), extent: Point = (width, height)) -> float:
            box = _box(at, offset, extent, unit)
            inside = ((marks > np.array(box[:2]) - 3) & (marks < np.array(box[2:]) + 3)).all(axis=1)
            crossed = sum(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken)
            outside = bool(box[0] < frame.x0 or box[2] > frame.x1 or box[1] < frame.y0 or box[3] > frame.y1)
            return int(inside.sum()) + 8 * crossed + 20 * outside + 0.03 * (abs(offset[0]) + abs(offset[1]))

        best = min(_OFFSETS, key=cost)
        taken.append(_box((x, y), best, (width, height), unit))
        colour = tuple(0.72 * part for part in to_rgb(_look(results, model).colour))
        axes.annotate(
            plain(model.name), tuple(axes.transData.inverted().transform((x, y))), xytext=best[:2],
            textcoords="offset points", ha=best[2], va="center", fontsize=size, color=colour,
            zorder=5, path_effects=[withStroke(linewidth=2.2, foreground="white")],
            in_layout=False, arrowprops=_LEADER | {"color": colour} if abs(best[0]) + abs(best[1]) > _NEAR else None,
        )  # fmt: skip


_NEAR = 16
"""Points from a mark, right and up together, beyond which a line leads from a name to it."""
_DIAGONAL = [(6, 9), (4, 14), (16, 18), (26, 28), (40, 44)]
_BESIDE = [(8, 0), (18, 0), (30, 0), *((dx, dy) for dx, up in _DIAGONAL for dy in (up, -up))]
_OFFSETS = [
    *((dx, dy, "left") for dx, dy in _BESIDE),
    *((-dx, dy, "right") for dx, dy in _BESIDE),
    *((0, dy, "center") for dy in (13, -13, 24, -24)),
]
"""Offsets of a name from its mark: right and up in points, and the side of the name there."""


def _box(at: Point, offset: tuple[float, float, str], size: Point, unit: float) -> tuple[float, float, float, float]:
    shift = {"left": 0.0, "right": 1.0, "center": 0.5}[offset[2]]
    left, middle = at[0] + offset[0] * unit - shift * size[0], at[1] + offset[1] * unit
    return left, middle - size[1] / 2, left + size[0], middle + size[1] / 2


def _parallel(axes: Axes, results: Results) -> NDArray[np.float64]:
    """Draw each model as a line over all objectives, each scaled from the worst model to the best: return the right ends."""
    models = [*results.references.values(), *results.front]
    table = np.array([[_scaled(model, objective)[0] for objective in results.objectives] for model in models])
    low, high = table.min(axis=0), table.max(axis=0)
    heights = (table - low) / np.where(high > low, high - low, 1)
    columns = np.arange(len(results.objectives))
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, colors=INK, labelsize=9)
    axes.vlines(columns, 0, 1, color="#bbbbbb", linewidth=1, zorder=1)
    for model, line in zip(models, heights, strict=True):
        look = _look(results, model)
        faint = look is _FRONT
        axes.plot(
            columns, line, color=look.colour, marker=look.marker, markersize=look.size * (0.6 if faint else 0.8),
            linewidth={_FRONT: 0.8, _PICKED: 2.4}.get(look, 1.3), alpha=0.25 if faint else 1, markeredgecolor="white",
            markeredgewidth=0.5, zorder={_FRONT: 2, _PICKED: 5}.get(look, 3), clip_on=False,
        )  # fmt: skip
    for column, objective in enumerate(results.objectives):
        for height, number in ((0, low[column]), (1, high[column])):
            axes.annotate(
                f"{number:.1f}" if wording.is_share(objective.report) else f"{number:.3f}", (column, height),
                xytext=(0, 7 if height else -7), textcoords="offset points", ha="center", va="bottom" if height else "top",
                fontsize=8.5, color=MUTED, annotation_clip=False,
            )  # fmt: skip
    axes.set_xticks(columns, [_label(objective, lines=True) for objective in results.objectives])
    axes.tick_params(axis="x", pad=14)
    axes.set_yticks([])
    axes.set_xlim(-0.25, len(columns) - 0.75)
    axes.set_ylim(-0.02, 1.12)
    right: NDArray[np.float64] = heights[:, -1]
    return right


def _number(axes: Axes, results: Results, ends: NDArray[np.float64]) -> None:
    """Write the models' names at the right ends of their lines, one above the other."""
    models = [*results.references.values(), *results.front]
    gap, last, lowest = min(0.05, 1.1 / len(models)), len(results.objectives) - 1, -1.0
    order = np.argsort(ends, kind="stable")
    for rank, i in enumerate(order):
        lowest = max(lowest + gap, min(ends[i], 1.1 - gap * (len(order) - rank)))
        axes.annotate(
            plain(models[i].name, 18), (last, ends[i]), xytext=(last + 0.15, lowest), va="center", fontsize=6.5, color=INK,
            annotation_clip=False, arrowprops=_LEADER | {"color": MUTED, "relpos": (0, 0.5)},
        )  # fmt: skip
    axes.set_xlim(-0.25, last + 0.75)


def _legend(figure: Figure, results: Results) -> None:
    entries = {"front": _FRONT, "picked model": _PICKED} if results.front else {}
    for reference in results.references.values():
        look = _look(results, reference)
        entries["expert" if look is _EXPERT else reference.name] = look
    handles = [
        Line2D(
            [], [], linestyle="", marker=look.marker, color=look.colour, markersize=look.size, markeredgecolor="white"
        )
        for look in entries.values()
    ]
    figure.legend(
        handles, [plain(name) for name in entries], loc="outside upper left", ncols=6, frameon=False, fontsize=9,
        handletextpad=0.3, columnspacing=1.4, labelcolor=INK,
    )  # fmt: skip


def _look(results: Results, model: Candidate) -> _Look:
    """Return the style of a model: picked, front, base, expert, or another reference."""
    others = itertools.cycle(_OTHERS)
    for reference in results.references.values():
        look = _BASE
        if reference.recipe != "base":
            is_expert = isinstance(reference.recipe, dict) and "expert" in reference.recipe
            look = _EXPERT if is_expert else next(others)
        if reference is model:
            return look
    return _PICKED if model.recipe_id == results.picked else _FRONT


def _scaled(model: Candidate, objective: Objective) -> tuple[float, float, float]:
    value, low, high = (factor(objective.report) * number for number in model.report[objective.name])
    return value, low, high


def _label(objective: Objective, *, lines: bool = False) -> str:
    where = f"on {wording.examples(objective, 'report')}"
    return f"{label(objective.name, objective.report)}{chr(10) if lines else ' '}{where}"


def label(name: str, metric: str) -> str:
    """Return the label of an axis: an objective's name and its `metric` with the unit."""
    return f"{plain(name, 18)}: {plain(wording.metric(metric), 24)}{wording.unit(metric)}"


def factor(metric: str) -> float:
    """Return the factor with which scores of `metric` are shown: 100 for shares."""
    return 100 if wording.is_share(metric) else 1


def plain(text: str, longest: int = 32) -> str:
    """Return a name as literal text for matplotlib, cut to the `longest` length."""
    short = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return short.replace("$", r"\$")


def style(axes: Axes) -> None:
    """Apply the common style: a light grid, small grey tick labels, no frame at the top and the right."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#bbbbbb")
    axes.tick_params(length=3, colors=MUTED, labelsize=8.5)
    axes.grid(color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_fontsize(9.5)
    axes.yaxis.label.set_fontsize(9.5)
