"""price: the time of a study's whole command, before it starts."""

import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from evomerge.cli.app import STARTED
from evomerge.cli.console import say
from evomerge.errors import StudyError
from evomerge.evaluate import Worker
from evomerge.history import cost
from evomerge.merging import PATIENCE
from evomerge.parts import Parts, initial_recipe
from evomerge.progress import duration
from evomerge.report import comparisons, gains
from evomerge.settings import QueueSettings, StudySettings
from evomerge.trial import Evaluation, Examples, Proposal

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
    if memory := worker.memory():
        say(console, f"memory of the device: {memory}")
    search, report = (sum(evaluation.seconds.values()) for evaluation in evaluations)
    steps = ", ".join(f"{kind} {duration(seconds)}" for kind, seconds in evaluations[0].seconds.items())
    say(console, f"one evaluation: {duration(search)} ({steps})")
    if evaluations[0].seconds["merge"] * settings.evaluations / settings.processes > PATIENCE:
        say(
            console,
            f"merging is compiled once it has taken {PATIENCE:g} s, in each worker; that takes about as long, and less after it: not counted here",
        )
    if parts.driver["kind"] == "racing":
        examples, seconds = sum(parts.sizes["search"].values()), evaluations[0].seconds["score"]
        merge = round(examples * (search - seconds) / seconds)
        say(
            console,
            f"merging takes as long as scoring {merge} examples: `merge_examples: {merge}` counts it for each part",
        )
    references, front = len(comparisons.references(parts, settings.report)), settings.report.front
    models = min(front, references) + min(front, settings.evaluations)
    driver, slopes = _driver_seconds(parts, settings, evaluations[0])
    if slopes:
        sloped = worker.evaluate(recipe, slopes=slopes)
        if sloped.error is not None:
            raise StudyError(f"the space's initial recipe has no slopes: {sloped.error}")
        say(
            console,
            f"one evaluation with slopes: {duration(sum(sloped.seconds.values()))}; the budget counts it as three",
        )
    worker.close()
    phases = {
        "start-up": start_up,
        "driver": driver,
        "search": search * settings.evaluations / settings.processes,
        "report": (search * references + report * models) / settings.processes + _DRAWN,
    }
    if averages := len(gains.recipes(list(parts.pool.experts), settings.report.subsets, settings.seed)):
        phases[f"{averages} averages of subsets"] = search * averages / settings.processes
    if settings.controls.sham:
        phases["control"] = sum(phases[part] for part in phases if part != "start-up")
        say(console, shuffling(parts))
    parts_of_it = ", ".join(f"{name} {duration(seconds)}" for name, seconds in phases.items())
    total = f"{duration(sum(phases.values()))}{', and the start of the workers' * (settings.processes > 1)}"
    workers = (
        "one of a queue, more need less time" if isinstance(settings.workers, QueueSettings) else settings.processes
    )
    say(console, f"the whole command: about {total} ({parts_of_it}); workers: {workers}; nothing was written")


def shuffling(parts: Parts) -> str:
    """Return in words what the shuffled experts of a control take."""
    nbytes = 4 * parts.pool.parameters * len(parts.pool.experts)
    return (
        f"the control evaluates as many candidates over shuffled experts, which are computed once, one tensor at a time; large tensors "
        f"are kept in the cache on disk, up to {nbytes / 2**30:.2g} GiB (`evomerge cache`)"
    )


def _driver_seconds(parts: Parts, settings: StudySettings, evaluation: Evaluation) -> tuple[float, Examples | None]:
    """Return the seconds that the driver itself needs, and examples of which it wants slopes, if it does.

    They are those of a search in which every candidate has resampled scores of one, and random slopes.
    """
    driver, rng = parts.new_driver(settings.seed), np.random.default_rng(0)
    full, slopes = sum(parts.sizes["search"].values()), None
    spent, start = 0.0, time.perf_counter()
    while (
        spent < settings.evaluations and time.perf_counter() - start < _TRIED and (proposal := driver.ask()) is not None
    ):
        slopes = slopes or proposal.slopes
        told = _resampled(evaluation, proposal, parts.sizes["search"], rng)
        if proposal.slopes is not None:
            random = {name: rng.standard_normal(len(proposal.recipe.numbers)) for name in parts.searched}
            told = replace(told, slopes=random)
        driver.tell(proposal, told)
        spent += cost(proposal, full, settings.merge_examples) / (full + settings.merge_examples)
    return (time.perf_counter() - start) * settings.evaluations / spent, slopes


def _resampled(
    evaluation: Evaluation, proposal: Proposal, sizes: Mapping[str, int], rng: np.random.Generator
) -> Evaluation:
    counts = sizes if proposal.examples is None else {task: len(indices) for task, indices in proposal.examples.items()}
    rows = {task: rng.integers(sizes[task], size=count) for task, count in counts.items()}

    def draw(arrays: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        return {name: array[rows[task]] for name, array in arrays.items() if (task := name.rpartition("/")[0]) in rows}

    return Evaluation(draw(evaluation.scores), outputs=draw(evaluation.outputs))
