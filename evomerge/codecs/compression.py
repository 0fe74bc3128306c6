"""compress: write a pool as an artefact, and measure the losses of each expert in its weights and, given tasks, its scores."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from evomerge.checkpoints.folder import Checkpoint
from evomerge.checkpoints.pool import Pool
from evomerge.codecs.artefact import Artefact, encode, preview
from evomerge.codecs.codec import Codec
from evomerge.codecs.tall import LAMBDAS, Tall
from evomerge.models import LiveModel
from evomerge.tasks import Task
from evomerge.trial import Split

_SLICE = 1 << 20  # elements that are in memory as float64 at once

Progress = Callable[[str, int], AbstractContextManager[Callable[..., None]]]
"""Opens the report of a step, given its name and total; the report is called with `done`, `total=None` and `note=""`."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """The similarity of a decoded expert to the original.

    `error` is ‖decoded - expert‖ / ‖expert - base‖ (0 is exact, 1 as far as the base), `cosine` that of the angle between
    both task vectors. NaN where the expert is the base, or a task vector is 0.
    """

    error: float
    cosine: float


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of one expert: the fidelity of its weights, and by task the scores before and after (higher is better)."""

    expert: str
    fidelity: Fidelity
    scores: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Compression:
    """A pool as an artefact. `expert_bytes` is the size of the experts' own files; `losses` has an entry for each expert."""

    artefact: Artefact
    expert_bytes: int
    losses: tuple[Loss, ...]

    @property
    def figures(self) -> Mapping[str, list[float]]:
        """The codec's figures, such as ranks: by name, one value for each tensor that has it."""
        values: dict[str, list[float]] = {}
        for entry in self.artefact.figures.values():
            for name, value in entry.items():
                values.setdefault(name, []).append(value)
        return values


def compress(
    pool: Pool, codec: Codec, folder: Path, tasks: Mapping[str, Task], model: LiveModel | None, progress: Progress
) -> Compression:
    """Write `pool` under `codec` to `folder`, and return the artefact with its losses.

    An expert's task is the one of its name, otherwise all of `tasks`. Where `model` is given and TALL masks have no λ, each
    expert's λ is chosen on the search examples of its tasks; the losses are measured on the report examples. Raises what
    `encode` raises.
    """
    tasks_of = {name: [tasks[name]] if name in tasks else list(tasks.values()) for name in pool.experts}
    if model is not None and isinstance(codec, Tall) and "lam" not in codec.model_fields_set:
        done = itertools.count(1)
        with progress("choose λ", len(pool.experts) * len(LAMBDAS)) as report:

            def judge(name: str, candidate: Checkpoint) -> float:
                means = scores(model, candidate, tasks_of[name], "search")
                report(next(done), note=name)
                return sum(means.values()) / len(means)

            codec = Tall.model_validate({"lambda": choose_lambdas(pool, judge)})
    with progress("compress", pool.nbytes) as report:
        artefact = encode(pool, codec, folder, progress=report)
    losses = []
    with progress("measure", len(pool.experts)) as report:
        for number, (name, expert) in enumerate(pool.experts.items(), start=1):
            decoded = artefact.decode(name)
            near = fidelity(pool, name, decoded)
            pairs = {}
            if model is not None:
                before = scores(model, expert, tasks_of[name], "report")
                after = scores(model, decoded, tasks_of[name], "report")
                pairs = {task: (before[task], after[task]) for task in before}
            losses.append(Loss(name, near, pairs))
            report(number, note=name)
    expert_bytes = sum(file.stat().st_size for expert in pool.experts.values() for file in expert.files)
    return Compression(artefact, expert_bytes, tuple(losses))


def fidelity(pool: Pool, expert: str, decoded: Checkpoint) -> Fidelity:
    """Return the similarity of `decoded` to the pool's `expert` over all merged tensors, in float64."""
    sources: tuple[Checkpoint, ...] = (pool.base, pool.experts[expert], decoded)
    residual = expected = decoded_norm = product = 0.0
    for name in pool.merged:
        tensors = [source.tensor(name).reshape(-1).split(_SLICE) for source in sources]  # type: ignore[no-untyped-call]  # the library has no types here
        for base, true, came in (map(torch.Tensor.double, slices) for slices in zip(*tensors, strict=True)):
            residual += float((came - true).square().sum())
            expected += float((true - base).square().sum())
            decoded_norm += float((came - base).square().sum())
            product += float(((true - base) * (came - base)).sum())
        for source in sources:
            source.forget()
    return Fidelity(
        error=math.sqrt(residual / expected) if expected else math.nan,
        cosine=product / math.sqrt(expected * decoded_norm) if expected and decoded_norm else math.nan,
    )


def scores(model: LiveModel, checkpoint: Checkpoint, tasks: Iterable[Task], split: Split) -> dict[str, float]:
    """Write `checkpoint` into `model`, and return its mean score by task, in the split's metric. Higher is better."""
    model.refit(checkpoint)
    means = {}
    for task in tasks:
        task.put_head_on(model)
        metric = task.search_metric if split == "search" else task.report_metric
        means[task.name] = float(task.score(model, split).scores[metric].mean(dtype=np.float64))
    return means


def choose_lambdas(pool: Pool, judge: Callable[[str, Checkpoint], float]) -> dict[str, float]:
    """Return by expert the λ of TALL masks whose reconstruction has the best score; the smallest among equals.

    `judge(name, checkpoint)` returns the score of a reconstruction of an expert; it must use search examples only.
    """
    names = list(pool.experts)
    codecs = {lam: Tall.model_validate({"lambda": lam}) for lam in LAMBDAS}

    def score(k: int, lam: float) -> float:
        return judge(names[k], preview(pool, codecs[lam], codecs[lam].constants(names, ()), k))

    return {name: max(LAMBDAS, key=partial(score, k)) for k, name in enumerate(names)}
