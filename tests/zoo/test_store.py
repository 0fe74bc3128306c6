"""The cache of zoos: its folder, atomic writes, and errors for missing or damaged zoos."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from evomerge import zoo
from evomerge.errors import ZooError
from evomerge.zoo import store


def silent(done, doing):
    pass


def make_tiny(folder: Path, seed: int, progress: store.Progress) -> store.Contents:
    (folder / "tasks").mkdir()
    (folder / "tasks" / "rows.jsonl").write_text(f'{{"text": "seed {seed}", "label": 0}}\n')
    progress(0.5, "half way")
    task = {"kind": "classification", "search": "tasks/rows.jsonl", "report": "tasks/rows.jsonl", "max_length": 8}
    return {"only": task}, {"accuracy": {}}


TINY = store.Plan(
    name="tiny",
    about="one row",
    experts=("one",),
    settings={"size": 1},
    packages=("numpy",),
    licences={"rows": "CC0-1.0"},
    make=make_tiny,
)


def test_cache_follows_the_xdg_conventions(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert zoo.cache_folder() == tmp_path / "evomerge" / "zoo"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert zoo.cache_folder() == tmp_path / "home" / ".cache" / "evomerge" / "zoo"


def test_a_published_zoo_reads_back_with_absolute_paths(tmp_path):
    told = []
    made = store.publish(TINY, tmp_path, 5, lambda done, doing: told.append(done))
    assert made == store.read(made.folder)
    assert made.seed == 5
    assert made.pool == {
        "base": str(made.folder / "base"),
        "experts": {"one": str(made.folder / "experts" / "one")},
    }
    assert Path(made.tasks["only"]["search"]).read_text().startswith('{"text": "seed 5"')
    assert made.tasks["only"]["max_length"] == 8
    assert told == [0.5, 1.0]


def test_a_zoo_can_be_moved(tmp_path):
    made = store.publish(TINY, tmp_path / "here", 0, silent)
    moved = made.folder.rename(tmp_path / "there")
    assert Path(store.read(moved).tasks["only"]["report"]).is_file()


def test_seed_settings_and_format_name_the_folder():
    names = {plan.folder(Path(), seed).name for plan in (TINY, replace(TINY, settings={"size": 2})) for seed in (0, 1)}
    assert len(names) == 4
    assert all(name.startswith("tiny-") for name in names)


def test_versions_of_the_source_packages_name_the_folder(monkeypatch):
    before = TINY.digest(0)
    monkeypatch.setattr(store, "distribution", lambda package: SimpleNamespace(version="999"))
    assert TINY.digest(0) != before


def test_a_failed_build_leaves_nothing_behind(tmp_path):
    def fail(folder, seed, progress):
        make_tiny(folder, seed, progress)
        raise ZooError("no data")

    with pytest.raises(ZooError, match="no data"):
        store.publish(replace(TINY, make=fail), tmp_path, 0, silent)
    assert list(tmp_path.iterdir()) == []


def test_building_again_replaces_what_was_there(tmp_path):
    made = store.publish(TINY, tmp_path, 0, silent)
    (made.folder / "stray").touch()
    store.publish(TINY, tmp_path, 0, silent)
    assert not (made.folder / "stray").exists()
    assert [path.name for path in tmp_path.iterdir()] == [made.folder.name]


def test_a_damaged_manifest_is_named(tmp_path):
    made = store.publish(TINY, tmp_path, 0, silent)
    (made.folder / "zoo.json").write_text('{"name": "tiny"}')
    with pytest.raises(ZooError, match=r"zoo\.json` is not a valid manifest"):
        store.read(made.folder)


def test_a_zoo_that_is_not_built_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ZooError, match=r"type: evomerge zoo build digits$"):
        zoo.load("digits")


def test_an_unknown_zoo_gets_the_nearest_name():
    with pytest.raises(ZooError, match="did you mean `digits`"):
        zoo.load("digit")
