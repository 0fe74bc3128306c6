"""Worker: turns a recipe into scores, in whatever process it lives. Plain Python, no ray.

Whatever a candidate does wrong becomes its `Evaluation.error`. What is wrong with the setup is an exception,
since no other candidate would fare better.
"""

import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from evomerge import tasks
from evomerge.build import Builder
from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.folder import Checkpoint, Folder
from evomerge.checkpoints.members import Members
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.stack import Stacked
from evomerge.errors import TaskError, nearest
from evomerge.models import LiveModel
from evomerge.models.prefixes import Count
from evomerge.recipe import Base, Expert, Recipe
from evomerge.trial import Evaluation, Examples, Split

_LONGEST_ERROR = 1000
_OWN = np.random.MT19937()
"""What numpy's global generator draws from while a candidate is evaluated."""
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")


@dataclass(frozen=True, slots=True)
class Setup:
    """All that a worker needs to know, as plain JSON data. The same setup gives the same scores everywhere.

    `base` and the values of `experts` are checkpoint folders, `tasks` are settings by name; relative paths in
    them start at `folder`. `precision` is what models compute in, `threads` how many each worker uses
    (another number changes the last bits of scores), and `auto` the transformers class that chooses the
    model's class, None for its config's; `module` is a function of the user's that makes it instead.
    `shared_mib` is how much memory each worker has for hidden states of stacks that begin alike; it changes no
    score. `members` is the folder of a study whose candidates may be made of earlier ones: what is evaluated
    for the search is kept, up to `members_mib` in each worker's memory, and there; None keeps nothing.
    """

    base: str
    experts: Mapping[str, str]
    tasks: Mapping[str, Mapping[str, Any]]
    folder: str = "."
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: int = 1
    auto: str | None = None
    module: str | None = None
    shared_mib: int = 0
    members: str | None = None
    members_mib: int = 1024


class Worker:
    """Evaluates one recipe after the other in one live model. An evaluator hands out work; this does it."""

    def __init__(self, setup: Setup, *, alone: bool = True) -> None:
        """Be ready to prepare; nothing is opened yet. Unless `alone`, what is kept must be where other workers find it."""
        self.setup = setup
        folder = None if setup.members is None else Path(setup.members)
        self.members = Members(setup.members_mib << 20, folder, shared=not alone)
        self._prepared: _Prepared | None = None

    def prepare(self) -> None:
        """Open the pool, load model and tasks, unless that is done. Raises what they raise."""
        self._ready()

    def evaluate(self, recipe: Recipe, split: Split = "search", examples: Examples | None = None) -> Evaluation:
        """Return the recipe's scores on `examples`, or on all of every task, or what went wrong with this candidate.

        `seconds` of the result are those of `decode` (reading the recipe), `merge` (building it into the
        model) and `score`. Raises what `prepare` raises, and lets KeyboardInterrupt pass.
        """
        ready = self._ready()
        scores: dict[str, Any] = {}
        outputs: dict[str, Any] = {}
        seconds: dict[str, float] = {}
        try:
            with _alike(self.setup.threads):
                with _timed(seconds, "decode"):
                    checkpoint = _checked(ready.builder.build(recipe))
                with _timed(seconds, "merge"):
                    if (
                        self.setup.members is not None
                        and split == "search"
                        and not isinstance(recipe.root, Base | Expert)
                    ):
                        kept = self.members.keep(recipe.id, checkpoint)
                        checkpoint = checkpoint if isinstance(checkpoint, Stacked) else kept
                    ready.model.write(checkpoint)
                with _timed(seconds, "score"):
                    for task, numbers in ready.chosen(examples):
                        found = task.score(ready.model, split, numbers)
                        for metric, vector in found.scores.items():
                            _check_scores(task.name, metric, vector)
                            scores[f"{task.name}/{metric}"] = vector
                        outputs |= {f"{task.name}/{name}": array for name, array in found.outputs.items()}
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  # a task may raise anything, SystemExit too
            return Evaluation(error=describe(error), seconds=seconds)
        return Evaluation(scores=scores, outputs=outputs, seconds=seconds)

    @property
    def layers(self) -> Count:
        """How many layers were run for the last candidate, and how many were spared, if it was a stack."""
        return self._ready().model.prefixes.count

    def _ready(self) -> "_Prepared":
        if self._prepared is None:
            with _alike(self.setup.threads):
                self._prepared = _Prepared(self.setup, self.members)
        return self._prepared


class _Prepared:
    """What stays in memory between candidates."""

    def __init__(self, setup: Setup, members: Members) -> None:
        folder = Path(setup.folder)
        pool = Pool(folder / setup.base, {name: folder / path for name, path in setup.experts.items()})
        self.builder = Builder(pool, search=True, members=members)
        self.tasks = [tasks.make(name, settings, folder) for name, settings in setup.tasks.items()]
        self.model = LiveModel(
            folder / setup.base, setup.auto, setup.precision, shared=setup.shared_mib << 20, module=setup.module
        )

    def chosen(self, examples: Examples | None) -> list[tuple[tasks.Task, Sequence[int] | None]]:
        """Return the tasks to score, each with the numbers of its examples; None is all of them. Raises `TaskError`."""
        if examples is None:
            return [(task, None) for task in self.tasks]
        names = [task.name for task in self.tasks]
        for name in examples:
            if name not in names:
                msg = f"examples of the unknown task `{name}`; {nearest(name, names)}"
                raise TaskError(msg)
        return [(task, examples[task.name]) for task in self.tasks if task.name in examples]


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint, checked as it is made; in a stack, the pool's own layers have been."""
    if isinstance(checkpoint, Stacked):
        return checkpoint.each(lambda source: source if isinstance(source, Folder | Adapter) else _checked(source))
    return _Finite(checkpoint)


class _Finite:
    """A checkpoint whose tensors are checked as they are made: the first that is not finite is an error."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.info = checkpoint.info

    def tensor(self, name: str) -> torch.Tensor:
        tensor = self._checkpoint.tensor(name)
        self._check(name, tensor)
        return tensor

    def write(self, name: str, out: torch.Tensor) -> None:
        self._checkpoint.write(name, out)
        self._check(name, out)

    def forget(self) -> None:
        self._checkpoint.forget()

    @staticmethod
    def _check(name: str, tensor: torch.Tensor) -> None:
        # A sum is one pass without a temporary. It is finite only if all numbers are, but may overflow when
        # they are.
        if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all():
            msg = f"the merged tensor `{name}` holds NaN or infinity"
            raise FloatingPointError(msg)


def _check_scores(task: str, metric: str, vector: np.ndarray[Any, Any]) -> None:
    bad = np.flatnonzero(~np.isfinite(vector))
    if bad.size:
        first = f"example {bad[0]} scored {vector[bad[0]]}"
        msg = f"task `{task}`, metric `{metric}`: {first} ({bad.size} of {vector.size} are not finite)"
        raise FloatingPointError(msg)


def describe(error: BaseException) -> str:
    """Return an exception as `Type: last line`, the same text in every run: without addresses in memory."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # noqa: BLE001  # a candidate's exception need not even print
        lines = []
    text = f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
    return _ADDRESS.sub("0x…", text)[:_LONGEST_ERROR]


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] = time.perf_counter() - start


@contextmanager
def _alike(threads: int) -> Iterator[None]:
    """Make what runs inside the same in every process, and leave the process as it was.

    Fixes the number of torch's threads, its deterministic kernels, and all global generators. A driver in the
    same process must not notice it, or it would search otherwise than one whose evaluator has processes of
    its own.
    """
    kernels: Any = torch.utils.deterministic
    before = (
        torch.get_num_threads(),
        torch.get_deterministic_debug_mode(),
        kernels.fill_uninitialized_memory,
    )
    numpy: Any = np.random
    chance = random.getstate(), numpy.get_bit_generator()
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("warn")
    kernels.fill_uninitialized_memory = False  # merges make many tensors, and fill them themselves
    numpy.set_bit_generator(_OWN)  # a tenth of the time that its state would take to be kept and put back
    try:
        with torch.random.fork_rng(devices=[]):
            # Where nothing runs on an accelerator, to ask each kind of it for its generator takes longer than a small candidate.
            seed: Callable[[int], Any] = torch.default_generator.manual_seed
            if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # the library has no types here
                seed = torch.manual_seed
            seed(0)
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002  # tasks may use the global one
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_deterministic_debug_mode(before[1])
        kernels.fill_uninitialized_memory = before[2]
        random.setstate(chance[0])
        numpy.set_bit_generator(chance[1])
