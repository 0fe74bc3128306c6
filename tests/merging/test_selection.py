"""The k-th largest: exactly what a sort says, of one tensor or many, at once or in a stream."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge.merging.selection import Ranked, Streamed, rank

numbers = st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45])
chunks = st.lists(st.integers(0, 40), min_size=1, max_size=4).flatmap(
    lambda sizes: st.tuples(*(arrays(np.float32, (2, size), elements=numbers) for size in sizes))
)


def expected(parts, ks):
    whole = -np.sort(-np.concatenate(parts, axis=1) + np.float32(0.0), axis=1)
    count = whole.shape[1]
    return [float(row[min(k, count) - 1]) if k and count else np.inf for row, k in zip(whole, ks, strict=True)]


@given(chunks, st.tuples(st.integers(0, 200), st.integers(0, 200)))
def test_both_find_what_a_sort_finds(parts, ks):
    """Negative numbers, infinities, zeros of both signs, subnormal ones, equals, empty tensors, k beyond the end."""
    tensors = [[torch.from_numpy(row) for row in part] for part in parts]
    ranked = Ranked([rank(len(rows[0]), [row.split(3) for row in rows]) for rows in tensors])
    streamed = Streamed(lambda: iter(tensors), sum(part.shape[1] for part in parts))
    assert ranked.count == streamed.count == sum(part.shape[1] for part in parts)
    assert ranked.largest(ks) == expected(parts, ks)
    assert streamed.largest(ks) == expected(parts, ks)


@pytest.mark.parametrize("k", [1, 2, 777, 5000, 150_000, 200_000])
def test_many_numbers_in_one_bin(k):
    """Half of them share their upper 16 bits."""
    generator = torch.Generator().manual_seed(0)
    row = torch.cat([1 + torch.rand(100_000, generator=generator) * 2**-8, torch.randn(100_000, generator=generator)])
    found = float(row.sort(descending=True).values[k - 1])
    assert Ranked([rank(len(part), [[part]]) for part in row.split(70_000)]).largest([k]) == [found]
    parts = row.split(1000)
    assert Streamed(lambda: [[part] for part in parts], len(row)).largest([k]) == [found]
    assert Streamed(lambda: [[part] for part in parts], len(row), lambda: [[part[:50]] for part in parts]).largest(
        [k]
    ) == [found]


def test_ranking_leaves_its_input_alone():
    row = torch.tensor([3.0, -1.0, 2.0])
    rank(len(row), [[row]])
    assert row.tolist() == [3, -1, 2]


def test_a_table_takes_two_bytes_a_number():
    """And a little for each of the bins that occur: some thousands, of numbers of one scale."""
    row = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)).abs()
    assert sum(tensor.nbytes for tensor in rank(len(row), [[row]]).values()) < 2.05 * row.numel()


def test_nothing_is_counted_twice():
    """One pass to count, and one for each question; none for no question."""
    passes = []
    row = torch.arange(10.0)

    def read():
        passes.append(1)
        return [[row, row]]

    streamed = Streamed(read, 10)
    assert streamed.largest([0, 0]) == [np.inf, np.inf]
    assert len(passes) == 0
    assert streamed.largest([3, 0]) == [7, np.inf]
    assert streamed.largest([1, 10]) == [9, 0]
    assert len(passes) == 3


def test_a_stream_of_nothing_has_no_largest():
    assert Streamed(list, 0).largest([1]) == [np.inf]


SHAPES = {
    "normal": lambda generator: torch.randn(200_000, generator=generator).abs(),
    "mostly zero": lambda generator: torch.randn(200_000, generator=generator).clamp(min=0.5) - 0.5,
    "few numbers": lambda generator: torch.randint(0, 9, (200_000,), generator=generator) / 8,
    "all equal": lambda generator: torch.full((200_000,), -2.5),
    "of many sizes": lambda generator: torch.exp(20 * torch.randn(200_000, generator=generator)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sample_changes_nothing(shape):
    row = SHAPES[shape](torch.Generator().manual_seed(0))
    parts = row.split(1000)
    streamed = Streamed(
        lambda: [[part, -part] for part in parts], len(row), lambda: [[part[:100], -part[:100]] for part in parts]
    )
    for share in (0.001, 0.2, 0.5, 0.99):
        k = int(share * len(row))
        assert streamed.largest([k, k]) == [float(-(-sign * row).sort().values[k - 1]) for sign in (1, -1)]


def test_a_sample_saves_a_pass():
    passes = []
    parts = SHAPES["normal"](torch.Generator().manual_seed(0)).split(100)

    def read():
        passes.append(1)
        return [[part] for part in parts]

    streamed = Streamed(read, 200_000, lambda: [[part[:50]] for part in parts])
    for share in (0.2, 0.5):
        streamed.largest([int(share * 200_000)])
    assert len(passes) == 2


@pytest.mark.parametrize("wrong", [0.0, 9.0, 1e30])
def test_a_sample_that_misleads_costs_passes_alone(wrong):
    row = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    found = Streamed(lambda: [[row]], len(row), lambda: [[torch.full((100,), wrong)]]).largest([500])
    assert found == [float(row.sort(descending=True).values[499])]
