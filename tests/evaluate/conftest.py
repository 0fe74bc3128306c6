"""A pool, and tasks that fail for chosen candidates."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from evomerge import tasks
from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.evaluate import Setup
from evomerge.recipe import Recipe, expert

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def digits(small_digits):
    return small_digits


@pytest.fixture(scope="session")
def setup(digits):
    """The experts on digits and two of their tasks."""
    two = {name: digits.tasks[name] for name in ("turned", "inverted")}
    return Setup(base=digits.pool["base"], experts=digits.pool["experts"], tasks=two)


@pytest.fixture(scope="session")
def sizes(setup):
    """Numbers of examples of its tasks, by split."""
    opened = [tasks.make(name, entry, Path()) for name, entry in setup.tasks.items()]
    return {split: {task.name: task.size(split) for task in opened} for split in ("search", "report")}


@pytest.fixture(scope="session")
def faulty(digits, tmp_path_factory):
    """A setup with a real task and the task `faults`, which fails as `plan_faults` plans in a file beside the models."""
    models = tmp_path_factory.mktemp("faulty")
    for path in (digits.pool["base"], *digits.pool["experts"].values()):
        shutil.copytree(path, models / Path(path).name)
    faults = {"kind": "callable", "function": "faults:score", "search": 4, "report": 6}
    return Setup(
        base=str(models / Path(digits.pool["base"]).name),
        experts={name: str(models / Path(path).name) for name, path in digits.pool["experts"].items()},
        tasks={"turned": digits.tasks["turned"], "faults": faults},
        folder=str(HERE),
    )


@pytest.fixture(scope="session")
def plan_faults(faulty):
    """Return a function that takes a fault of the task `faults` for each recipe, in place of earlier plans."""
    builder = Builder(Pool(faulty.base, faulty.experts))

    def plan(faults: Mapping[Recipe, str]) -> None:
        named = {
            repr(float(builder.build(recipe).tensor("classifier.bias")[0])): fault for recipe, fault in faults.items()
        }
        assert len(named) == len(faults)
        folder = Path(faulty.base).parent
        for flag in folder.glob("*.flag"):
            flag.unlink()
        (folder / "faults.json").write_text(json.dumps(named))

    return plan


@pytest.fixture(scope="session")
def generations():
    """Six recipes: two experts, then merges of the two recipes before."""
    recipes = [expert("turned"), expert("inverted")]
    for weight in (0.3, 0.6, 0.5, 0.4):
        inputs = [{"member": parent.id} for parent in recipes[-2:]]
        data = {"merge": {"method": "linear", "inputs": inputs, "parameters": {"weight": weight}}}
        recipes.append(Recipe.parse(data))
    return recipes
