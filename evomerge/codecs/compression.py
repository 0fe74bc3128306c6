"""compress: write a pool as an artefact, and measure the losses of each expert in its weights and, given tasks, its scores."""

import itertools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from evomerge.checkpoints.folder import Checkpoint
from evomerge.checkpoints.pool import Pool
from evomerge.codecs.artefact import Artefact, encode
from evomerge.codecs.codec import Codec
from evomerge.codecs.measure import Fidelity, choose_lambdas, fidelity, scores
from evomerge.codecs.tall import LAMBDAS, Tall
from evomerge.models import LiveModel
from evomerge.tasks import Task

Progress = Callable[[str, int], AbstractContextManager[Callable[..., None]]]
"""Opens the report of a step, given its name and total; the report is called with `done`, `total=None` and `note=""`."""


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
