"""report.html: one self-contained page. No script, nothing loaded from anywhere; figures are inlined."""

import base64
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from evomerge import files, strict_yaml
from evomerge.report import figures, tables, wording
from evomerge.report.results import Candidate, Results

_STYLE = """
:root { color-scheme: light; --ink: #222; --muted: #6b6b6b; --line: #e3e3e3; --good: #0072B2; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 15px/1.55 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 28px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 44px 0 12px; }
.muted { color: var(--muted); } .verdicts { list-style: none; padding: 0; margin: 24px 0; }
.verdicts li { border-left: 4px solid var(--line); padding: 6px 14px; margin: 8px 0; }
.verdicts li.better { border-color: var(--good); } .verdicts li.worse { border-color: #D55E00; }
img { max-width: 100%; height: auto; display: block; margin: 8px 0; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { text-align: right; padding: 6px 12px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; vertical-align: bottom; }
th small { display: block; font-weight: 400; color: var(--muted); } tr.picked td { font-weight: 600; background: #fff5ee; }
td small { color: var(--muted); } pre { background: #f7f7f7; padding: 12px 14px; overflow-x: auto; font-size: 13px; }
details { margin: 6px 0; } summary { cursor: pointer; } code { background: #f3f3f3; padding: 1px 5px; border-radius: 3px; }
"""


def write(results: Results, folder: Path) -> None:
    """Write `report.html` into the study's `folder`."""
    files.write(folder / "report.html", page(results, folder))


def page(results: Results, folder: Path) -> str:
    """Return the page; `folder` is the study's directory, named in the commands that it shows."""
    said = tables.sentences(results)
    verdicts = [comparison.verdict for comparison in results.comparisons]
    kinds = [verdict if verdict in ("better", "worse") else "none" for verdict in verdicts]
    items = "".join(f'<li class="{kind}">{escape(text)}</li>' for kind, text in zip(kinds, said, strict=False))
    picked = next(point for point in results.front if point.recipe_id == results.picked)
    command = escape(f"evomerge pick {folder} --weights {results.objectives[0].name}=2 -o OUT")
    recipes = "".join(
        f"<details><summary>{escape(point.name)} <span class=muted>{point.recipe_id[:12]}</span></summary>"
        f"<pre>{escape(strict_yaml.text(point.recipe))}</pre></details>"
        for point in results.front
    )
    costs = "".join(
        f"<tr><td>{escape(kind)}</td><td>{wording.duration(seconds)}</td></tr>" for kind, seconds in results.costs.items()
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(results.name)}: evomerge report</title><style>{_STYLE}</style></head><body><main>
<h1>{escape(results.name)}</h1>
<p class="muted">{escape(said[-1])}</p>
<ul class="verdicts">{items}</ul>
<h2>The front, on unseen examples</h2>
{_image(figures.front_figure(results), "Scores of the front and of the references on unseen examples")}
<h2>What everybody has without a search</h2>
{_table(results, list(results.references.values()))}
<h2>The front's {len(results.front)} merges</h2>
<p class="muted">In brackets: 95% bootstrap intervals over the unseen examples. The picked merge, marked, has the best mean
score on the search examples.</p>
{_table(results, list(results.front))}
<p>To export one of them: <code>{command}</code>; see <code>evomerge pick --help</code> for floors and wishes.</p>
<h2>How the search got there</h2>
{_image(figures.hypervolume_figure(results), "Hypervolume on the search examples against evaluations")}
<h2>The picked recipe</h2>
<pre>{escape(strict_yaml.text(picked.recipe))}</pre>
<details><summary>Recipes of the whole front</summary>{recipes}</details>
<h2>The study</h2>
<pre>{escape(strict_yaml.text(dict(results.study)))}</pre>
<h2>Where the time went</h2>
<table>{costs}</table>
<p class="muted">Worker seconds. Digest of all proposals and scores: <code>{results.digest}</code></p>
</main></body></html>
"""


def _image(figure: Figure, text: str) -> str:
    data = base64.b64encode(figures.png(figure)).decode("ascii")
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{data}">'


def _table(results: Results, candidates: list[Candidate]) -> str:
    head = "".join(
        f"<th>{escape(o.name)}<small>{wording.metric(o.report)}{wording.unit(o.report)}</small></th>" for o in results.objectives
    )
    mean = wording.mean_metric(results)
    rows = []
    for candidate in candidates:
        cells = [_cell(wording.interval(candidate.report[o.name], o.report)) for o in results.objectives]
        cells.append(_cell(wording.interval(candidate.mean, mean)))
        chosen = ' class="picked"' if candidate.recipe_id == results.picked else ""
        rows.append(f"<tr{chosen}><td>{escape(candidate.name)}</td>{''.join(cells)}</tr>")
    title = f"<tr><th>model</th>{head}<th>mean<small>{mean}{wording.unit(mean)}</small></th></tr>"
    return f'<div class="scroll"><table>{title}{"".join(rows)}</table></div>'


def _cell(text: str) -> str:
    value, _, rest = text.partition(" ")
    return f"<td>{value} <small>{rest}</small></td>"
