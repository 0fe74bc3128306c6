"""Memory of this process that is freed and goes back to the system."""

import ctypes
import sys
from collections.abc import Callable
from functools import cache


def give_back() -> None:
    """Give memory that was freed, and that the allocator keeps for later, back to the system, where it is glibc's.

    It is for moments after much was freed once, such as the loading of a model: the next to use so much memory waits for it.
    """
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    function: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return function
