"""The harness without its side effects: no network, no code of the hub, templates in Jinja's sandbox, nothing printed."""

import contextlib
import functools
import io
import logging
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from evomerge.tasks.data import task_error


def require(task: str) -> None:
    """Raise `TaskError` unless the harness is installed."""
    try:
        import lm_eval.models.huggingface
        import lm_eval.tasks  # noqa: F401  # only whether it can be imported
    except ImportError as error:
        msg = f"kind `lm_eval` needs the package lm-eval ({error}); type: pip install 'evomerge[lm-eval]'"
        raise task_error(task, msg) from None


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Keep the harness from the network, and from code of the hub, in the block, and its log from the terminal.

    Its templates are Jinja's, which can reach any Python object: here they run in Jinja's sandbox. Metrics that the harness
    does not have itself are scripts of the hub: none is loaded.
    """
    import datasets
    import evaluate
    from lm_eval import utils

    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with (
            _replaced(datasets.config, "HF_HUB_OFFLINE", value=True),
            _replaced(evaluate, "load", value=_refuse),
            _replaced(utils, "env", value=_environment()),
        ):
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Be `contained` without progress bars, and give the harness's global generators its own seeds; restore them afterwards.

    Some tasks shuffle their choices as they load, by the generators that `lm_eval.simple_evaluate` seeds for the whole process.
    """
    numpy: Any = np.random
    states = random.getstate(), numpy.get_state()
    random.seed(0)
    numpy.seed(1234)
    try:
        with contained(), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        random.setstate(states[0])
        numpy.set_state(states[1])


@contextlib.contextmanager
def _replaced(owner: Any, name: str, *, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _refuse(*_: Any, **__: Any) -> Any:
    raise OSError("it needs a metric that is a script of the hub, which evomerge does not run")


@functools.cache
def _environment() -> Any:
    """Return the harness's template environment with Jinja's sandbox."""
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    environment = SandboxedEnvironment(
        loader=utils.env.loader, undefined=utils.env.undefined, keep_trailing_newline=utils.env.keep_trailing_newline
    )
    environment.filters = dict(utils.env.filters)
    return environment
