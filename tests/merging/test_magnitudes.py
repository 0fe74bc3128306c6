"""The radix histogram is exact: it selects what a full sort selects."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.merging import magnitudes
from evomerge.merging.magnitudes import Magnitudes

values = st.lists(
    st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45]),
    min_size=1,
    max_size=40,
)


def of(tensor, pieces=1):
    return Magnitudes(lambda: iter(tensor.tensor_split(pieces, dim=1)))


@given(values, st.integers(1, 4))
def test_every_rank_is_what_a_sort_gives(numbers, pieces):
    row = torch.tensor(numbers, dtype=torch.float32)
    stack = torch.stack([row, row.flip(0) * 0.5])
    found = of(stack, pieces)
    ordered = stack.abs().sort(dim=1, descending=True).values
    for k in range(1, len(numbers) + 1):
        assert found.largest([k, k]) == ordered[:, k - 1].tolist()
    assert found.count == len(numbers)


def test_nothing_is_as_large_as_the_zeroth():
    assert of(torch.ones(2, 3)).largest([0, 1]) == [float("inf"), 1.0]


def test_rank_beyond_the_last_is_the_smallest():
    assert of(torch.tensor([[3.0, -2.0]])).largest([9]) == [2.0]


def test_empty_stream_has_no_magnitude():
    assert Magnitudes(lambda: iter(())).count == 0
    assert of(torch.ones(2, 0)).largest([1, 1]) == [float("inf")] * 2


def test_bins_are_counted_once_and_in_one_pass():
    passes = []
    stack = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))

    def chunks():
        passes.append(1)
        return iter([stack])

    found = Magnitudes(chunks)
    found.largest([5, 600, 1000])
    found.largest([5, 600, 1000])
    assert len(passes) == 2  # one for the upper halves, one for all lower halves together


def test_counts_that_are_forgotten_are_counted_again(monkeypatch):
    monkeypatch.setattr(magnitudes, "_KEPT", 10)
    stack = torch.randn(2, 2000, generator=torch.Generator().manual_seed(0))
    found = of(stack, 3)
    ordered = stack.abs().sort(dim=1, descending=True).values
    for k in (1, 1000, 2, 1999, 1, 1000):
        assert found.largest([k, k]) == ordered[:, k - 1].tolist()
        assert len(found._lower) <= 12


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5])
def test_a_million_bfloat16_deltas_with_many_equals(density):
    generator = torch.Generator().manual_seed(1)
    deltas = torch.randn(1, 1_000_000, generator=generator).bfloat16().float()
    k = round(density * deltas.numel())
    expected = np.partition(deltas.abs().numpy()[0], -k)[-k]
    assert of(deltas, 20).largest([k]) == [expected]
