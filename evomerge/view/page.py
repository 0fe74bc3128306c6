"""Page: the data of each part of the page, as JSON: of one study, or of two that are compared."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from evomerge import pareto
from evomerge.errors import DriverError, EvomergeError, StudyError, SurrogateError
from evomerge.report import measure, replay, runs, surface, tables, wording
from evomerge.report.choose import Preference
from evomerge.report.results import Candidate
from evomerge.report.scorer import Scorer
from evomerge.search.fronts.surface import Surface
from evomerge.surrogate import Surrogate
from evomerge.view import genes
from evomerge.view.candidate import describe, find
from evomerge.view.recipes import panels
from evomerge.view.source import Source

STATIC = Path(__file__).parent / "static"
"""The files of the page."""
_INTERVALS = 400
"""Points of a front that are drawn with their intervals."""


def studies(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Return the studies that the page can show."""
    found = []
    for source in sources:
        with source.lock:
            try:
                state: dict[str, Any] = {"name": source.name, "state": source.status().state}
            except EvomergeError as error:
                state = {"name": source.folder.name, "error": str(error)}
        found.append({"folder": str(source.folder), **state})
    return found


def search(source: Source, since: int = 0, generation: int = 0, reported: int = 0) -> dict[str, Any]:
    """Return the state of a search: the rows of candidates from number `since` on, its front, and the report if it is new.

    `generation` and `reported` are those of the last answer; where the study began anew, all rows are sent again.
    """
    source.update()
    parts = source.study.parts
    first = since if generation == source.generation else 0
    rows, front = source.rows[first:], source.front()
    data: dict[str, Any] = {
        "folder": str(source.folder),
        "name": source.name,
        "generation": source.generation,
        "first": first,
        "objectives": [
            {
                "task": name,
                "search": wording.metric(task.search_metric),
                "report": wording.metric(task.report_metric),
                "same": task.search_metric == task.report_metric,
                "share": [wording.is_share(task.search_metric), wording.is_share(task.report_metric)],
                "examples": [task.size("search"), task.size("report")],
            }
            for name, task in parts.tasks.items()
        ],
        "rows": [
            [proposal.number, None if evaluation.error is not None else means, evaluation.error]
            for (proposal, evaluation), means in zip(rows, source.means(rows).tolist(), strict=True)
        ],
        "front": [proposal.number for proposal, _ in front],
        "intervals": source.front_intervals() if len(front) <= _INTERVALS else {},
        "genes": [gene.name for gene in parts.space.genes],
        "status": asdict(source.status()),
        "reported": source.reported(),
    }
    if data["reported"] and (data["reported"] != reported or first == 0):
        data["report"] = report(source)
    return data


def report(source: Source) -> dict[str, Any]:
    """Return what the last report says: the front and the references on unseen examples, the pick, the comparisons in words."""
    results = source.results()
    if results is None:
        return {}
    return {
        "digest": results.digest,
        "evaluations": results.evaluations,
        "picked": results.pick.name,
        "front": [_scored(one) for one in results.front],
        "references": [_scored(one) for one in results.references.values()],
        "sentences": [tables.choice(results), *tables.sentences(results)],
    }


def _scored(one: Candidate) -> dict[str, Any]:
    return {
        "name": one.name,
        "label": one.label,
        "recipe_id": one.recipe_id,
        "search": [*one.search.values()],
        "report": [*one.report.values()],
        "mean": one.mean,
        "on_front": one.on_front,
    }


def progress(source: Source) -> dict[str, Any]:
    """Return how the hypervolume of the front grew on the search examples, and what the search costs."""
    source.update()
    good = source.good
    points = source.means(good)
    results = source.results()
    known = None if results is None or results.hypervolume is None else results.hypervolume.search_point
    tasks = list(source.study.parts.tasks)
    lowest = [known[name] for name in tasks] if known is not None else points.min(axis=0).tolist() if good else []
    affordable = bool(good) and pareto.affordable(len(source.front()), len(tasks))
    history = source.volumes(lowest) if affordable else []
    return {
        "numbers": [proposal.number for proposal, _ in good],
        "hypervolume": history,
        "corner": lowest,
        "corner_is": "the lowest scores of the references"
        if known is not None
        else "the lowest scores of any candidate so far",
        "status": asdict(source.status()),
    }


def slices(source: Source, name: str) -> dict[str, Any]:
    """Return the importance of the genes, and the predicted scores along each gene through the candidate `name`.

    Raises `SurrogateError` where no surrogate can be fitted, and `StudyError` for a name of no candidate.
    """
    source.update()
    parts, good = source.study.parts, source.good

    def fit() -> tuple[Mapping[str, Surrogate], dict[str, list[list[float]]]]:
        fitted = genes.fits(parts, good)
        return fitted, genes.importance(parts, good, fitted)

    fitted, importance = source.lately("genes", fit)
    found, _ = find(source, name)
    proposal = next((p for p, _ in source.population if p.recipe.id == found.id), None)
    if proposal is None:
        raise StudyError(f"`{name}`: slices go through a candidate of the search; select one")
    return {
        "through": name,
        "fits": {
            task: {"surrogate": one.name, "r2": one.r2, "coverage": one.coverage, "candidates": len(one.values)}
            for task, one in fitted.items()
        },
        "importance": importance,
        "slices": genes.slices(parts, fitted, parts.space.genome_of(proposal)),
    }


def population(source: Source) -> dict[str, Any]:
    """Return the coverage and the cells of a population of models; an empty object for other searches."""
    source.update()
    fields = source.once("population", lambda: replay.population(source.study, len(source.population)))
    numbers = {proposal.recipe.id: proposal.number for proposal, _ in reversed(source.population)}
    data: dict[str, Any] = {key: value for key, value in fields.items() if key == "not_replayed"}
    if "diagnostics" in fields:
        data["diagnostics"] = fields["diagnostics"].model_dump()
    data["cells"] = [
        {
            **cells.model_dump(exclude={"elites"}),
            "shape": list(cells.shape),
            "elites": [[list(one.cell), numbers.get(one.recipe_id), one.quality] for one in cells.elites],
        }
        for cells in fields.get("cells", ())
    ]
    return data


def prefer(source: Source, way: str, numbers: Mapping[str, float], best: str | None) -> dict[str, Any]:
    """Return the merge that fits a preference best: of the surface, or of the measured front where there is none.

    `way` is `weights`, `tchebycheff` or `floors`; `best` goes with floors. Raises `StudyError`.
    """
    source.update()
    if way not in ("weights", "tchebycheff", "floors"):
        raise StudyError(f"preference `{way}`; expected weights, tchebycheff or floors")
    chosen = dict(numbers)
    preference = Preference(
        weights=chosen if way == "weights" else None,
        floors=chosen if way == "floors" else None,
        tchebycheff=chosen if way == "tchebycheff" else None,
        best=best or None,
    )
    study, good = source.study, source.good
    tasks = list(study.parts.tasks)
    if not good:
        raise StudyError(f"{source.folder}: no candidate has been evaluated yet")
    options = [f"--{way}", ",".join(f"{name}={number:g}" for name, number in numbers.items())]
    options += ["--best", best] if best else []
    typed = shlex.join(["evomerge", "pick", str(source.folder), *options])
    found, known = source.lately("surface", lambda: (_surface(source), len(source.population)))
    if isinstance(found, Surface) and found.refused is None:
        prediction = surface.ask(study, source.population, found, preference)
        return {
            "from": "surface",
            "candidates": known,
            "scores": [list(prediction.scores[name]) for name in tasks],
            "evaluated": prediction.evaluated,
            "panels": panels(prediction.recipe, study.parts.pool),
            "command": f"{typed} --surface -o OUT",
        }
    front, points, known = source.lately("estimates", lambda: (*_estimates(source), len(source.population)))
    number = front[preference.row(points, tasks)][0].number
    evaluation = source.population[source.candidate(number)][1]
    return {
        "from": "front",
        "candidates": known,
        "why": found if isinstance(found, str) else found.refused,
        "name": f"#{number}",
        "intervals": source.intervals(evaluation),
        "command": f"{typed} --anyway -o OUT",
    }


def _surface(source: Source) -> Surface | str:
    """Return the study's surface, or why there is none."""
    if not surface.has_surface(source.study):
        return f"the driver `{source.study.parts.driver['kind']}` leaves no surface"
    try:
        return surface.read(source.study, source.population)
    except (DriverError, SurrogateError) as error:
        return str(error)


def _estimates(source: Source) -> tuple[Any, pareto.Points]:
    """Return the front, and its estimated scores, `(candidates, objectives)`: those that a report chooses by."""
    good, front = source.good, source.front()
    ids = [good[row][0].recipe.id for row in measure.contenders(source.means(good))]
    estimates = Scorer(source.study, good).estimates(ids, {})
    return front, np.array([[*estimates.of(proposal.recipe.id).values()] for proposal, _ in front])


def compare(source: Source, other: Source) -> dict[str, Any]:
    """Return two searches side by side, on their own search examples: a warning where these or the metrics differ.

    Hypervolumes are above the lowest scores of any candidate of either. Raises `StudyError` for other objectives.
    """
    source.update()
    other.update()
    both = source, other
    tasks = [one.study.parts.searched for one in both]
    if sorted(tasks[0]) != sorted(tasks[1]):
        raise StudyError(
            f"{other.folder} and {source.folder}: expected the same objectives, got {tasks[1]} and {tasks[0]}"
        )
    try:
        runs.check([one.study for one in both])
        warning = None
    except StudyError as error:
        warning = str(error)
    order = [tasks[1].index(name) for name in tasks[0]]
    points = [source.means(source.good), other.means(other.good)[:, order]]
    if not all(map(len, points)):
        raise StudyError("compare: one of the studies has no candidate yet")
    corner = np.concatenate(points).min(axis=0)
    joined = np.concatenate([found[pareto.nondominated(found)] for found in points])
    sizes = [int(pareto.nondominated(found).sum()) for found in points]
    on_both = pareto.nondominated(joined)
    shares = [int(on_both[: sizes[0]].sum()), int(on_both[sizes[0] :].sum())]
    affordable = all(pareto.affordable(size, len(order)) for size in sizes)
    entries = []
    for one, found, size, share in zip(both, points, sizes, shares, strict=True):
        results = one.results()
        entries.append(
            {
                "folder": str(one.folder),
                "driver": one.study.parts.driver["kind"],
                "evaluations": len(one.population),
                "front": size,
                "on_common_front": share,
                "hypervolume": pareto.hypervolume(found, corner) if affordable else None,
                "best": found.max(axis=0).tolist(),
                "picked": None if results is None else {"name": results.pick.name, "mean": results.pick.mean},
            }
        )
    front = points[1][pareto.nondominated(points[1])].tolist()
    command = f"evomerge compare {shlex.quote(str(source.folder))} {shlex.quote(str(other.folder))}"
    return {"runs": entries, "warning": warning, "front": front, "command": command}


def model(source: Source, name: str, against: str) -> dict[str, Any]:
    """Return what `candidate.describe` does of the study as it is now."""
    source.update()
    return describe(source, name, against)


def finite(data: Any) -> Any:
    """Return `data` with None in place of numbers that are not finite, which JSON does not have."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {str(key): finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return data
