"""Code that a study names runs only where the user has run it before, or has agreed to."""

import shutil
import sys

import pytest

from evomerge import trust
from evomerge.errors import StudyError

TASKS = {"t": {"kind": "callable", "function": "scores.mine:score", "gradient": "slopes:slope"}, "u": {"kind": "other"}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with code, in an account that has run nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "study"
    (folder / "scores").mkdir(parents=True)
    for name, content in {
        "scores/__init__.py": "",
        "scores/mine.py": "import json\nimport common\nraise SystemExit",
        "slopes.py": "def slope(): import late",
        "common.py": "from . import nothing",
        "late.py": "def (",
        "unused.py": "",
        "model.py": "",
    }.items():
        (folder / name).write_text(content)
    return folder


def code(folder):
    return trust.code_files(TASKS, f"{folder / 'model.py'}:make", folder)


def test_files_are_those_that_would_be_imported_from_the_folder_and_nothing_is_imported(folder, monkeypatch):
    for module in ("scores", "slopes", "common", "late"):  # of other tests
        monkeypatch.delitem(sys.modules, module, raising=False)
    names = [file.relative_to(folder).as_posix() for file in code(folder)]
    assert names == ["common.py", "late.py", "model.py", "scores/__init__.py", "scores/mine.py", "slopes.py"]
    assert not {"scores", "slopes", "common", "late"} & set(sys.modules)


def test_installed_modules_are_the_users_own(folder):
    tasks = {
        "t": {"kind": "callable", "function": "math:sin"},
        "u": {"kind": "callable", "function": "torch.nn:Linear"},
    }
    assert trust.code_files(tasks, None, folder) == []


def test_code_runs_where_its_content_was_agreed_to_wherever_it_lies(folder, tmp_path):
    with pytest.raises(
        StudyError, match=r"this account has not run before, .*common.py.*; read it, then type `evomerge trust"
    ):
        trust.check(code(folder), folder)
    trust.record(code(folder))
    trust.check(code(folder), folder)
    shutil.move(folder, tmp_path / "moved")
    trust.check(code(tmp_path / "moved"), tmp_path)
    (tmp_path / "moved" / "late.py").write_text("import os")
    with pytest.raises(StudyError, match=r"changed since: [^,]*late.py;"):
        trust.check(code(tmp_path / "moved"), tmp_path)


def test_compiled_code_that_would_run_in_place_of_what_is_read_is_removed_but_not_through_a_link(folder, tmp_path):
    (folder / "__pycache__").mkdir()
    for name in ("slopes.cpython-311.pyc", "others.cpython-311.pyc"):
        (folder / "__pycache__" / name).touch()
    trust.remove_compiled(code(folder))
    assert [file.name for file in (folder / "__pycache__").iterdir()] == ["others.cpython-311.pyc"]
    (folder / "__pycache__" / "slopes.cpython-311.pyc").touch()
    (folder / "__pycache__").rename(tmp_path / "other")
    (folder / "__pycache__").symlink_to(tmp_path / "other")
    with pytest.raises(StudyError, match=r"__pycache__: a link"):
        trust.remove_compiled(code(folder))
    assert len([*(tmp_path / "other").iterdir()]) == 2
