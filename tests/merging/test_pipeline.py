"""The pipeline: tensor by tensor and block by block it gives what the whole model at once would."""

import numpy as np
import pytest
import torch

from evomerge.errors import RecipeError
from evomerge.merging import BLOCK, Pipeline, check, pipeline
from evomerge.recipe import Place, Recipe, merge
from evomerge.testing import InMemory, merge_tensors, tiny_tensors

BASE = tiny_tensors(0)
INPUTS = [tiny_tensors(1 + i, BASE) for i in range(2)]
LABELS = ["a", "b"]


def data(tensors):
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "slerp", "ties", "dare_linear", "dare_ties"])
def test_order_of_tensors_does_not_change_a_byte(method):
    """A worker that writes in another order, or one tensor alone, gets the same."""
    recipe = merge(method, LABELS, seed=4)
    expected = data(merge_tensors(recipe, BASE, INPUTS))
    backwards = Pipeline(recipe.root.merge, InMemory(BASE, INPUTS), {})
    for name in reversed(BASE):
        out = torch.empty_like(BASE[name])
        backwards.write(name, out)
        assert out.numpy().tobytes() == expected[name]


@pytest.mark.parametrize(
    ("method", "searched"),
    [
        ("slerp", ["t"]),
        ("ties", ["density"]),
        ("dare_ties", ["density"]),
        ("dare_ties", ["density", "drop"]),
    ],
)
def test_what_was_prepared_for_another_candidate_does_not_change_a_byte(method, searched):
    prepared = {}
    for number in (0.2, 0.7, 0.45):
        recipe = merge(method, LABELS, dict.fromkeys(searched, number))
        warm = Pipeline(recipe.root.merge, InMemory(BASE, INPUTS), prepared)
        cold = merge_tensors(recipe, BASE, INPUTS)
        for name in BASE:
            out = torch.empty_like(BASE[name])
            warm.write(name, out)
            assert out.numpy().tobytes() == cold[name].numpy().tobytes()


def test_nothing_is_kept_for_nested_merges():
    """Their inputs change with every candidate: what is prepared for them must end with it."""
    prepared = {}
    nested = {"merge": {"method": "linear", "inputs": ["a", "b"]}}
    recipe = Recipe.parse({"merge": {"method": "ties", "inputs": [nested, "b"]}})
    run = Pipeline(recipe.root.merge, InMemory(BASE, INPUTS), prepared)
    run.write("head.weight", torch.empty_like(BASE["head.weight"]))
    assert prepared == {}


def test_size_of_blocks_does_not_matter_without_noise(monkeypatch):
    recipe = merge("ties", LABELS, {"density": 0.3})
    expected = data(merge_tensors(recipe, BASE, INPUTS))
    monkeypatch.setattr(pipeline, "BLOCK", 1000)
    assert data(merge_tensors(recipe, BASE, INPUTS)) == expected
    assert BLOCK == 65536  # keyed noise is drawn block by block: another size would change every mask ever made


def test_negative_zeros_of_the_base_survive_where_nothing_is_added():
    base = {"t": torch.tensor([-0.0, 0.0, -0.0, 1.0])}
    inputs = [{"t": torch.tensor([0.0, -0.0, -0.0, 2.0])}, {"t": torch.tensor([-0.0, 0.0, 0.0, 3.0])}]
    for method, parameters in (
        ("task_arithmetic", {"lambda": 0}),
        ("task_arithmetic", {"weight": -0.0}),
        ("ties", {"lambda": 0}),
    ):
        found = merge_tensors(merge(method, LABELS, parameters), base, inputs)["t"]
        assert found.numpy().tobytes() == base["t"].numpy().tobytes()
    for dtype in (torch.bfloat16, torch.float16):
        low = {"t": base["t"].to(dtype)}
        found = merge_tensors(merge("task_arithmetic", LABELS, {"lambda": 0}), low, inputs)["t"]
        assert found.view(torch.int16).tolist() == low["t"].view(torch.int16).tolist()


def test_result_of_fp32_inputs_in_bf16_is_rounded_once():
    recipe = merge("linear", LABELS)
    wide = merge_tensors(recipe, BASE, INPUTS)
    low = merge_tensors(recipe, BASE, INPUTS, torch.bfloat16)
    for name in BASE:
        assert torch.equal(low[name], wide[name].bfloat16())


def test_parameters_follow_block_kind_depth_and_expert():
    """One input, λ = 1: what is added is the task vector times the table's entry."""
    inputs = [{name: t + 1 for name, t in BASE.items()}, {name: t + 2 for name, t in BASE.items()}]
    rest = {kind: [0, 0] for kind in ("attention", "norm", "embedding", "head", "other")}
    table = {
        "per": ["expert", "kind", "depth/2"],
        "values": {"a": {**rest, "mlp": [0.0, 3.0]}, "b": {**rest, "mlp": [1, 1]}},
    }
    found = merge_tensors(merge("task_arithmetic", LABELS, {"weight": table, "lambda": 1}), BASE, inputs)
    for block in range(4):
        added = found[f"layers.{block}.mlp.weight"] - BASE[f"layers.{block}.mlp.weight"]
        assert torch.allclose(added, torch.tensor(block + 2.0), atol=1e-5)
        assert torch.equal(found[f"layers.{block}.attn.weight"], BASE[f"layers.{block}.attn.weight"])
    assert torch.equal(found["embed.weight"], BASE["embed.weight"])


def test_density_by_block_takes_its_threshold_over_the_whole_model():
    """`scope: model` with a density for each half: each tensor has its half's threshold, measured over all numbers."""
    recipe = merge("ties", ["a"], {"density": {"per": ["block/2"], "values": [0.1, 0.6]}})
    found = merge_tensors(recipe, BASE, INPUTS[:1])
    deltas = {name: (INPUTS[0][name] - BASE[name]).numpy() for name in BASE}
    ordered = np.sort(np.abs(np.concatenate([d.ravel() for d in deltas.values()])))[::-1]
    for block, density in ((0, 0.1), (3, 0.6)):
        name = f"layers.{block}.attn.weight"
        kept = np.abs(deltas[name]) >= ordered[round(density * len(ordered)) - 1]
        assert ((found[name] != BASE[name]).numpy() == kept).all()


def test_tables_that_do_not_fit_the_model_are_refused_before_any_tensor_is_read():
    class Unreadable(InMemory):
        def load(self, name):
            raise AssertionError(name)

    for table, message in (
        ({"per": ["block/9"], "values": [1] * 9}, "the model has 4 blocks; type `block/4` or less"),
        ({"per": ["kind"], "values": {"mlp": 1}}, "no entry for"),
    ):
        recipe = merge("linear", LABELS, {"weight": table})
        with pytest.raises(RecipeError, match=message):
            Pipeline(recipe.root.merge, Unreadable(BASE, INPUTS), {})
        with pytest.raises(RecipeError, match=message):
            check(recipe, [Place(0, 4, "norm")])


def test_origins_of_explicit_stages():
    base, inputs = {"t": torch.tensor([1.0, 1.0])}, [{"t": torch.tensor([3.0, 5.0])}, {"t": torch.tensor([7.0, 9.0])}]

    def found(**stages):
        return merge_tensors(Recipe.parse({"merge": {"inputs": LABELS, "stages": stages}}), base, inputs)["t"].tolist()

    assert found(origin="base") == [9.0, 13.0]  # base + the sum of task vectors
    assert found(origin="zero") == [10.0, 14.0]  # the sum of the models
    assert found(origin="mean") == [5.0, 7.0]  # deviations from the mean cancel
    assert found(origin="base", reduce="solve") == [5.0, 7.0]
    assert found(origin="base", post=[{"scale": {"lambda": 0.5}}, "scale"]) == [5.0, 7.0]
    assert found(origin="base", edit=["none"]) == found(origin="base")


def test_stages_spelled_out_are_the_method():
    spelled = {
        "edit": [{"trim": {"density": 0.3}}],
        "weigh": ["elect"],
        "reduce": "solve",
        "post": [{"scale": {"lambda": 0.9}}],
    }
    recipe = Recipe.parse({"merge": {"inputs": LABELS, "stages": spelled}})
    method = merge("ties", LABELS, {"density": 0.3, "lambda": 0.9})
    assert data(merge_tensors(recipe, BASE, INPUTS)) == data(merge_tensors(method, BASE, INPUTS))


def test_seed_and_label_make_the_mask_and_nothing_else_does():
    one = data(merge_tensors(merge("dare_linear", LABELS, seed=1), BASE, INPUTS))
    assert one == data(merge_tensors(merge("dare_linear", LABELS, seed=1), BASE, INPUTS))
    assert one != data(merge_tensors(merge("dare_linear", LABELS, seed=2), BASE, INPUTS))
    assert one != data(merge_tensors(merge("dare_linear", ["a", "c"], seed=1), BASE, INPUTS))
