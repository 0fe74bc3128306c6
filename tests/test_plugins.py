"""Plug-ins are found by their entry points, loaded when they are used, and refused with the name of their distribution."""

import importlib
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from evomerge import merging, plugins, search, tasks
from evomerge.errors import PluginError, RecipeError, TaskError
from evomerge.plugins import Table
from evomerge.recipe import merge
from evomerge.space import Box
from evomerge.testing import merge_tensors

SOURCE = Path(__file__).parent / "plugin_distribution"
TABLES = (search.KINDS, tasks.KINDS, merging.METHODS, merging.STAGES)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """The folder into which pip has installed the distribution, from a copy, as building writes beside the source."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(SOURCE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet")
    command = [sys.executable, "-m", "pip", "install", *options, "--target", folder / "target", source]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return folder / "target"


@pytest.fixture
def installed(target, monkeypatch):
    """Installs the distribution for one test."""
    monkeypatch.syspath_prepend(target)
    for table in TABLES:
        monkeypatch.setattr(table, "_entries", dict(table._entries))
        vars(table).pop("_points", None)
    importlib.invalidate_caches()
    yield
    for table in TABLES:
        vars(table).pop("_points", None)
    sys.modules.pop("evomerge_test_plugin", None)


def test_driver_of_a_plug_in_searches(installed):
    space = Box({"x": (0, 1), "y": (-5, 5)})
    driver = search.make({"kind": "halton", "batch": 3}, space, ["score"], 0)
    proposals = list(search.asks(driver, 10))
    assert len(proposals) == 3
    assert all(0 <= proposal.genome[0] <= 1 and -5 <= proposal.genome[1] <= 5 for proposal in proposals)


def test_task_of_a_plug_in_scores(installed, tmp_path):
    task = tasks.make("some", {"kind": "constant", "value": 0.5}, tmp_path)
    assert task.score(None, "search").scores["value"].tolist() == [0.5, 0.5, 0.5]
    with pytest.raises(TaskError, match="task `some`: `value` is missing"):
        tasks.make("some", {"kind": "constant"}, tmp_path)


def test_method_and_stage_of_a_plug_in_merge(installed):
    base = {"w": torch.zeros(4, 2)}
    experts = [{"w": torch.full((4, 2), 1.0)}, {"w": torch.full((4, 2), 2.0)}]
    merged = merge_tensors(
        merge("halved", ["a", "b"], {"weight": {"per": ["expert"], "values": {"a": 1.0, "b": 3.0}}}), base, experts
    )
    assert merged["w"].unique().tolist() == [3.5]  # (1·1 + 3·2) / 2


def test_names_are_listed_without_loading_and_built_in_names_without_looking(installed, monkeypatch):
    assert {"halton", "broken", "cma"} <= set(search.KINDS)
    assert "halved" in merging.METHODS
    assert "evomerge_test_plugin" not in sys.modules
    vars(search.KINDS).pop("_points")
    monkeypatch.setattr(plugins, "entry_points", lambda group: pytest.fail(f"{group} was read"))
    assert search.KINDS["cma"]
    assert "nsga2" in search.KINDS


def test_unknown_names_are_nearest_to_plug_ins_too(installed):
    with pytest.raises(RecipeError, match="did you mean `halved`"):
        merging.check(merge("halvd", ["a", "b"]))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("broken", r"cannot load `evomerge_test_plugin:MISSING` \(AttributeError: .*repair or uninstall it"),
        ("mistyped", r"expected `evomerge_test_plugin:Halton` to be \(settings model, function of .*, got <class"),
    ],
)
def test_plug_in_that_cannot_be_used_is_an_error_that_names_its_distribution(kind, says, installed):
    with pytest.raises(PluginError, match=f"plug-in `{kind}` of the distribution evomerge-test-plugin 1.0 .*{says}"):
        search.make({"kind": kind}, Box({"x": (0, 1)}), ["score"], 0)


@pytest.mark.parametrize(("names", "owner"), [(["cma"], "evomerge"), (["new", "new"], "an unnamed distribution")])
def test_names_that_are_taken_are_refused(names, owner, monkeypatch):
    points = [EntryPoint(name, "module:THING", "evomerge.drivers") for name in names]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    table = Table("evomerge.drivers", {"cma": 1}, "a number", lambda entry: isinstance(entry, int))
    assert table["cma"] == 1
    with pytest.raises(
        PluginError, match=rf"plug-in `{names[0]}` .*\(evomerge.drivers\): {owner} has that name already"
    ):
        list(table)
