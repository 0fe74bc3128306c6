"""Linear algebra of small matrices on one thread.

Where matrices are small, BLAS's threads wait for each other most of the time: the inverse of 60 rows takes a two-core machine
that does something else as well 16 ms of CPU instead of 0.04. And sums round by how many threads share them.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

_Function = TypeVar("_Function", bound=Callable[..., Any])


def on_one_thread(function: _Function) -> _Function:
    """Let `function` do its linear algebra on one thread. Those libraries are limited that are loaded when it is decorated."""
    wrapped: _Function = ThreadpoolController().wrap(limits=1, user_api="blas")(function)
    return wrapped
