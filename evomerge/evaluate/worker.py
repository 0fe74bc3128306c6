"""Worker: turns a recipe into scores, in any process. It does not import ray.

An error of a candidate becomes its `Evaluation.error`. An error of the setup is an exception, since every candidate would
fail with it.
"""

import json
import os
import random
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from evomerge import memory
from evomerge.checkpoints.members import Members
from evomerge.checkpoints.stack import Stacked
from evomerge.errors import EvaluatorError, printable
from evomerge.evaluate.loaded import Loaded, checked
from evomerge.evaluate.setup import Setup
from evomerge.evaluate.slopes import Slopes, score_with_slopes
from evomerge.merging import seconds_compiling
from evomerge.placement import Placement, fastest, find
from evomerge.placement import describe as describe_device
from evomerge.recipe import Base, Expert, Recipe
from evomerge.trial import LONGEST_ERROR, Evaluation, Examples, Split

_NUMPY_GENERATOR = np.random.MT19937()
"""Numpy's global bit generator while a candidate is evaluated."""
OUT_OF_DEVICE_MEMORY = "out of device memory"
"""How the error of a candidate begins that does not fit on the device, which says little about its recipe."""
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")


class Worker:
    """Evaluates recipes one at a time in one live model. Not to be confused with an evaluator, which distributes proposals."""

    def __init__(self, setup: Setup, *, alone: bool = True) -> None:
        """Open nothing yet. Unless `alone`, weights of members are saved at once, where other workers, and an engine's, find them."""
        self.setup = setup
        folder = None if setup.members is None else Path(setup.members)
        self.members = Members(folder=folder, shared=not alone or setup.engine is not None)
        self._loaded: Loaded | None = None
        if setup.engine is not None and not alone:
            # In a process of its own, an engine would go on where its worker is killed.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

    def prepare(self) -> Loaded:
        """Open the pool, load model and tasks, if that is not done yet. Raises their exceptions."""
        if self._loaded is None:
            with reproducible(self.setup.threads, find(self.setup.device)):
                loaded = Loaded(self.setup, self.members)
                loaded.check()
                self._loaded = loaded
                memory.give_back()  # what loading took, beside the model
        return self._loaded

    def memory(self) -> str:
        """Return in words what memory of its device a candidate takes, after one; nothing on the CPU."""
        builder = self.prepare().builder
        pool, copies = builder.pool, builder.placement.copies
        return builder.placement.summary(pool.nbytes * (1 + len(pool.experts))) if copies else ""

    def close(self) -> None:
        """End the engine, if there is one; the next evaluation loads all again."""
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None

    def evaluate(
        self,
        recipe: Recipe,
        split: Split = "search",
        examples: Examples | None = None,
        slopes: Examples | None = None,
    ) -> Evaluation:
        """Return the recipe's scores on `examples` (None: on all), or the error of this candidate.

        With `slopes`, some of these examples, it has the slopes of each task's searched mean over them. `seconds` of the result
        are those of `decode` (reading the recipe), `merge` (building it into the model), `compile` (code for such merges, where there
        was none yet) and `score`, slopes included. Raises the exceptions of `prepare`, `EvaluatorError` where an engine died, and KeyboardInterrupt.
        """
        loaded = self.prepare()
        placement = loaded.builder.placement
        for _ in range(2):
            try:
                evaluation = self._evaluate(loaded, recipe, split, examples, slopes)
            except torch.OutOfMemoryError:  # once more, with nothing on the device but the candidate
                loaded.release()
                placement.release()
                continue
            if evaluation.error is None:
                placement.settle()
            return evaluation
        return Evaluation(error=_does_not_fit(self.setup, placement))

    def _evaluate(
        self, loaded: Loaded, recipe: Recipe, split: Split, examples: Examples | None, slopes: Examples | None
    ) -> Evaluation:
        """Evaluate as `evaluate` does. Raises `torch.OutOfMemoryError` where the device is full."""
        scores: dict[str, Any] = {}
        outputs: dict[str, Any] = {}
        derivatives: dict[str, Any] = {}
        seconds: dict[str, float] = {}
        try:
            with reproducible(self.setup.threads, loaded.builder.placement.device):
                with _timed(seconds, "decode"):
                    built = loaded.builder.build_model(recipe)
                    checkpoint = checked(built)
                    pull = None if slopes is None else Slopes(recipe, built)
                before = seconds_compiling()
                with _timed(seconds, "merge"):
                    keeps = self.setup.members is not None and split == "search"
                    if keeps and not isinstance(recipe.root, Base | Expert):
                        member = self.members.keep(recipe.id, checkpoint)
                        checkpoint = checkpoint if isinstance(checkpoint, Stacked) else member
                    loaded.refit(recipe, checkpoint)
                if (compiling := seconds_compiling() - before) > 0:
                    seconds["compile"] = compiling
                    seconds["merge"] = max(seconds["merge"] - compiling, 0.0)
                    memory.give_back()
                with _timed(seconds, "score"):
                    for task, indices in loaded.indices(examples):
                        wanted = (slopes or {}).get(task.name)
                        if pull is None or wanted is None:
                            result = loaded.score(task, split, indices)
                        else:
                            loaded.put_head_on(task)
                            result = score_with_slopes(task, loaded.model, split, indices, wanted, pull)
                            derivatives[f"{task.name}/{task.search_metric}"] = pull.collect()
                        for metric, vector in result.scores.items():
                            _check_scores(task.name, metric, vector)
                            scores[f"{task.name}/{metric}"] = vector
                        outputs |= {f"{task.name}/{name}": table for name, table in result.outputs.items()}
        except (KeyboardInterrupt, torch.OutOfMemoryError, EvaluatorError):
            raise
        except BaseException as error:  # noqa: BLE001  # a task may raise anything, SystemExit too
            return Evaluation(error=describe(error), seconds=seconds)
        return Evaluation(scores=scores, outputs=outputs, slopes=derivatives, seconds=seconds)


class RemoteWorker:
    """A worker alone in its process, for `evaluate.ray`. What it takes and returns can be sent: recipe JSON in, scores out."""

    def __init__(self, setup: Setup, digests: Mapping[str, str] = MappingProxyType({})) -> None:
        """Let SIGTERM end the process, so this must run in its main thread. `digests` are those that the pool's models must have."""
        # Python's own way, SystemExit, would look like an error of the candidate.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
        self._worker = Worker(setup, alone=False)
        self._digests = dict(digests)

    def prepare(self) -> str | None:
        """Load models and tasks. Return None, or the error as text (exceptions may not be picklable)."""
        try:
            pool = self._worker.prepare().builder.pool
            found = pool.digests if self._digests else {}  # read once on each machine, then cached
        except Exception as error:  # noqa: BLE001  # models and tasks may raise anything
            return describe(error)
        for name, digest in self._digests.items():
            if found.get(name) != digest:
                path = self._worker.setup.experts.get(name, self._worker.setup.base)
                return (
                    f"{name} in {path} on {socket.gethostname()} is another model than the study's: its sha256 begins with "
                    f"{found.get(name, 'nothing')[:12]}, expected {digest[:12]}; put the study's models on a shared disk, or copy them there"
                )
        return None

    def evaluate(
        self,
        recipe: str,
        split: Split,
        examples: Examples | None,
        slopes: Examples | None,
        lineage: Mapping[str, str],
    ) -> Evaluation:
        """Return the evaluation of a recipe in JSON. `lineage` has the recipes of its ancestors, in JSON, by id."""
        for identity, ancestor in lineage.items():
            if identity not in self._worker.members.lineage:
                self._worker.members.lineage[identity] = Recipe.parse(json.loads(ancestor))
        return self._worker.evaluate(Recipe.parse(json.loads(recipe)), split, examples, slopes)


def _check_scores(task: str, metric: str, vector: np.ndarray[Any, Any]) -> None:
    bad = np.flatnonzero(~np.isfinite(vector))
    if bad.size:
        first = f"example {bad[0]} scored {vector[bad[0]]}"
        msg = f"task `{task}`, metric `{metric}`: {first} ({bad.size} of {vector.size} are not finite)"
        raise FloatingPointError(msg)


def _does_not_fit(setup: Setup, placement: Placement) -> str:
    """Return the error of a candidate for which the device is too small, with what to type."""
    batches = [f"`{name}` ({task['batch']})" for name, task in setup.tasks.items() if task.get("batch", 0) > 1]
    smaller = fastest(placement.device)
    advice = [
        f"a smaller `batch` of the tasks {', '.join(batches)}" if batches else "a smaller `batch` of the tasks",
        *([f"`precision: {smaller}`"] if setup.precision == "float32" and smaller != "float32" else []),
        *(["fewer workers, with `gpus: 1`"] if setup.gpus < 1 else []),
    ]
    return (
        f"{OUT_OF_DEVICE_MEMORY}: {describe_device(placement.device)} is too small for the model and a batch, even without the "
        f"pool's models on it; that says nothing of this candidate's quality. Type {', or '.join(advice)}"
    )


def describe(error: BaseException) -> str:
    """Return an exception as `Type: last line`, without memory addresses, so that it is the same text in every run.

    It can be printed to a terminal, whatever the exception holds.
    """
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # noqa: BLE001  # a task's exception may fail to print
        lines = []
    text = f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
    return _ADDRESS.sub("0x…", printable(text))[:LONGEST_ERROR]


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] = time.perf_counter() - start


@contextmanager
def reproducible(threads: int, device: torch.device) -> Iterator[None]:
    """Give the block the same results in every process, and restore the process's state afterwards.

    Fixes the number of torch's threads, its deterministic kernels, and all global generators. The state is restored so
    that a driver in the same process searches as it would beside worker processes.
    """
    kernels: Any = torch.utils.deterministic
    numpy: Any = np.random
    state = torch.get_num_threads(), torch.get_deterministic_debug_mode(), kernels.fill_uninitialized_memory
    generators = random.getstate(), numpy.get_bit_generator()
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("warn")
    kernels.fill_uninitialized_memory = False  # merges allocate many tensors and overwrite them
    numpy.set_bit_generator(_NUMPY_GENERATOR)  # a tenth of the time of saving and restoring its state
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            # `torch.manual_seed` seeds every kind of accelerator, which takes longer than a small candidate.
            seed: Callable[[int], Any] = torch.default_generator.manual_seed
            if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # the library has no types here
                seed = torch.manual_seed
            seed(0)
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002  # tasks may use the global one
            yield
    finally:
        torch.set_num_threads(state[0])
        torch.set_deterministic_debug_mode(state[1])
        kernels.fill_uninitialized_memory = state[2]
        random.setstate(generators[0])
        numpy.set_bit_generator(generators[1])
