"""The Python API: a study in a few lines, tasks that are functions, experts that are loaded models."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModel

import evomerge as em
from evomerge.errors import EvomergeError, ModelError, StudyError, TaskError


def sharpness(model, examples):
    """A cheap score of the weights: no forward pass."""
    weight = next(iter(model.module.parameters())).float()
    return [-abs(float(weight.mean()) - example) for example in examples]


def _by_value():
    """A function that workers cannot import, as one of a notebook: it travels by value."""

    def sharp(model, examples):
        weight = next(iter(model.module.parameters())).float()
        return [-abs(float(weight.mean()) - example) for example in examples]

    return sharp


@pytest.fixture
def arguments(small_digits):
    return {
        "pool": small_digits.pool,
        "space": "task_arithmetic",
        "tasks": dict(list(small_digits.tasks.items())[:2]),
        "evaluations": 8,
        "driver": {"kind": "nsga2", "population": 8},
        "report": {"scales": [0.3], "front": 3, "resamples": 100},
    }


def test_importing_evomerge_imports_nothing_heavy_and_lists_its_names():
    code = "import sys, evomerge; print(len(sys.modules), 'torch' in sys.modules, 'create_study' in dir(evomerge))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules, torch_loaded, listed = done.stdout.split()
    assert (torch_loaded, listed) == ("False", "True")
    assert int(modules) < 400
    assert all(getattr(em, name) is not None for name in em.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = em.nothing


def test_more_genes_along_slopes_than_examples_are_warned_of(arguments, tmp_path):
    task = em.task(sharpness, search=[0.1, 0.2], report=[0.3], metrics=["sharpness"], gradient=sharpness)
    changed = {"driver": {"kind": "gradient"}, "tasks": {"sharp": task}}
    with pytest.warns(UserWarning, match="4 genes follow slopes of 2 search examples, without shrinkage"):
        em.create_study(tmp_path / "run", **(arguments | changed))


def test_a_study_in_a_few_lines_searches_reports_picks_and_exports(arguments, tmp_path):
    study = em.create_study(tmp_path / "run", **arguments)
    study.run(progress=False)
    trials, front = study.trials(), study.front()
    assert len(trials) == 8
    assert {"number", "recipe_id", "error"} < set(trials.columns)
    assert {gene.name for gene in study.parts.space.genes} < set(front.columns)
    assert set(front["number"]) <= set(trials["number"])
    results = em.results(study, progress=False)
    assert results.figure().axes
    assert results.table()["name"][0].startswith("#")
    best = em.pick(study, results, weights={"turned": 1.0})
    folder = em.export(study, best, tmp_path / "merged", results=results)
    assert AutoModel.from_pretrained(folder) is not None


def test_the_same_arguments_open_the_study_again_and_other_ones_are_refused(arguments, tmp_path):
    em.create_study(tmp_path / "run", **arguments).run(progress=False)
    again = em.create_study(tmp_path / "run", **arguments | {"evaluations": 16})
    again.run(progress=False)
    assert len(again.trials()) == 16
    with pytest.raises(StudyError, match="not the study that was started here"):
        em.create_study(tmp_path / "run", **arguments | {"seed": 1})


def test_a_python_function_is_a_task_and_is_part_of_what_the_study_is(arguments, tmp_path):
    tasks = {"sharp": em.task(sharpness, search=[0.0, 0.1, 0.2], report=[0.05, 0.15])}
    arguments |= {"tasks": tasks, "driver": {"kind": "random"}}
    study = em.create_study(tmp_path / "run", **arguments)
    study.run(progress=False)
    assert study.trials()["sharp/score"].notna().all()
    assert em.results(study, progress=False).front
    tasks["sharp"] = em.task(sharpness, search=[0.0, 0.1, 0.3], report=[0.05, 0.15])
    with pytest.raises(StudyError, match="digest"):
        em.create_study(tmp_path / "run", **arguments)
    with pytest.raises(TaskError, match="is a Python function"):
        em.Study.open(tmp_path / "run")


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_python_function_is_scored_by_two_workers_as_by_one(arguments, tmp_path):
    tasks = {"sharp": em.task(_by_value(), search=[0.0, 0.1], report=[0.2])}
    digests = []
    for workers in (1, 2):
        study = em.create_study(
            tmp_path / str(workers), **arguments | {"tasks": tasks, "workers": workers, "driver": {"kind": "random"}}
        )
        study.run(progress=False)
        digests.append(study.digest())
    assert digests[0] == digests[1]


def test_loaded_models_are_a_pool_like_their_folders(arguments, tmp_path):
    pool = arguments["pool"]
    loaded = {
        "base": AutoModel.from_pretrained(pool["base"]),
        "experts": {name: AutoModel.from_pretrained(path) for name, path in pool["experts"].items()},
    }
    arguments |= {"tasks": {"sharp": em.task(sharpness, search=[0.0, 0.1], report=[0.2])}, "driver": {"kind": "random"}}
    means = []
    for name, models in (("folders", pool), ("loaded", loaded)):
        study = em.create_study(tmp_path / name, **arguments | {"pool": models})
        study.run(progress=False)
        means.append(study.trials()["sharp/score"].to_numpy())
    assert np.array_equal(*means)
    with pytest.raises(ModelError, match="got Linear"):
        em.create_study(tmp_path / "no", **arguments | {"pool": {"base": torch.nn.Linear(2, 2), "experts": {}}})


def test_a_driver_searches_any_function():
    space = em.Box({"x": (-5, 5), "y": (-5, 5)})
    driver = em.driver({"kind": "cma"}, space, ["score"], seed=0)
    best = -np.inf
    for proposal in em.asks(driver, 300):
        values = space.values(proposal.genome)
        score = -((values["x"] - 1) ** 2) - (values["y"] + 2) ** 2
        best = max(best, score)
        driver.tell(proposal, em.Evaluation.of({"score": score}))
    assert best > -1e-3


def test_mistakes_are_one_error_that_names_them(arguments, tmp_path):
    with pytest.raises(StudyError, match=r"task `a`: expected settings as a mapping, or evomerge.task"):
        em.create_study(tmp_path / "run", **arguments | {"tasks": {"a": sharpness}})
    with pytest.raises(StudyError, match="pool: expected settings"):
        em.create_study(tmp_path / "run", **arguments | {"pool": "digits"})
    with pytest.raises(TaskError, match="`search` has no list of examples"):
        em.task(sharpness, search=200, report=[0.1])
    with pytest.raises(TaskError, match="expected a function"):
        em.task("module:function", search=[0.1], report=[0.1])
    with pytest.raises(TaskError, match="examples have no digest"):
        em.task(sharpness, search=[object()], report=[0.1])
    with pytest.raises(EvomergeError, match="a list of one or more different objectives"):
        em.driver({"kind": "cma"}, em.Box({"x": (0, 1)}), "score", seed=0)


def test_the_digest_of_a_task_covers_arrays_and_code_without_source():
    arrays = [em.task(sharpness, search=[np.full(2000, value)], report=[0.1]) for value in (0.0, 1.0, 0.0)]
    assert arrays[0]["digest"] == arrays[2]["digest"] != arrays[1]["digest"]
    typed = [em.task(eval(f"lambda model, examples: [{n}.0]"), search=[0.1], report=[0.1]) for n in (1, 2)]
    assert typed[0]["digest"] != typed[1]["digest"]


def test_a_task_that_switches_the_model_to_training_changes_no_later_score(arguments, tmp_path):
    def train(model, examples):
        model.module.train()
        return [float(model.module.training)] * len(examples)

    def training(model, examples):
        return [float(model.module.training)] * len(examples)

    tasks = {name: em.task(task, search=[0], report=[0]) for name, task in (("a", train), ("b", training))}
    study = em.create_study(tmp_path / "run", **arguments | {"tasks": tasks, "driver": {"kind": "random"}})
    study.run(progress=False)
    assert set(study.trials()["b/score"]) == {0.0}
