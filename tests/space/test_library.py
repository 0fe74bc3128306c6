"""Shipped search spaces, and those made from methods."""

import pytest

from evomerge import merging, space, strict_yaml
from evomerge.errors import EvomergeError, SpaceError
from evomerge.space import SearchSpace

EXPERTS = ("maths", "code")


@pytest.mark.parametrize("name", sorted(set(space.shipped()) - {"natural_niches", "cycle_qd"}))
def test_shipped_spaces_suit_a_pool_of_two(name):
    model = {"kinds": ("attention", "mlp", "norm"), "tensors": ("embed.weight", "layers.0.weight"), "blocks": 6}
    searched = SearchSpace.parse(space.read(name), experts=EXPERTS, **model)
    assert searched.about
    without = ("edit_choice", "layer_swap_blocks")  # it is spelled in stages; a swap's blocks are no weights
    marks = {
        **dict.fromkeys(without, "init"),
        "layer_swap": "layers of code",
        "both_spaces": "layers of merge",
        "data_flow": "layers of maths",
        "data_flow_scaled": "layers of maths",
    }
    assert marks.get(name, "expert code") in searched.landmarks()
    for genome in (searched.lower, searched.upper, searched.initial):
        searched.decode(genome)


@pytest.mark.parametrize(("name", "others"), [("task_arithmetic_per_tensor", 0), ("ties_per_tensor", 2)])
def test_shipped_spaces_over_tensors_have_a_gene_for_each_expert_and_tensor(name, others):
    tensors = [f"encoder.layer.{i}.weight" for i in range(103)]
    searched = SearchSpace.parse(space.read(name), experts=("a", "b", "c"), tensors=tensors, blocks=6)
    assert len(searched.genes) == 309 + others
    weights = [gene.name.startswith("weight[") for gene in searched.genes]
    assert searched.sloped[weights].all()
    recipe = searched.decode(searched.upper)
    assert (searched.encode(recipe) == searched.upper).all()


@pytest.mark.parametrize(("name", "count"), [("natural_niches", 2), ("cycle_qd", 3)])
def test_shipped_space_of_a_population_crosses_its_parents(name, count):
    searched = SearchSpace.parse(space.read(name), experts=EXPERTS, blocks=6)
    assert searched.about
    parents = [str(number) * 64 for number in range(count)]
    assert searched.decode(searched.initial, parents).members == tuple(parents)


def test_spaces_of_weights_and_of_layers_are_shipped():
    assert set(space.shipped()) >= {
        "linear",
        "task_arithmetic",
        "task_arithmetic_per_block",
        "task_arithmetic_per_tensor",
        "ties_per_tensor",
        "lines_per_block",
        "ties_per_block",
        "dare_ties_per_kind",
        "slerp_per_block",
        "layer_swap",
        "layer_swap_blocks",
        "data_flow",
        "data_flow_scaled",
        "both_spaces",
    }


@pytest.mark.parametrize("experts", [2, 3, 4])
@pytest.mark.parametrize("blocks", [4, 6, 30])
@pytest.mark.parametrize("name", ["layer_swap", "data_flow", "data_flow_scaled", "both_spaces"])
def test_spaces_of_stacks_suit_any_pool_and_start_near_one_model(name, experts, blocks):
    names = ("maths", "code", "prose", "law")[:experts]
    searched = SearchSpace.parse(space.read(name), experts=names, blocks=blocks)
    slots = searched.decode(searched.initial).root.stack.slots
    assert [slot.layer for slot in slots] == list(range(blocks))
    assert len({slot.source for slot in slots}) == 1
    for genome in (searched.lower, searched.upper):
        assert len(searched.decode(genome).root.stack.slots) <= 1.25 * blocks


def test_unknown_spaces_name_the_nearest(tmp_path):
    with pytest.raises(SpaceError, match="no search space `linea`: neither a file nor shipped; did you mean `linear`"):
        space.read("linea")
    with pytest.raises(EvomergeError, match="Is a directory"):
        space.read(tmp_path)


@pytest.mark.parametrize("method", [name for name in merging.METHODS if name not in ("mwa", "model_stock")])
def test_a_space_can_be_made_of_any_method(method):
    data = strict_yaml.parse(space.from_method(method), method)
    experts = EXPERTS[: merging.METHODS[method].inputs or len(EXPERTS)]
    searched = SearchSpace.parse(data, experts=experts)
    merging.check(searched.decode(searched.initial))
    wanted = {key for key, spec in merging.METHODS[method].parameters.items() if spec.search}
    assert {gene.name.partition("[")[0] for gene in searched.genes} == wanted


def test_a_method_without_parameters_makes_no_space():
    with pytest.raises(SpaceError, match="`model_stock` has no parameter to search"):
        space.from_method("model_stock")
