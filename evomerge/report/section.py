"""Section: the report as plain HTML, verdicts first. It stands in the saved page, and can be read and printed without its scripts.

No style and no script of its own, nothing loaded from anywhere; pictures are inlined.
"""

import base64
import re
import shlex
from collections.abc import Mapping
from html import escape
from math import comb
from pathlib import Path

from evomerge import strict_yaml
from evomerge.progress import duration
from evomerge.report import tables, wording
from evomerge.report.data import Interval
from evomerge.report.drawn import Drawn
from evomerge.report.results import Candidate, Results

_CODE = re.compile("`([^`]+)`")
_SMALL = 600
"""Pixels of width up to which a figure is read on a phone without a scroll: a wider one keeps its size."""


def section(results: Results, folder: Path, drawn: Mapping[str, Drawn]) -> str:
    """Return the report as the content of an element. Its commands name `folder`, the study's directory."""
    sentences = tables.sentences(results)
    items = "".join(
        f'<li class="{comparison.verdict.split()[0]}">{escape(text)}</li>'
        for comparison, text in zip(results.comparisons, sentences, strict=False)
    )
    control = tables.control(results)
    lines = "".join(f"<li>{_prose(text)}</li>" for text in tables.advice(results))
    following = f"<ul>{lines}</ul>" if lines else ""
    beyond = "" if control is None else f"<p>{escape(control)}</p>"
    missing = "".join(f'<p class="muted">{escape(text)}</p>' for text in tables.missing(results))
    warning = tables.warning(results)
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
        f"<tr><th scope='row'>{escape(kind)}</th><td>{duration(seconds)}</td></tr>"
        for kind, seconds in results.costs.items()
    )
    return f"""{"" if warning is None else f'<p class="warning">{escape(warning)}</p>'}
<p class="choice">{_prose(tables.choice(results))}</p>
<ul class="verdicts">{items}</ul>
{beyond}{following}<p class="muted">{escape(trust)}</p>{missing}
<dl class="facts">{shown}</dl>
<p class="muted">{escape(sentences[-1])}</p>
<h2>Scores on unseen examples</h2>
<p class="muted">In brackets and as bars: 95% intervals over the unseen examples. The picked model is marked. The last
column is the probability that no other candidate of the search is better for every objective.</p>
{_scores(results)}
<h2>The front, on unseen examples</h2>
{_image(drawn["front"], "Scores of the front and of the references on unseen examples; the table above has the numbers")}
<h2>Export a merge</h2>
<p>The first line writes the picked model as a checkpoint, the second the best one for these weights;
<code>evomerge pick --help</code> explains floors and wishes.</p>
<pre>{escape(commands)}</pre>
<h2>What was searched</h2>
{_objectives(results)}
<details><summary>Settings of the study</summary><pre>{escape(strict_yaml.text(dict(results.study)))}</pre></details>
<h2>Recipes</h2>
{_recipes(results)}
{_progress(drawn)}{_population(results, drawn)}{_surface(results, study, weights, drawn)}{_gains(results, drawn)}<h2>Where the time went</h2>
<div class="scroll" tabindex="0"><table><tbody>{costs}</tbody></table></div>
<p class="muted">Summed over workers. Digest of all proposals and scores: <code>{escape(results.digest)}</code></p>
"""


def _prose(text: str) -> str:
    """Return a text whose parts in backquotes are code."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _image(drawn: Drawn, text: str) -> str:
    data = base64.b64encode(drawn.small).decode("ascii")
    small = " small" * (drawn.width <= _SMALL)
    return (
        f'<div class="scroll" tabindex="0"><img class="figure{small}" width="{drawn.width}" height="{drawn.height}" '
        f'alt="{escape(text)}" src="data:image/png;base64,{data}"></div>'
    )


def _table(head: str, rows: str, more: str = "") -> str:
    return f'<div class="scroll" tabindex="0"><table{more}><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _head(*names: str) -> str:
    return "".join(f'<th scope="col">{name}</th>' for name in names)


def _progress(drawn: Mapping[str, Drawn]) -> str:
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
    heads = [f"{escape(n)} <small>{escape(m)}{wording.unit(m)}</small>" for n, m, _ in columns]
    rows = []
    for i, model in enumerate(models):
        if i in (0, len(results.references)):
            group = "without a search" if i < len(results.references) else "the front"
            rows.append(f'<tr class="group"><th scope="rowgroup" colspan="{len(columns) + 2}">{group}</th></tr>')
        cells = "".join(f"<td>{_cell(values[i], metric, values)}</td>" for _, metric, values in columns)
        cells += f"<td>{'' if model.on_front is None else f'{model.on_front:.0%}'}</td>"
        chosen = ' class="picked"' if model.recipe_id == results.picked else ""
        rows.append(
            f'<tr{chosen}><th scope="row">{escape(model.label)}{" (picked)" if chosen else ""}</th>{cells}</tr>'
        )
    return _table(_head("model", *heads, "on the front"), "".join(rows), ' class="scores"')


def _cell(numbers: Interval, metric: str, column: list[Interval]) -> str:
    """Return a score, its interval, and both as a bar."""
    lowest, highest = min(low for _, low, _ in column), max(high for *_, high in column)
    span = (highest - lowest) or 1.0
    value, low, high = (100 * (number - lowest) / span for number in numbers)
    text, _, rest = wording.interval(numbers, metric).partition(" ")
    bar = (
        f'<rect x="{low:.1f}%" y="1" width="{high - low:.1f}%" height="3"/><circle cx="{value:.1f}%" cy="2.5" r="2.5"/>'
    )
    return f'{text} <small>{rest}</small><svg class="span" aria-hidden="true">{bar}</svg>'


def _population(results: Results, drawn: Mapping[str, Drawn]) -> str:
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


def _surface(results: Results, study: str, weights: str, drawn: Mapping[str, Drawn]) -> str:
    """Return the section on the surface of a study's surrogates; empty without one."""
    text, predicted_front = tables.surface(results), results.surface
    if text is None or predicted_front is None:
        return ""
    section = f"<h2>The surface</h2>\n<p>{escape(text)}</p>\n"
    if predicted_front.fits:
        rows = "".join(
            f"<tr><th scope='row'>{escape(o.name)}: {escape(wording.metric(o.search))}</th><td>{escape(fit.rung)}</td><td>{fit.r2:.2f}</td>"
            f"<td>{fit.coverage:.0%}</td><td>{'-' if fit.standard_error is None else wording.value(fit.standard_error, o.search)}</td></tr>"
            for o in results.objectives
            if (fit := predicted_front.fits.get(o.name)) is not None
        )
        section += _table(_head("objective", "surrogate", "R²", "coverage", "standard error"), rows) + "\n"
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


def _gains(results: Results, drawn: Mapping[str, Drawn]) -> str:
    """Return the section on what one expert more would add; empty where the study does not ask for it."""
    text, found = tables.gains(results), results.gains
    if text is None or found is None:
        return ""
    section = f"<h2>Another expert?</h2>\n<p>{escape(text)}</p>\n"
    if "gains" in drawn:
        counts = ", ".join(
            f"{k} expert{'s' * (k > 1)}: {len(values)} of {comb(found.experts, k)}"
            for k, values in zip(found.sizes, found.values, strict=True)
        )
        section += f"""<p class="muted">Dots are single averages ({counts}), circles their means with 95% intervals, the diamond the prediction.</p>
{_image(drawn["gains"], "Scores of averages by their number of experts, and the line floor + c / k")}
"""
    return section


def _objectives(results: Results) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escape(o.name)}</th><td>{escape(wording.metric(o.search))} on {o.examples[0]}</td>"
        f"<td>{escape(wording.metric(o.report))} on {o.examples[1]}</td></tr>"
        for o in results.objectives
    )
    return _table(_head("objective", "searched by", "reported, unseen"), rows)


def _recipes(results: Results) -> str:
    def details(model: Candidate, name: str) -> str:
        body = escape(strict_yaml.text(model.recipe))
        return (
            f"<details><summary>{escape(name)} <small class='muted'>{escape(model.recipe_id[:12])}</small></summary>"
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
