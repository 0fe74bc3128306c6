"""Files are replaced atomically."""

import os
from pathlib import Path

import pytest

from evomerge import files


def test_content_is_replaced_atomically(tmp_path):
    target = tmp_path / "new" / "a.json"
    files.write(target, "é")
    assert target.read_bytes() == "é".encode()
    assert target.stat().st_mode & 0o777 == 0o644
    files.write(target, b"\0\1")
    assert target.read_bytes() == b"\0\1"
    assert list(target.parent.iterdir()) == [target]


def test_failure_leaves_the_old_content_and_no_temporary_file(tmp_path, monkeypatch):
    target = tmp_path / "a"
    files.write(target, "old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        files.write(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_readers_of_the_old_file_keep_it(tmp_path):
    """The new file is another one: a process that has the old one open does not see its bytes change."""
    target = tmp_path / "a"
    files.write(target, "old")
    with target.open() as reader:
        files.write(target, "new")
        assert reader.read() == "old"


@pytest.mark.parametrize("value", [None, "", "relative/path"])
def test_cache_is_in_the_home_folder_by_default(monkeypatch, value):
    if value is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert files.cache() == Path.home() / ".cache" / "evomerge"


def test_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache() == tmp_path / "evomerge"
