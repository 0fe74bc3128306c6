"""EMR: elect, mask, rescale."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge import codecs
from evomerge.codecs.emr import elect


def test_worked_example():
    """By hand: the signs of the sums are + - + and 0, the largest agreeing magnitudes 2, 3 and 1."""
    vectors = torch.tensor([[2.0, -3, 0, 1], [1.0, 1, 1, -1]])
    codec = codecs.make("emr")
    constants = codec.constants("ab", [vectors])
    assert constants == {"rescale": [6 / 5, 4 / 3]}
    coded = codec.encode(torch.zeros(4), vectors, constants)
    assert coded.parts["unified"].tolist() == [2, -3, 1, 0]
    first, second = (codec.decode(coded.parts.__getitem__, k, constants) for k in range(2))
    torch.testing.assert_close(first, torch.tensor([2.4, -3.6, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(second, torch.tensor([8 / 3, 0, 4 / 3, 0], dtype=torch.float64))


def test_the_rescaler_covers_all_tensors_and_is_0_for_an_expert_that_is_the_base():
    stacks = [torch.tensor([[1.0], [0.0]]), torch.tensor([[3.0], [0.0]])]
    assert codecs.make("emr").constants("ab", stacks) == {"rescale": [1.0, 0.0]}


@given(st.lists(st.tuples(*[st.floats(-2, 2, width=16)] * 3), min_size=1, max_size=9))
def test_a_decoded_expert_has_the_signs_and_the_size_of_the_expert(columns):
    vectors = torch.tensor(columns).T
    codec = codecs.make("emr")
    constants = codec.constants("abc", [vectors])
    coded = codec.encode(vectors[0], vectors, constants)
    assert (elect(vectors).abs() <= vectors.abs().amax(0)).all()
    for k, vector in enumerate(vectors):
        decoded = codec.decode(coded.parts.__getitem__, k, constants)
        assert ((decoded == 0) | (decoded.sign() == vector.sign())).all()
        if decoded.any():
            torch.testing.assert_close(decoded.abs().sum(), vector.double().abs().sum())
