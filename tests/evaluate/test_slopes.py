"""Slopes of a candidate are those of its scores, and what has none says so."""

import dataclasses

import numpy as np
import pytest
import torch
from allocations import Allocations, Saved
from rows import write_jsonl
from tiny_models import tiny_model

from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.evaluate import Setup, Worker
from evomerge.evaluate import slopes as slopes_of
from evomerge.evaluate.slopes import Slopes, score_with_slopes
from evomerge.merging import MergeGradient
from evomerge.models import LiveModel
from evomerge.recipe import Recipe, base
from evomerge.tasks import make

OBJECTIVES = ("turned/log_likelihood", "inverted/log_likelihood")


def blend(turned=0.5, inverted=0.3, scale=0.9):
    weight = {"per": ["expert", "depth/2"], "values": {"turned": [turned, 0.4], "inverted": [inverted, 0.6]}}
    parameters = {"weight": weight, "lambda": scale}
    return Recipe.parse(
        {"merge": {"method": "task_arithmetic", "inputs": ["turned", "inverted"], "parameters": parameters}}
    )


def nested(inner=0.4, outer=0.7):
    parameters = {"weight": {"per": ["expert"], "values": {"turned": inner, "inverted": 0.8}}, "lambda": 1}
    merge = {"merge": {"method": "ties", "inputs": ["turned", "inverted"], "parameters": parameters}}
    weight = {"per": ["expert"], "values": {"#0": outer, "turned": 0.2}}
    return Recipe.parse({"merge": {"method": "linear", "inputs": [merge, "turned"], "parameters": {"weight": weight}}})


@pytest.fixture(scope="module")
def worker(setup):
    return Worker(setup)


@pytest.fixture(scope="module")
def everything(sizes):
    return {task: tuple(range(size)) for task, size in sizes["search"].items()}


def change(worker, recipe, step=2e-3, **moved):
    """Return the central difference of both objectives by one argument of a recipe's function."""
    ((name, value),) = moved.items()
    above, below = (worker.evaluate(recipe(**{name: value + sign * step})).means(OBJECTIVES) for sign in (1, -1))
    return (above - below) / (2 * step)


def test_slopes_are_the_differences_of_scores(worker, everything):
    recipe = blend()
    slopes = worker.evaluate(recipe, slopes=everything).slopes
    numbers = [path[-1] if isinstance(path[-1], str) else path[-2:] for path in recipe.numbers]
    assert set(slopes) == set(OBJECTIVES)
    for name, at, value in (
        ("scale", "lambda", 0.9),
        ("turned", ("turned", 0), 0.5),
        ("inverted", ("inverted", 0), 0.3),
    ):
        found = [slopes[objective][numbers.index(at)] for objective in OBJECTIVES]
        assert found == pytest.approx(change(worker, blend, **{name: value}), rel=0.02, abs=2e-3)


def test_slopes_pass_through_nested_merges(worker, everything):
    # TIES trims and elects, so the differences are those of a step that changes few signs.
    recipe = nested()
    slopes = worker.evaluate(recipe, slopes=everything).slopes
    numbers = dict(zip(recipe.numbers, slopes[OBJECTIVES[0]], strict=True))
    outer = numbers["merge", "parameters", "weight", "values", "#0"]
    assert outer == pytest.approx(change(worker, nested, outer=0.7)[0], rel=0.02, abs=2e-3)
    assert np.isfinite([number for path, number in numbers.items() if path[-1] != "density"]).all()
    inner = [number for path, number in numbers.items() if "inputs" in path and path[-1] == "lambda"]
    assert inner[0] != 0


@pytest.mark.parametrize("room", [0, 8_000])
def test_gradients_that_are_held_over_batches_give_the_slopes_of_the_batches(setup, sizes, monkeypatch, room):
    # With batches of 8, a pass through TIES for each batch and tensor, or for each task where gradients fit in the room.
    tasks = {name: {**given, "batch": 8} for name, given in setup.tasks.items()}
    worker = Worker(dataclasses.replace(setup, tasks=tasks))
    examples = {task: tuple(range(32)) for task in sizes["search"]}
    passes = []
    pull = MergeGradient.pull

    def counted(self, name, *arguments):
        passes.append(name)
        return pull(self, name, *arguments)

    monkeypatch.setattr(MergeGradient, "pull", counted)
    merge = {"method": "ties", "inputs": ["turned", "inverted"], "parameters": {"weight": 0.7, "density": 0.6}}
    recipe = Recipe.parse({"merge": merge})
    held = worker.evaluate(recipe, slopes=examples).slopes
    assert len(passes) == len(set(passes)) * len(sizes["search"])
    passes.clear()
    monkeypatch.setattr(slopes_of, "HELD", room)
    batches = worker.evaluate(recipe, slopes=examples).slopes
    assert len(passes) > 2 * len(set(passes)) * len(sizes["search"])
    for name, slopes in held.items():
        assert slopes == pytest.approx(batches[name], rel=1e-4, abs=1e-6, nan_ok=True)


def test_scores_are_those_without_slopes(worker, everything):
    plain, sloped = worker.evaluate(blend()), worker.evaluate(blend(), slopes=everything)
    for name, vector in plain.scores.items():
        assert np.allclose(sloped.scores[name], vector, atol=1e-5)
    assert plain.slopes == {}


def test_slopes_are_of_the_examples_that_are_asked_for(worker, everything):
    some = {"turned": (5, 2, 9)}
    part = worker.evaluate(blend(), slopes=some)
    assert set(part.slopes) == {"turned/log_likelihood"}
    singles = [
        worker.evaluate(blend(), slopes={"turned": (i,)}).slopes["turned/log_likelihood"] for i in some["turned"]
    ]
    assert np.allclose(part.slopes["turned/log_likelihood"], np.mean(singles, axis=0), rtol=1e-4, atol=1e-6)
    assert len(part.scores["turned/log_likelihood"]) == len(everything["turned"])


def test_an_example_that_is_not_scored_has_no_slope(worker):
    error = worker.evaluate(blend(), examples={"turned": (1, 2)}, slopes={"turned": (3,)}).error
    assert error == "TaskError: task `turned`: slopes of example 3, which is not scored"


def test_same_bytes_every_time_and_after_other_candidates(worker, everything):
    first = worker.evaluate(blend(), slopes=everything).to_json()
    worker.evaluate(blend(scale=0.1), slopes=everything)
    assert worker.evaluate(blend(), slopes=everything).to_json() == first


def test_models_without_numbers_have_empty_slopes(worker, everything):
    assert worker.evaluate(base(), slopes=everything).slopes[OBJECTIVES[0]].shape == (0,)


def test_density_has_no_slope(worker, everything):
    data = {"method": "ties", "inputs": ["turned", "inverted"], "parameters": {"density": 0.5, "weight": 0.7}}
    recipe = Recipe.parse({"merge": data})
    slopes = worker.evaluate(recipe, slopes=everything).slopes[OBJECTIVES[0]]
    assert [np.isnan(slope) for slope in slopes] == [path[-1] == "density" for path in recipe.numbers]


@pytest.fixture
def scoring(setup):
    """A live model of its own, a task, and the slopes of a merge that it holds."""
    model = LiveModel(setup.base)
    checkpoint = Builder(Pool(setup.base, setup.experts)).build(blend())
    model.refit(checkpoint)
    return make("turned", setup.tasks["turned"], setup.folder), model, Slopes(blend(), checkpoint)


def test_module_that_stops_the_backward_pass_is_named(scoring):
    task, model, slopes = scoring
    model.module.classifier.register_forward_hook(lambda module, inputs, output: output.detach())
    with pytest.raises(
        Exception, match=r"task `turned` failed: the output of the module `classifier` \(Linear\) has no"
    ):
        score_with_slopes(task, model, "search", None, [0, 1], slopes)


def test_gradient_that_is_not_finite_names_its_tensor(scoring):
    task, model, slopes = scoring
    model.module.classifier.register_full_backward_pre_hook(lambda module, gradients: (gradients[0] * torch.nan,))
    with pytest.raises(FloatingPointError, match=r"the gradient of the tensor `classifier.(weight|bias)` holds NaN"):
        score_with_slopes(task, model, "search", None, [0, 1], slopes)


def test_parameters_need_no_gradients_afterwards_and_hold_none(scoring):
    task, model, slopes = scoring
    score_with_slopes(task, model, "search", None, [0, 1], slopes)
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_gradients_are_never_in_memory_together(scoring):
    task, model, slopes = scoring
    held = []
    take = slopes.take

    def watched(name, gradient):
        held.append(sum(parameter.grad is not None for parameter in model.module.parameters()))
        take(name, gradient)

    slopes.take = watched
    score_with_slopes(task, model, "search", None, [0, 1], slopes)
    assert held
    assert set(held) == {0}


def test_slopes_take_no_more_memory_than_activations_and_the_largest_tensor_once_for_each_expert(tmp_path):
    """Bytes of tensors, counted by operation, beyond the peak of a plain score. All gradients together would be 3 times the bound."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 12}
    models = {name: str(tiny_model(tmp_path / name, "vit", seed, **sizes)) for seed, name in enumerate("abcd")}
    images = torch.linspace(0, 1, 64).view(4, 1, 4, 4).tolist()
    rows = [{"pixels": image, "label": row % 2} for row, image in enumerate(images)]
    given = {"kind": "classification", "input": "pixels", "label": "label"}
    given |= {
        split: write_jsonl(tmp_path / f"{split}.jsonl", some)
        for split, some in (("search", rows[:2]), ("report", rows[2:]))
    }
    setup = Setup(base=models.pop("a"), experts=models, tasks={"shades": given})
    weight = {"per": ["expert"], "values": dict.fromkeys(models, 0.3)}
    merge = {"method": "task_arithmetic", "inputs": list(models), "parameters": {"weight": weight, "lambda": 1}}
    worker, recipe = Worker(setup), Recipe.parse({"merge": merge})
    wanted = {"shades": (0, 1)}
    peaks = []
    for slopes in (None, wanted):
        worker.evaluate(recipe, slopes=slopes)  # caches are filled
        with Allocations() as counted:
            assert worker.evaluate(recipe, slopes=slopes).error is None
        peaks.append(counted.peak)
    loaded = worker.prepare()
    weights = [parameter.requires_grad_() for parameter in loaded.model.module.parameters()]
    saved = Saved(weights)
    with saved:
        graphs = list(loaded.tasks[0].graph(loaded.model, "search", [0, 1]))
    assert len(graphs) == 1
    largest, total = (of(weight.nbytes for weight in weights) for of in (max, sum))
    assert 0 < peaks[1] - peaks[0] <= saved.bytes + len(models) * largest < total / 3
