"""Linear algebra of small matrices on one thread.

With small matrices BLAS's threads mostly wait for each other: on a busy two-core machine, inverting 60 rows takes 16 ms
of CPU instead of 0.04. The number of threads also changes how sums round.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

_Function = TypeVar("_Function", bound=Callable[..., Any])


def on_one_thread(function: _Function) -> _Function:
    """Return `function` with its linear algebra on one thread, in the libraries that are loaded at decoration."""
    wrapped: _Function = ThreadpoolController().wrap(limits=1, user_api="blas")(function)
    return wrapped
