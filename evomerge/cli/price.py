"""price: the time of a study's whole command, before it starts."""

import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from evomerge.cli.app import STARTED
from evomerge.cli.listings import say
from evomerge.errors import StudyError
from evomerge.evaluate import Worker
from evomerge.history import cost
from evomerge.progress import duration
from evomerge.report import comparisons
from evomerge.settings import Parts, StudySettings, initial_recipe
from evomerge.trial import Evaluation, Proposal

_TRIED = 20.0
"""Seconds of a driver's work from which the rest is extrapolated."""
_DRAWN = 5.0
"""Seconds of a report beside its evaluations: intervals and figures."""


def price(parts: Parts, settings: StudySettings, console: Console) -> None:
    """Evaluate the space's initial recipe, try the driver, and print the time of one evaluation and of the whole command."""
    worker, recipe = Worker(parts.setup), initial_recipe(parts.space)
    worker.evaluate(recipe)  # the first evaluation also reads the model and the data
    start_up = time.monotonic() - STARTED
    evaluations = [worker.evaluate(recipe), worker.evaluate(recipe, "report")]
    for evaluation in evaluations:
        if evaluation.error is not None:
            raise StudyError(f"the space's initial recipe cannot be evaluated: {evaluation.error}")
    search, report = (sum(evaluation.seconds.values()) for evaluation in evaluations)
    steps = ", ".join(f"{kind} {duration(seconds)}" for kind, seconds in evaluations[0].seconds.items())
    say(console, f"one evaluation: {duration(search)} ({steps})")
    if parts.driver["kind"] == "racing":
        examples, seconds = sum(parts.sizes["search"].values()), evaluations[0].seconds["score"]
        merge = round(examples * (search - seconds) / seconds)
        say(
            console,
            f"merging takes as long as scoring {merge} examples: `merge_examples: {merge}` counts it for each part",
        )
    references, front = len(comparisons.references(parts, settings.report)), settings.report.front
    models = min(front, references) + min(front, settings.evaluations)
    phases = {
        "start-up": start_up,
        "driver": _driver_seconds(parts, settings, evaluations[0]),
        "search": search * settings.evaluations / settings.workers,
        "report": (search * references + report * models) / settings.workers + _DRAWN,
    }
    parts_of_it = ", ".join(f"{name} {duration(seconds)}" for name, seconds in phases.items())
    total = f"{duration(sum(phases.values()))}{', and the start of the workers' * (settings.workers > 1)}"
    say(console, f"the whole command: about {total} ({parts_of_it}); workers: {settings.workers}; nothing was written")


def _driver_seconds(parts: Parts, settings: StudySettings, evaluation: Evaluation) -> float:
    """Return the seconds that the driver itself needs, from a search in which every candidate has resampled scores of one."""
    driver, rng = parts.new_driver(settings.seed), np.random.default_rng(0)
    full = sum(parts.sizes["search"].values())
    spent, start = 0.0, time.perf_counter()
    while (
        spent < settings.evaluations and time.perf_counter() - start < _TRIED and (proposal := driver.ask()) is not None
    ):
        driver.tell(proposal, _resampled(evaluation, proposal, parts.sizes["search"], rng))
        spent += cost(proposal, full, settings.merge_examples) / (full + settings.merge_examples)
    return (time.perf_counter() - start) * settings.evaluations / spent


def _resampled(
    evaluation: Evaluation, proposal: Proposal, sizes: Mapping[str, int], rng: np.random.Generator
) -> Evaluation:
    counts = sizes if proposal.examples is None else {task: len(indices) for task, indices in proposal.examples.items()}
    rows = {task: rng.integers(sizes[task], size=count) for task, count in counts.items()}

    def draw(arrays: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        return {name: array[rows[task]] for name, array in arrays.items() if (task := name.rpartition("/")[0]) in rows}

    return Evaluation(draw(evaluation.scores), outputs=draw(evaluation.outputs))
