"""report.html: one self-contained page. No script, nothing loaded from anywhere; figures are inlined."""

import base64
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from evomerge import files, strict_yaml
from evomerge.progress import duration
from evomerge.report import figures, population, surface_figures, tables, wording
from evomerge.report.results import Candidate, Interval, Results

_STYLE = """
:root { color-scheme: light; --ink: #222; --muted: #6b6b6b; --line: #e6e6e6; --blue: #0072B2; --picked: #D55E00; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 15px/1.55 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 28px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 44px 0 12px; }
.muted, .facts dt { color: var(--muted); }
.facts { display: flex; flex-wrap: wrap; gap: 8px 36px; margin: 20px 0; }
.facts div { display: flex; flex-direction: column-reverse; } .facts dt { font-size: 13px; }
.facts dd { margin: 0; font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; }
.verdicts { list-style: none; padding: 0; margin: 24px 0; }
.verdicts li { border-left: 4px solid #bbb; padding: 6px 14px; margin: 8px 0; }
.verdicts li.better { border-color: var(--blue); } .verdicts li.worse { border-color: var(--picked); }
img { max-width: 100%; height: auto; display: block; margin: 8px auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
table.scores { width: 100%; }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; vertical-align: bottom; }
th small { display: block; font-weight: 400; color: var(--muted); } td small { color: var(--muted); }
tr.group td { color: var(--muted); font-size: 13px; padding-top: 18px; }
tr.picked td { font-weight: 600; background: #fff5ee; } tr.picked small { font-weight: 400; }
.bar { display: block; position: relative; height: 5px; margin-top: 2px; min-width: 110px; background: #f4f4f4; }
.bar i { position: absolute; top: 1px; height: 3px; background: #a9c9e0; }
.bar b { position: absolute; top: 0; width: 3px; height: 5px; background: var(--blue); margin-left: -1.5px; }
.picked .bar i { background: #eec0a0; } .picked .bar b { background: var(--picked); }
pre { background: #f7f7f7; padding: 12px 14px; overflow-x: auto; font-size: 13px; line-height: 1.45; }
details { margin: 6px 0; } summary { cursor: pointer; } code { background: #f3f3f3; padding: 1px 5px; border-radius: 3px; }
"""


_FIGURES: Mapping[str, Callable[[Results], Figure | None]] = {
    "front": figures.front_figure,
    "hypervolume": figures.hypervolume_figure,
    "population": population.curves,
    "cells": population.maps,
    "surface": surface_figures.front,
    "predicted": surface_figures.predicted,
}


def write(results: Results, folder: Path, pairs: Sequence[Sequence[str]] = ()) -> None:
    """Write `report.html` and its figures as PNG into the study's `folder`; remove figures that have nothing to draw now.

    `pairs` are those of `figures.front_figure`.
    """
    drawn = _draw(results, pairs)
    files.write(folder / "report.html", _page(results, folder, drawn))
    for name in _FIGURES:
        path = folder / f"{name}.png"
        if name in drawn:
            files.write(path, drawn[name].png)
        else:
            path.unlink(missing_ok=True)


def page(results: Results, folder: Path) -> str:
    """Return the page. The commands on it name `folder`, the study's directory."""
    return _page(results, folder, _draw(results))


class _Image(NamedTuple):
    """A figure as PNG, and its width on a page in pixels: the size of the figure, not its number of pixels."""

    png: bytes
    width: int


def _draw(results: Results, pairs: Sequence[Sequence[str]] = ()) -> dict[str, _Image]:
    """Return the figures of `_FIGURES` that have something to draw, by name; drawing is what takes a report's time."""
    makers: dict[str, Callable[[Results], Figure | None]] = {**_FIGURES}
    makers["front"] = partial(figures.front_figure, pairs=pairs)
    drawn = {name: figure for name, draw in makers.items() if (figure := draw(results)) is not None}
    return {
        name: _Image(figures.png(figure), round(float(figure.get_figwidth()) * 96)) for name, figure in drawn.items()
    }


def _page(results: Results, folder: Path, drawn: Mapping[str, _Image]) -> str:
    sentences = tables.sentences(results)
    items = "".join(
        f'<li class="{comparison.verdict.split()[0]}">{escape(text)}</li>'
        for comparison, text in zip(results.comparisons, sentences, strict=False)
    )
    control = tables.control(results)
    lines = "".join(f"<li>{escape(text)}</li>" for text in tables.advice(results))
    following = f"<ul>{lines}</ul>" if lines else ""
    beyond = "" if control is None else f"<p>{escape(control)}</p>"
    missing = "".join(f'<p class="muted">{escape(text)}</p>' for text in tables.missing(results))
    trust = " ".join(filter(None, (tables.noise(results), tables.overfit(results))))
    facts = {
        "candidates evaluated": f"{results.evaluations}"
        + f", and {results.stopped} that lost their race ({results.spent:g} evaluations' worth of examples in all)"
        * bool(results.stopped),
        "failed": f"{results.failed}",
        "candidates on the front": f"{len(results.front)}",
        "of work": duration(sum(results.costs.values())),
    }
    shown = "".join(f"<div><dt>{what}</dt><dd>{number}</dd></div>" for what, number in facts.items())
    study = shlex.quote(str(folder))
    weights = shlex.quote(",".join(f"{o.name}={1 if i else 2}" for i, o in enumerate(results.objectives)))
    commands = f"evomerge pick {study} -o OUT\nevomerge pick {study} --weights {weights} -o OUT"
    costs = "".join(
        f"<tr><td>{escape(kind)}</td><td>{duration(seconds)}</td></tr>" for kind, seconds in results.costs.items()
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(results.name)}: evomerge report</title><style>{_STYLE}</style></head><body><main>
<h1>{escape(results.name)}</h1>
<p class="muted">{escape(sentences[-1])}</p>
<dl class="facts">{shown}</dl>
<p><strong>{escape(tables.warning(results) or "")}</strong></p>
<p>{escape(tables.choice(results))}</p>
<ul class="verdicts">{items}</ul>{beyond}{following}<p class="muted">{escape(trust)}</p>{missing}
<h2>The front, on unseen examples</h2>
{_image(drawn["front"], "Scores of the front and of the references on unseen examples")}
<h2>Scores on unseen examples</h2>
<p class="muted">In brackets and as bars: 95% intervals over the unseen examples. The picked model is marked. The last
column is the probability that no other candidate of the search is better for every objective.</p>
{_scores(results)}
<h2>Export a merge</h2>
<p>The first line writes the picked model as a checkpoint, the second the best one for these weights;
<code>evomerge pick --help</code> explains floors and wishes.</p>
<pre>{escape(commands)}</pre>
<h2>What was searched</h2>
{_objectives(results)}
<details><summary>Settings of the study</summary><pre>{escape(strict_yaml.text(dict(results.study)))}</pre></details>
<h2>Recipes</h2>
{_recipes(results)}
{_progress(drawn)}{_population(results, drawn)}{_surface(results, study, weights, drawn)}<h2>Where the time went</h2>
<table>{costs}</table>
<p class="muted">Summed over workers. Digest of all proposals and scores: <code>{escape(results.digest)}</code></p>
</main></body></html>
"""


def _image(image: _Image, text: str) -> str:
    data = base64.b64encode(image.png).decode("ascii")
    return f'<img width="{image.width}" alt="{escape(text)}" src="data:image/png;base64,{data}">'


def _progress(drawn: Mapping[str, _Image]) -> str:
    """Return the section on the hypervolume along the search; empty without hypervolumes."""
    if "hypervolume" not in drawn:
        return ""
    image = _image(drawn["hypervolume"], "Hypervolume on the search examples against evaluations")
    return f"<h2>Progress of the search</h2>\n{image}\n"


def _scores(results: Results) -> str:
    """Return the table of references and front; bars run from the lowest end of a column's intervals to the highest."""
    models = [*results.references.values(), *results.front]
    mean = wording.mean_metric(results)
    columns = [
        (o.name, wording.metric(o.report), [model.report[o.name] for model in models]) for o in results.objectives
    ]
    columns.append(("mean", mean, [model.mean for model in models]))
    head = "".join(f"<th>{escape(n)}<small>{escape(m)}{wording.unit(m)}</small></th>" for n, m, _ in columns)
    rows = []
    for i, model in enumerate(models):
        if i in (0, len(results.references)):
            group = "without a search" if i < len(results.references) else "the front"
            rows.append(f'<tr class="group"><td colspan="{len(columns) + 2}">{group}</td></tr>')
        cells = "".join(f"<td>{_cell(values[i], metric, values)}</td>" for _, metric, values in columns)
        cells += f"<td>{'' if model.on_front is None else f'{model.on_front:.0%}'}</td>"
        chosen = ' class="picked"' if model.recipe_id == results.picked else ""
        rows.append(f"<tr{chosen}><td>{escape(model.label)}{' (picked)' if chosen else ''}</td>{cells}</tr>")
    head += "<th>on the front</th>"
    return f'<div class="scroll"><table class="scores"><tr><th>model</th>{head}</tr>{"".join(rows)}</table></div>'


def _cell(numbers: Interval, metric: str, column: list[Interval]) -> str:
    lowest, highest = min(low for _, low, _ in column), max(high for *_, high in column)
    span = (highest - lowest) or 1.0
    value, low, high = (100 * (number - lowest) / span for number in numbers)
    text, _, rest = wording.interval(numbers, metric).partition(" ")
    bar = f'<i style="left:{low:.1f}%;width:{high - low:.1f}%"></i><b style="left:{value:.1f}%"></b>'
    return f'{text} <small>{rest}</small><span class="bar">{bar}</span>'


def _population(results: Results, drawn: Mapping[str, _Image]) -> str:
    """Return the section on a population of models; empty without one."""
    text = tables.population(results)
    if text is None:
        return ""
    section = f"<h2>The population</h2>\n<p>{escape(text)}</p>\n"
    if "population" in drawn:
        section += f"""<p class="muted">On the search examples. Coverage is the mean over examples of the best member's score; entropy, in
bits, measures how much the members differ: 0 if all agree, 1 if half of them solve each example.</p>
{_image(drawn["population"], "Coverage and entropy of the population against evaluations")}
"""
    if "cells" in drawn:
        section += f"""<p class="muted">Cells hold their best model; the star is the best of all. Empty cells are blank.</p>
{_image(drawn["cells"], "Qualities of the best models by cell")}
"""
    return section


def _surface(results: Results, study: str, weights: str, drawn: Mapping[str, _Image]) -> str:
    """Return the section on the surface of a study's surrogates; empty without one."""
    text, predicted_front = tables.surface(results), results.surface
    if text is None or predicted_front is None:
        return ""
    section = f"<h2>The surface</h2>\n<p>{escape(text)}</p>\n"
    if predicted_front.fits:
        rows = "".join(
            f"<tr><td>{escape(o.name)}: {escape(wording.metric(o.search))}</td><td>{escape(fit.rung)}</td><td>{fit.r2:.2f}</td>"
            f"<td>{fit.coverage:.0%}</td><td>{'-' if fit.standard_error is None else wording.value(fit.standard_error, o.search)}</td></tr>"
            for o in results.objectives
            if (fit := predicted_front.fits.get(o.name)) is not None
        )
        section += (
            "<table><tr><th>objective</th><th>surrogate</th><th>R²</th><th>coverage</th><th>standard error</th></tr>"
            f"{rows}</table>\n"
        )
    if predicted_front.refused is None:
        section += f"""<p>It predicts a merge without an evaluation; <code>--verify</code> evaluates the merge:</p>
<pre>{escape(f"evomerge pick {study} --surface --tchebycheff {weights} --verify")}</pre>
"""
    if "surface" in drawn:
        section += f"""<p class="muted">Predictions for the search examples; rings are measured there.</p>
{_image(drawn["surface"], "The predicted front with 90% intervals, and what was evaluated")}
"""
    if "predicted" in drawn:
        section += f"""<p class="muted">Each candidate as predicted from all others, with 90% intervals; orange where the interval misses the
measured score. Coverage is the share of intervals that contain it, calibrated on the others. The standard error is that of
a candidate's score, over the search examples.</p>
{_image(drawn["predicted"], "Predicted against measured scores")}
"""
    return section


def _objectives(results: Results) -> str:
    rows = "".join(
        f"<tr><td>{escape(o.name)}</td><td>{escape(wording.metric(o.search))} on {o.examples[0]}</td>"
        f"<td>{escape(wording.metric(o.report))} on {o.examples[1]}</td></tr>"
        for o in results.objectives
    )
    return f"<table><tr><th>objective</th><th>searched by</th><th>reported, unseen</th></tr>{rows}</table>"


def _recipes(results: Results) -> str:
    def details(model: Candidate, name: str) -> str:
        body = escape(strict_yaml.text(model.recipe))
        return (
            f"<details><summary>{escape(name)} <small class=muted>{escape(model.recipe_id[:12])}</small></summary>"
            f"<pre>{body}</pre></details>"
        )

    front = (
        details(model, f"{model.label} (picked)" if model.recipe_id == results.picked else model.label)
        for model in sorted(results.front, key=lambda model: model.recipe_id != results.picked)
    )
    references = (
        details(model, f"{name} (picked)" if model.recipe_id == results.picked else name)
        for name, model in results.references.items()
    )
    return "".join([*front, *references])
