"""The pipeline: tensor by tensor and chunk by chunk it gives the result for the complete model."""

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from strategies import parameters_of, tiny_models

from evomerge.errors import RecipeError
from evomerge.merging import METHODS, STAGES, Pipeline, Store, check, pipeline
from evomerge.recipe import Place, Recipe, merge
from evomerge.testing import InMemory, merge_tensors, random_statistics, tiny_tensors

BASE = tiny_tensors(0)
INPUTS = [tiny_tensors(1 + i, BASE) for i in range(2)]
LABELS = ["a", "b"]

every_method = pytest.mark.parametrize("method", METHODS)


def data(tensors):
    return {name: tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}


def run(recipe, base=BASE, inputs=INPUTS, **options):
    return data(merge_tensors(recipe, base, inputs, **options))


@every_method
def test_order_of_tensors_does_not_change_a_byte(method):
    """A worker that writes in another order, or one tensor alone, gets the same."""
    recipe = merge(method, LABELS, seed=4)
    expected = run(recipe)
    statistics = random_statistics(recipe.root.merge.labels, BASE)
    backwards = Pipeline(recipe.root.merge, InMemory(BASE, INPUTS, statistics=statistics), Store())
    for name in reversed(BASE):
        out = torch.empty_like(BASE[name])
        backwards.write(name, out)
        assert data({name: out})[name] == expected[name]


@every_method
@settings(max_examples=8)
@given(st.data())
def test_what_was_prepared_for_other_candidates_does_not_change_a_byte(method, data):
    """Whatever the parameters, and the order in which tensors are written, of fp32 and of bf16 models."""
    base, inputs = data.draw(tiny_models(2))
    if data.draw(st.booleans()):
        base, *inputs = ({name: t.bfloat16() for name, t in model.items()} for model in (base, *inputs))
    store = Store()
    for seed in range(3):
        recipe = merge(method, LABELS, data.draw(parameters_of(method, LABELS)), seed=seed // 2)
        try:
            cold = run(recipe, base, inputs)
        except RecipeError:
            reject()
        order = data.draw(st.permutations(sorted(base)))
        statistics = random_statistics(recipe.root.merge.labels, base)
        warm = Pipeline(recipe.root.merge, InMemory(base, inputs, statistics=statistics), store)
        for name in order:
            out = torch.empty_like(base[name])
            warm.write(name, out)
            assert out.view(-1).view(torch.uint8).numpy().tobytes() == cold[name]


BY_SUMS = {"iso_c", "iso_cts", "lines", "opcm", "pcb", "sce"}
"""Methods that measure a sum over chunks; its last bit depends on their length."""


@every_method
def test_length_of_chunks_changes_nothing(monkeypatch, method):
    """Streamed in small chunks, the result is that of complete tensors."""
    recipe = merge(method, LABELS, seed=4)
    found = []
    for length in (1000, 1 << 30):
        monkeypatch.setattr(pipeline, "CHUNK", length)
        found.append(merge_tensors(recipe, BASE, INPUTS))
    if method in BY_SUMS:
        assert all(torch.allclose(found[0][name], found[1][name], rtol=1e-6, atol=1e-6) for name in BASE)
    else:
        assert data(found[0]) == data(found[1])


def test_a_tensor_is_read_in_place(monkeypatch):
    """Into any floating-point dtype, and nothing beside `out` is written."""
    room = torch.full((7, 7 + 2), 3.0, dtype=torch.float64).view(-1)
    run = Pipeline(merge("linear", LABELS).root.merge, InMemory(BASE, INPUTS), Store())
    name = "layers.0.attn.weight"
    run.write(name, room[7:56].view(7, 7))
    expected = (INPUTS[0][name] + INPUTS[1][name]) / 2
    assert torch.allclose(room[7:56].view(7, 7).float(), expected, atol=1e-6)
    assert (room[:7] == 3).all()
    assert (room[56:] == 3).all()


def test_frozen_tensors_are_not_merged_at_all():
    """Where all task vectors are zero, the base is copied: no noise, threshold or singular vectors."""
    frozen = [{**model, "embed.weight": BASE["embed.weight"]} for model in INPUTS]
    for method in METHODS:
        if METHODS[method].origin == "base":
            assert run(merge(method, LABELS), inputs=frozen)["embed.weight"] == data(BASE)["embed.weight"], method


def test_negative_zeros_of_the_base_survive_where_nothing_is_added():
    base = {"t": torch.tensor([-0.0, 0.0, -0.0, 1.0])}
    inputs = [{"t": torch.tensor([0.0, -0.0, -0.0, 2.0])}, {"t": torch.tensor([-0.0, 0.0, 0.0, 3.0])}]
    for method, parameters in (
        ("task_arithmetic", {"lambda": 0}),
        ("task_arithmetic", {"weight": -0.0}),
        ("ties", {"lambda": 0}),
        ("dare_ties", {"lambda": -0.0}),
        ("consensus", {"agree": 3}),
        ("nearswap", {"t": 0}),
        ("breadcrumbs", {"density": 0}),
    ):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            low = {"t": base["t"].to(dtype)}
            assert run(merge(method, LABELS, parameters), low, inputs) == data(low)


def test_result_of_fp32_inputs_in_bf16_is_rounded_once():
    recipe = merge("linear", LABELS)
    wide = merge_tensors(recipe, BASE, INPUTS)
    low = merge_tensors(recipe, BASE, INPUTS, torch.bfloat16)
    for name in BASE:
        assert torch.equal(low[name], wide[name].bfloat16())


def test_inputs_may_be_stored_in_different_dtypes():
    """Each is widened by itself."""
    mixed = [{name: t.bfloat16() for name, t in INPUTS[0].items()}, {name: t.double() for name, t in INPUTS[1].items()}]
    widened = [{name: t.float() for name, t in model.items()} for model in mixed]
    for method in ("ties", "slerp", "dare_ties"):
        assert run(merge(method, LABELS), inputs=mixed) == run(merge(method, LABELS), inputs=widened)


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


def test_words_may_differ_by_place_too():
    """TIES' mean in the lower half, the sum in the upper one, and the head's."""
    table = {"per": ["block/2"], "values": ["solve", "sum"]}
    found = run(merge("ties", LABELS, {"reduce": table}))
    mean, whole = run(merge("ties", LABELS)), run(merge("ties", LABELS, {"reduce": "sum"}))
    for name in BASE:
        lower = name.startswith(("embed", "layers.0", "layers.1"))
        assert found[name] == (mean if lower else whole)[name]
    assert mean != whole


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
    unreadable = InMemory(BASE, INPUTS)
    unreadable.load = pytest.fail
    for table, message in (
        ({"per": ["block/9"], "values": [1] * 9}, "the model has 4 blocks; type `block/4` or less"),
        ({"per": ["kind"], "values": {"mlp": 1}}, "no entry for"),
        ({"per": ["tensor"], "values": {"a.weight": 1}}, "no entry for the merged tensor"),
    ):
        recipe = merge("linear", LABELS, {"weight": table})
        with pytest.raises(RecipeError, match=message):
            Pipeline(recipe.root.merge, unreadable, Store())
        with pytest.raises(RecipeError, match=message):
            check(recipe, [Place(0, 4, "norm")])


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties"])
def test_a_table_over_tensors_merges_each_tensor_as_its_own_numbers_do(method):
    """Measurements over the model read all tensors, so that a table of equal entries is the one number."""
    weights = {label: {name: 0.1 + i / 7 + k / 3 for i, name in enumerate(BASE)} for k, label in enumerate(LABELS)}
    table = {"per": ["expert", "tensor"], "values": weights}
    found = run(merge(method, LABELS, {"weight": table}, seed=2))
    turned = {"per": ["tensor", "expert"], "values": {n: {k: weights[k][n] for k in LABELS} for n in BASE}}
    assert run(merge(method, LABELS, {"weight": turned}, seed=2)) == found
    for name in BASE:
        one = {"per": ["expert"], "values": {label: weights[label][name] for label in LABELS}}
        assert run(merge(method, LABELS, {"weight": one}, seed=2))[name] == found[name]


def test_tensors_share_what_is_measured_unless_a_table_names_them():
    def places(parameters):
        return set(Pipeline(merge("ties", LABELS, parameters).root.merge, InMemory(BASE, INPUTS), Store()).values)

    assert {place.tensor for place in places({"weight": {"per": ["block/2"], "values": [1, 2]}})} == {""}
    table = {"per": ["tensor"], "values": dict.fromkeys(BASE, 0.5)}
    assert {place.tensor for place in places({"density": table})} == set(BASE)


def test_origins_of_explicit_stages():
    base, inputs = {"t": torch.tensor([1.0, 1.0])}, [{"t": torch.tensor([3.0, 5.0])}, {"t": torch.tensor([7.0, 9.0])}]

    def found(**stages):
        return merge_tensors(Recipe.parse({"merge": {"inputs": LABELS, "stages": stages}}), base, inputs)["t"].tolist()

    assert found(origin="base") == [9.0, 13.0]  # base + the sum of task vectors
    assert found(origin="zero") == [10.0, 14.0]  # the sum of the models
    assert found(origin="mean") == [5.0, 7.0]  # deviations from the mean cancel
    assert found(origin="base", reduce="solve") == [5.0, 7.0]
    assert found(origin="base", reduce="max") == [7.0, 9.0]
    assert found(origin="base", post=[{"scale": {"lambda": 0.5}}, "scale"]) == [5.0, 7.0]
    assert found(origin="base", edit=["none"]) == found(origin="base", edit="none") == found(origin="base")


def test_stages_spelled_out_are_the_method():
    spelled = {
        "edit": [{"trim": {"density": 0.3}}],
        "weigh": ["elect"],
        "reduce": "solve",
        "post": [{"scale": {"lambda": 0.9}}],
    }
    recipe = Recipe.parse({"merge": {"inputs": LABELS, "stages": spelled}})
    assert run(recipe) == run(merge("ties", LABELS, {"density": 0.3, "lambda": 0.9}))


@every_method
def test_every_method_can_be_spelled_out(method):
    """Role by role; a weigh stage reads what all edits leave."""
    spec = METHODS[method]
    stages = {"origin": spec.origin, "reduce": spec.reduce}
    for role in ("edit", "weigh", "post"):
        stages[role] = [
            {name: {key: spec.parameters[key].default for key in STAGES[name].parameters}}
            for name in spec.stages
            if STAGES[name].role == role
        ]
    recipe = Recipe.parse({"merge": {"inputs": LABELS, "stages": stages, "seed": 2}})
    assert run(recipe) == run(merge(method, LABELS, seed=2))


def test_seed_and_label_make_the_mask_and_nothing_else_does():
    for method in ("dare_linear", "della_linear"):
        one = run(merge(method, LABELS, seed=1))
        assert one == run(merge(method, LABELS, seed=1))
        assert one != run(merge(method, LABELS, seed=2))
        assert one != run(merge(method, ["a", "c"], seed=1))
        alone = merge_tensors(merge(method, ["b"], seed=1), BASE, INPUTS[1:])
        turned = merge_tensors(merge(method, ["b", "a"], seed=1), BASE, INPUTS[::-1])
        first = merge_tensors(merge(method, ["a"], seed=1), BASE, INPUTS[:1])
        for name, tensor in turned.items():
            together = alone[name] + first[name] - BASE[name]
            assert torch.allclose(tensor, together, rtol=1e-5, atol=1e-5)
