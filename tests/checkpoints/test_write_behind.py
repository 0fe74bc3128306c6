"""write_behind: bytes arrive in order, little waits in memory, and what goes wrong in the thread is not lost."""

import errno
import os
import signal
import sys
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge.checkpoints.save import write_behind


@pytest.fixture
def gate(monkeypatch):
    """The writer's thread stops at its first sync, after eight bytes, until this is set."""
    gate, sync = threading.Event(), os.fsync
    monkeypatch.setattr(sys.modules[write_behind.__module__], "_PIECE", 8)
    monkeypatch.setattr(os, "fsync", lambda handle: (gate.wait(5), sync(handle)))
    return gate


def write(path, views, most=32, done=lambda: None):
    """Write the views, and call `done` after each."""
    with write_behind(path, most) as append:
        for view in views:
            append(memoryview(view))
            done()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.binary(max_size=30), max_size=12), st.integers(1, 40), st.integers(1, 40))
def test_bytes_arrive_in_order(tmp_path, views, most, piece):
    path = tmp_path / "file"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[write_behind.__module__], "_PIECE", piece)
        write(path, views, most)
    assert path.read_bytes() == b"".join(views)
    path.unlink()


def test_append_blocks_while_too_much_waits(tmp_path, gate):
    appended, views = [], [bytes([i] * 8) for i in range(5)]
    producer = threading.Thread(target=write, args=(tmp_path / "file", views, 16, lambda: appended.append(1)))
    producer.start()
    while len(appended) < 2:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(appended) == 2
    gate.set()
    producer.join()
    assert (tmp_path / "file").read_bytes() == b"".join(views)


def test_view_larger_than_the_limit_waits_alone(tmp_path, gate):
    gate.set()
    write(tmp_path / "file", [b"small", b"larger than four bytes"], most=4)
    assert (tmp_path / "file").read_bytes() == b"smalllarger than four bytes"


@pytest.mark.parametrize("appends", [1, 3])
def test_failure_in_the_thread_is_raised_by_a_later_append_or_at_the_end(tmp_path, monkeypatch, appends):
    def fail(handle):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(sys.modules[write_behind.__module__], "_PIECE", 8)
    monkeypatch.setattr(os, "fsync", fail)
    appended = []
    with pytest.raises(OSError, match="full"):
        write(tmp_path / "file", [bytes(8)] * appends, 8, lambda: appended.append(1))
    assert len(appended) == 1


def test_error_in_the_with_block_drops_waiting_bytes(tmp_path, gate):
    def fail():
        threading.Timer(0.1, gate.set).start()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "file", [bytes(20)], done=fail)
    assert (tmp_path / "file").stat().st_size == 8


def test_ctrl_c_interrupts_an_append_that_waits(tmp_path, gate):
    def interrupt():
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        threading.Timer(0.3, gate.set).start()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "file", [bytes(8)] * 2, most=8, done=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "file").stat().st_size == 8


def test_a_file_that_exists_is_not_overwritten(tmp_path):
    (tmp_path / "file").write_text("years of work")
    with pytest.raises(FileExistsError), write_behind(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "years of work"
