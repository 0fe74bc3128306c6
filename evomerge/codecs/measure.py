"""The losses of a codec: the distance of decoded experts from the originals, and their scores."""

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

_SLICE = 1 << 20  # elements that are in memory as float64 at once


@dataclass(frozen=True, slots=True)
class Fidelity:
    """The similarity of a decoded expert to the original.

    `error` is ‖decoded - expert‖ / ‖expert - base‖ (0 is exact, 1 as far as the base), `cosine` that of the angle between
    both task vectors. NaN where the expert is the base, or a task vector is 0.
    """

    error: float
    cosine: float


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
    model.write(checkpoint)
    return {
        task.name: float(task.score(model, split).scores[_metric(task, split)].mean(dtype=np.float64)) for task in tasks
    }


def _metric(task: Task, split: Split) -> str:
    return task.search_metric if split == "search" else task.report_metric


def choose_lambdas(pool: Pool, judge: Callable[[str, Checkpoint], float]) -> dict[str, float]:
    """Return by expert the λ of TALL masks whose reconstruction has the best score; the smallest among equals.

    `judge(name, checkpoint)` returns the score of a reconstruction of an expert; it must use search examples only.
    """
    names = list(pool.experts)
    chosen = {}
    for k, name in enumerate(names):
        by_lambda = {}
        for lam in LAMBDAS:
            codec = Tall.model_validate({"lambda": lam})
            by_lambda[lam] = judge(name, Preview(pool, codec, codec.constants(names, ()), k))
        chosen[name] = max(LAMBDAS, key=by_lambda.__getitem__)
    return chosen
