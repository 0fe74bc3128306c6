"""Of all that make one file at a time, one makes it."""

import threading
import time

import pytest

from evomerge import locks


def made_by(count, path):
    """Let so many threads make a file, each with the lock opened anew, as processes do; return which of them made it."""
    makers = []

    def make(number):
        with locks.single_flight(path):
            if not path.is_file():
                makers.append(number)
                time.sleep(0.05)
                if path.parent.is_dir():
                    path.write_text("made")

    threads = [threading.Thread(target=make, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return makers


def test_a_file_is_made_once_and_its_lock_is_gone(tmp_path):
    path = tmp_path / "new" / "tables"
    assert len(made_by(8, path)) == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["tables"]


def test_a_maker_that_fails_leaves_it_to_the_next(tmp_path):
    path = tmp_path / "tables"
    with pytest.raises(ZeroDivisionError), locks.single_flight(path):
        1 / 0  # noqa: B018  # what fails
    assert len(made_by(2, path)) == 1


def test_where_no_lock_can_be_made_all_make_it(tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert sorted(made_by(3, tmp_path / "file" / "tables")) == [0, 1, 2]
