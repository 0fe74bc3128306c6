"""TALL masks: the worked example of the specification, and what the masks are at the ends of λ."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge import codecs
from evomerge.codecs.tall import mask
from evomerge.errors import RecipeError

VECTORS = torch.tensor([[1, 0.2, 0, -0.5], [0.1, 0.3, 1, 0.5], [0.9, 0.1, -0.1, 0.05]])
UNIFIED = torch.tensor([2, 0.6, 0.9, 0.05])
"""Computed by hand, as are the masks below."""


def coded(lam):
    codec = codecs.make("tall", {"lambda": lam})
    constants = codec.constants("abc", [])
    coded_tensor = codec.encode(torch.zeros(4), VECTORS, constants)
    return coded_tensor, [codec.decode(coded_tensor.parts.__getitem__, k, constants) for k in range(3)]


def test_worked_example():
    coded_tensor, decoded = coded(0.4)
    torch.testing.assert_close(coded_tensor.parts["unified"], UNIFIED)
    torch.testing.assert_close(decoded[0], torch.tensor([2, 0.6, 0, 0.05]))
    masks = [[1, 1, 0, 1], [0, 1, 1, 1], [1, 0, 0, 1]]
    torch.testing.assert_close(decoded, [UNIFIED * torch.tensor(bits) for bits in masks])
    assert [coded_tensor.parts[f"mask.{k}"].tolist() for k in range(3)] == [[0b1101 << 4], [0b0111 << 4], [0b1001 << 4]]
    assert sum(torch.tensor(bits) for bits in masks).tolist() == [2, 2, 1, 3]


def test_at_lambda_1_only_elements_that_exceed_all_others_are_used():
    counts = sum((vector != 0).int() for vector in coded(1.0)[1])
    assert counts.tolist() == [0, 0, 1, 2]


def test_lambda_is_one_number_or_one_for_each_expert():
    assert codecs.make("tall").constants("ab", []) == {"lambda": [0.4, 0.4]}
    assert codecs.make("tall", {"lambda": {"b": 0.2}}).constants("ab", []) == {"lambda": [0.4, 0.2]}
    with pytest.raises(RecipeError, match="no expert `maht`; did you mean `math`"):
        codecs.make("tall", {"lambda": {"maht": 0.2}}).constants(["math", "code"], [])


@pytest.mark.parametrize("wrong", [-0.1, "much", True, float("nan"), {"a": -1}])
def test_a_lambda_that_is_no_number_from_0_is_refused(wrong):
    with pytest.raises(RecipeError, match="`lambda`: expected a number of at least 0"):
        codecs.make("tall", {"lambda": wrong})


@given(st.lists(st.tuples(*[st.floats(-2, 2, width=16)] * 3), min_size=1, max_size=9))
def test_small_lambda_keeps_all_changes_of_an_expert_and_large_lambda_those_of_it_alone(columns):
    vectors = torch.tensor(columns).T
    total = vectors.sum(0)
    for vector in vectors:
        assert torch.equal(mask(vector, total, 0.0), vector != 0)
        assert torch.equal(mask(vector, total, 1e30), (vector != 0) & (total - vector == 0))
