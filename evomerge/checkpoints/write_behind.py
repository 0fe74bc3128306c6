"""write_behind: append to a file in a separate thread, so that the next bytes are computed while the last are written."""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

# Bytes between two syncs. With many dirty pages the kernel stalls the writer for longer than the disk needs.
_PIECE = 32 << 20


@contextlib.contextmanager
def write_behind(path: Path, most: int = 32 << 20) -> Iterator[Callable[[memoryview], None]]:
    """Yield a function that appends bytes to the new file `path`; the file is durable when the `with` block ends.

    The bytes must not change until then. At most `most` of them wait to be written, or one larger view: further appends
    block. An error of the thread (`OSError`) is raised by a later append, or at the end of the `with` block. If the block
    raises, bytes that still wait are dropped, and the file is left incomplete.
    """
    waiting: deque[tuple[Future[None], int]] = deque()
    held = unsynced = 0
    stopped = threading.Event()

    def write(data: memoryview) -> None:
        nonlocal unsynced
        while data and not stopped.is_set():
            written = file.write(data[: _PIECE - unsynced])
            data = data[written:]
            unsynced += written
            if unsynced == _PIECE:
                os.fsync(file.fileno())
                unsynced = 0

    def settle() -> None:
        nonlocal held
        future, size = waiting.popleft()
        future.result()
        held -= size

    def append(data: memoryview) -> None:
        nonlocal held
        while waiting and (waiting[0][0].done() or held + data.nbytes > most):
            settle()
        waiting.append((thread.submit(write, data), data.nbytes))
        held += data.nbytes

    with path.open("xb", buffering=0) as file, ThreadPoolExecutor(1, "write") as thread:
        try:
            yield append
            while waiting:
                settle()
            os.fsync(file.fileno())
        except BaseException:
            stopped.set()
            thread.shutdown(cancel_futures=True)
            raise
