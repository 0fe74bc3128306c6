"""What a codec loses: how far its experts come back from where they were, and what they score."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from evomerge.checkpoints.folder import Checkpoint
from evomerge.checkpoints.pool import Pool
from evomerge.codecs.artefact import Preview
from evomerge.codecs.tall import LAMBDAS, Tall
from evomerge.models import LiveModel
from evomerge.tasks import Task
from evomerge.trial import Split

_SLICE = 1 << 20  # numbers that are in memory as float64 at once


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How near a decoded expert is to the expert.

    `error` is ‖decoded - expert‖ / ‖expert - base‖ (0 is exact, 1 is as far as the base), `cosine` that of both task
    vectors. NaN where the expert is the base, and where a task vector of length 0 has no direction.
    """

    error: float
    cosine: float


def fidelity(pool: Pool, expert: str, decoded: Checkpoint) -> Fidelity:
    """Return how near `decoded` is to the pool's `expert`, over all floating-point tensors, in float64."""
    sources: tuple[Checkpoint, ...] = (pool.base, pool.experts[expert], decoded)
    missed = own = other = both = 0.0
    for name in pool.merged:
        tensors = [source.tensor(name).reshape(-1).split(_SLICE) for source in sources]  # type: ignore[no-untyped-call]  # the library has no types here
        for base, true, found in (map(torch.Tensor.double, slices) for slices in zip(*tensors, strict=True)):
            missed += float((found - true).square().sum())
            own += float((true - base).square().sum())
            other += float((found - base).square().sum())
            both += float(((true - base) * (found - base)).sum())
        for source in sources:
            source.forget()
    return Fidelity(
        error=math.sqrt(missed / own) if own else math.nan,
        cosine=both / math.sqrt(own * other) if own and other else math.nan,
    )


def scores(model: LiveModel, checkpoint: Checkpoint, tasks: Iterable[Task], split: Split) -> dict[str, float]:
    """Return the mean score of `checkpoint` in each task, in the split's metric, having written it into `model`.

    Higher is better. Keys are the tasks' names.
    """
    model.write(checkpoint)
    found = {}
    for task in tasks:
        metric = task.search_metric if split == "search" else task.report_metric
        found[task.name] = float(task.score(model, split).scores[metric].mean(dtype=np.float64))
    return found


def choose_lambdas(pool: Pool, judge: Callable[[str, Checkpoint], float]) -> dict[str, float]:
    """Return for each expert the λ of TALL masks whose reconstruction `judge` scores best; the smallest among equals.

    `judge` gets an expert's name and a checkpoint, and is to look at search examples alone.
    """
    names = list(pool.experts)
    chosen = {}
    for k, name in enumerate(names):
        found = {}
        for lam in LAMBDAS:
            codec = Tall.model_validate({"lambda": lam})
            found[lam] = judge(name, Preview(pool, codec, codec.constants(names, ()), k))
        chosen[name] = max(LAMBDAS, key=found.__getitem__)
    return chosen
