"""Probes recover any loader that only moves boxes of elements."""

import pytest
import torch

from evomerge.errors import ModelError
from evomerge.models.tensor_mapping import find_mappings

SHAPES = {"a": (4, 6), "b": (4, 6), "c": (3,), "d": ()}


def landed(load, tensors):
    """Apply the mappings of `load` to tensors, as a live model does."""
    mappings = find_mappings({name: tuple(tensor.shape) for name, tensor in tensors.items()}, load)
    filled = {name: torch.full_like(tensor, torch.nan) for name, tensor in load(tensors).items()}
    for mapping in mappings:
        view = filled[mapping.target][mapping.filled]
        view.copy_(mapping.cut(tensors[mapping.source], view.shape))
    return filled


def interleaved(t):
    return {"ab": torch.stack([t["a"], t["b"]], 1).flatten(0, 1)}


def split(t):
    first, second = t["a"].chunk(2, 1)
    return {"left": first, "right": second}


def thinned(t):
    return {"even": t["a"][::2], "odd": t["a"][1::2]}


@pytest.mark.parametrize(
    "load",
    [
        dict,
        lambda t: {f"model.{name}": tensor for name, tensor in t.items()},
        lambda t: {"ab": torch.cat([t["a"], t["b"]])},
        lambda t: {"ab": torch.stack([t["b"], t["a"]])},
        lambda t: {"ab": torch.cat([t["a"], t["b"]], 1).T},
        lambda t: {"a": t["a"].T.contiguous(), "rest": t["c"]},
        lambda t: {"a": t["a"].reshape(2, 2, 6)},
        interleaved,
        split,
        thinned,
        lambda t: {"a": t["a"], "tied": t["a"]},
    ],
)
def test_moves_are_mapped(load):
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.rand(shape, generator=generator) for name, shape in SHAPES.items()}
    filled = landed(load, tensors)
    for name, tensor in load(tensors).items():
        assert torch.equal(filled[name], tensor), name


def test_square_transpose_of_a_symmetric_tensor_is_mapped():
    (mapping,) = find_mappings({"a": (5, 5)}, lambda t: {"a": t["a"].T})
    assert mapping.order == (1, 0)


def test_parameter_that_the_loader_makes_up_is_not_filled():
    assert find_mappings({"c": (3,)}, lambda t: {"c": t["c"], "new": torch.ones(3)})[0].target == "c"
    assert len(find_mappings({"c": (3,)}, lambda t: {"c": t["c"], "new": torch.ones(3)})) == 1


@pytest.mark.parametrize(
    "load",
    [
        lambda t: {"c": t["c"].flip(0)},
        lambda t: {"a": t["a"][[2, 0, 1, 3]]},
        lambda t: {"a": t["a"].roll(1, 1)},
    ],
)
def test_other_permutations_are_refused(load):
    with pytest.raises(ModelError, match=r"tensor `[ac]` of the checkpoint cannot be written into `[ac]`"):
        find_mappings(SHAPES, load)


def test_calculations_leave_the_parameter_unfilled():
    assert find_mappings({"c": (3,)}, lambda t: {"c": t["c"] / 3}) == []
