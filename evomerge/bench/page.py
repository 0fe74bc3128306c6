"""Page: a bench as a table for terminals and Markdown, a figure, and one HTML file that loads nothing."""

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from evomerge import files
from evomerge.bench.rows import AVERAGE
from evomerge.bench.summary import Line, Summary, order
from evomerge.report import figures, wording

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;font-size:13px}td,th{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #e6e6e6}"
    "td:first-child,th:first-child{text-align:left}div{overflow-x:auto}img{max-width:100%}"
)
_ORIGIN = "For metrics without a zero, such as a log likelihood, 0 is the base and 1 the expert."
_PAIRED = (
    "`above average` is the normalised score minus the plain average's, paired, at {:.2%}, so that all comparisons together err in at most 5% of "
    "benches; `better` and `worse` are shown."
)
_CPU = "CPU s: merging the model once and scoring it on the unseen examples, with nothing kept from other rows."
_FEW = 24  # unseen examples of a task below which a bench says that intervals are wide


def write(summary: Summary, folder: Path) -> None:
    """Write `bench.json`, `bench.md`, `bench.png` and `bench.html` into the bench's folder."""
    png = figures.png(figure(summary))
    files.write(folder / "bench.json", summary.model_dump_json(indent=1) + "\n")
    files.write(folder / "bench.md", markdown(summary))
    files.write(folder / "bench.png", png)
    files.write(folder / "bench.html", html(summary, png))


def cells(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table, as text; rows without scores are left out: see `missing`."""
    tasks = [name for name in summary.metrics if name not in summary.held_out]
    head = [
        "model",
        *(f"{name}: {wording.metric(summary.metrics[name])}{wording.unit(summary.metrics[name])}" for name in tasks),
        "normalised",
        "above average",
        *(f"{name}, held out: above base" for name in summary.held_out),
        "CPU s",
        "search s",
        "evaluations",
        "examples",
        "MB read",
    ]
    rows = []
    for line in order(summary):
        if line.reason is None:
            scores = [wording.value(line.report[name][0], summary.metrics[name]) for name in tasks]
            forgotten = [
                wording.interval(line.held_out[name], summary.metrics[name], sign=True)
                if name in line.held_out
                else "-"
                for name in summary.held_out
            ]
            price = f"{line.cpu_s:.2f}", f"{line.search_s:.1f}", str(line.evaluations), str(line.examples)
            rows.append(
                [
                    line.name,
                    *scores,
                    _plain(line.normalised),
                    _beyond(line),
                    *forgotten,
                    *price,
                    f"{line.read_bytes / 1e6:.1f}",
                ]
            )
    return head, rows


def sentences(summary: Summary) -> list[str]:
    """Return what the numbers are, and what they are not."""
    searched = sum(line.kind == "searched" and line.reason is None for line in summary.lines)
    unseen = {name: summary.examples[name][1] for name in summary.metrics}
    own = ", ".join(f"{task}: {expert}" for task, expert in summary.experts.items())
    numbers = ", ".join(f"{number} of {name}" for name, number in unseen.items())
    lines = [
        f"Scores are on examples that nothing was chosen by: {numbers}.",
        f"Normalised: the mean over tasks of a score divided by that of the task's own expert ({own}). {_ORIGIN}",
        f"In brackets: 95% intervals over the unseen examples, for these experts and this search. {_PAIRED.format(summary.level)}",
        f"{_CPU} Search s: the evaluations of its search, {summary.budget} at most. A model of the pool has {summary.model_bytes / 1e6:.1f} MB.",
    ]
    lines += [f"Not in the normalised score: {name}, as {reason}." for name, reason in summary.left_out.items()]
    if small := [name for name, number in unseen.items() if number < _FEW]:
        lines.append(f"Few unseen examples of {', '.join(small)}: intervals of fewer than {_FEW} say little.")
    if not searched:
        lines.append("Nothing was searched.")
    return lines


def missing(summary: Summary) -> list[str]:
    """Return a line for each row that could not be had, with its reason."""
    return [f"{line.name}: {line.reason}" for line in order(summary) if line.reason is not None]


def markdown(summary: Summary) -> str:
    """Return the bench as Markdown."""
    head, rows = cells(summary)
    lines = [" | ".join(row) for row in (head, ["---", *["---:"] * (len(head) - 1)], *rows)]
    table = "\n".join(f"| {line} |" for line in lines)
    prose = "\n\n".join(sentences(summary))
    lacking = "".join(f"- {line}\n" for line in missing(summary))
    return f"# Bench: {summary.name}\n\n{prose}\n\n{table}\n" + (
        f"\nNot possible here:\n\n{lacking}" if lacking else ""
    )


def html(summary: Summary, png: bytes) -> str:
    """Return the bench as one page."""
    head, rows = cells(summary)
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    prose = "".join(f"<p>{escape(text.replace('`', ''))}</p>\n" for text in sentences(summary))
    lacking = "".join(f"<li>{escape(text)}</li>" for text in missing(summary))
    recipes = "".join(
        f"<dt>{escape(line.name)}</dt><dd><code>{escape(json.dumps(line.recipe))}</code></dd>\n"
        for line in order(summary)
        if line.recipe is not None
    )
    picture = base64.b64encode(png).decode("ascii")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Bench: {escape(summary.name)}</title>\n'
        f"<style>{_STYLE}</style></head><body>\n<h1>Bench: {escape(summary.name)}</h1>\n"
        f'<img alt="Normalised scores of all models, with intervals; the table has the numbers" src="data:image/png;base64,{picture}">\n'
        f"<div><table><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table></div>\n{prose}"
        + (f"<h2>Not possible here</h2>\n<ul>{lacking}</ul>\n" if lacking else "")
        + f"<details><summary>Recipes</summary><dl>{recipes}</dl></details>\n</body></html>\n"
    )


def figure(summary: Summary) -> Figure:
    """Return the normalised scores with their intervals: methods with their defaults hollow, searched filled; the average as a line."""
    lines = [line for line in order(summary) if line.normalised is not None]
    places: dict[str, int] = {}
    for line in lines:
        places.setdefault(line.method or line.name, len(places))
    drawn = Figure(figsize=(7.2, 1.2 + 0.24 * max(len(places), 4)), layout="constrained")
    axes = drawn.subplots()
    for line in lines:
        assert line.normalised is not None
        value, low, high = line.normalised
        searched = line.kind == "searched"
        colour = figures.INK if line.kind == "reference" else figures.VERMILION if searched else figures.BLUE
        place = places[line.method or line.name] + (0.17 if searched else -0.17 if line.kind == "default" else 0)
        axes.plot([low, high], [place, place], color=colour, linewidth=1, alpha=0.6)
        axes.plot(
            [value],
            [place],
            "o",
            color=colour,
            markersize=4.5,
            markerfacecolor="white" if line.kind == "default" else colour,
        )
        if line.name == AVERAGE:
            axes.axvline(value, color=figures.MUTED, linewidth=0.8, linestyle="--")
    axes.set_yticks(list(places.values()), [figures.plain(name) for name in places])
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.set_xlabel("score on unseen examples, as a share of each task's own expert")
    figures.style(axes)
    marks = [
        Line2D([], [], marker="o", linestyle="", color=colour, markerfacecolor=fill, markersize=4.5, label=label)
        for colour, fill, label in (
            (figures.INK, figures.INK, "reference"),
            (figures.BLUE, "white", "the paper's defaults"),
            (figures.VERMILION, figures.VERMILION, f"searched, {summary.budget} evaluations"),
        )
    ]
    axes.legend(handles=marks, loc="lower left", fontsize=8, frameon=False, bbox_to_anchor=(0, 1), ncols=3)
    return drawn


def _plain(numbers: Sequence[float] | None) -> str:
    return "-" if numbers is None else "{:.3f} [{:.3f}, {:.3f}]".format(*numbers)


def _beyond(line: Line) -> str:
    if line.beyond_average is None or line.name == AVERAGE:
        return "-"
    return f"{'{:+.3f} [{:+.3f}, {:+.3f}]'.format(*line.beyond_average)} {line.verdict}".rstrip()
