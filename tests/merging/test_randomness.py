"""The keyed noise: equal for equal keys, unlike otherwise, uniform, and the same for ever."""

import hashlib

import numpy as np
import pytest
import torch

from evomerge.merging.randomness import bits, keys, limit

SIZE = 1 << 18


def field(seed=0, label="a", tensor="t", size=SIZE, start=0):
    """Return the noise of elements from `start` on, float64 in [0, 1)."""
    index = torch.arange(start, start + size).sub(2**31).to(torch.int32)
    return (bits(index, keys(seed, [label], tensor)[0]).numpy().astype(np.float64) + 2**31) / 2**32


def correlation(one, other):
    """Return the correlation in units of its standard error for independent fields."""
    return abs(np.corrcoef(one, other)[0, 1]) * np.sqrt(len(one))


def test_first_numbers_never_change():
    """A recipe with a seed means the same bytes in every later version: these are the format, not an observation."""
    digest = hashlib.sha256(b"0\0maths\0layers.0.mlp.weight").digest()
    assert keys(0, ["maths"], "layers.0.mlp.weight").numpy().tobytes() == digest[:8]
    key = [int.from_bytes(digest[i : i + 4], "little") for i in (0, 4)]
    expected = []
    for i in range(4):  # the same in unsigned numbers; the first element's index is -2^31
        v = (i + 2**31) % 2**32 ^ key[0]
        v = v * 0x9E3779B1 % 2**32
        v = (v ^ v >> 15 ^ key[1]) * 0x85EBCA6B % 2**32
        expected.append((v ^ v >> 13) * 0xC2B2AE35 % 2**32)
    found = bits(torch.arange(-(2**31), -(2**31) + 4).to(torch.int32), keys(0, ["maths"], "layers.0.mlp.weight")[0])
    assert [v % 2**32 for v in found.tolist()] == expected


def test_a_number_depends_on_its_index_alone():
    assert (field(size=1000, start=500) == field(size=1500)[500:]).all()


@pytest.mark.parametrize("other", [{"seed": 1}, {"label": "b"}, {"tensor": "u"}, {"start": SIZE}, {"start": 2**31}])
def test_each_part_of_the_key_matters(other):
    assert correlation(field(), field(**other)) < 4


def test_labels_and_names_do_not_run_together():
    assert keys(0, ["ab"], "c").tolist() != keys(0, ["a"], "bc").tolist()
    assert keys(1, ["1a"], "c").tolist() != keys(11, ["a"], "c").tolist()
    assert keys(0, ["a", "b"], "t").tolist() == [*keys(0, ["a"], "t").tolist(), *keys(0, ["b"], "t").tolist()]


def test_many_keys_are_all_unlike_each_other():
    """Of 12 fields no two correlate: 66 pairs, below 4.5 standard errors; nor do their highest bits."""
    fields = np.stack([field(seed, label, tensor, 1 << 15) for seed in range(2) for label in "abc" for tensor in "tu"])
    for numbers in (fields, fields > 0.5, fields > 0.9):
        off = np.corrcoef(numbers.astype(float)) - np.eye(len(fields))
        assert np.abs(off).max() * np.sqrt(1 << 15) < 4.5


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("lag", [1, 2, 3, 7, 64, 768, 1024, 4096, 65536])
def test_neighbours_are_unlike(lag, rate):
    """In a row, a column, or a power of two apart: neither the numbers nor the masks correlate."""
    noise = field()
    assert correlation(noise[lag:], noise[:-lag]) < 4
    assert correlation(noise[lag:] < rate, noise[:-lag] < rate) < 4


def test_numbers_are_uniform():
    """In 256 bins, and in each bin of the neighbour's: χ² within 5 standard deviations of its mean."""
    noise = field()
    once = np.histogram(noise, bins=256, range=(0, 1))[0]
    pairs = np.histogram2d(noise[::2], noise[1::2], bins=32, range=[(0, 1), (0, 1)])[0]
    for counts in (once, pairs):
        freedom = counts.size - 1
        chi2 = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
        assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("probability", [1e-4, 0.05, 0.1, 0.5, 0.9, 0.9999])
def test_as_many_are_within_the_limit_as_is_probable(probability):
    index = torch.arange(SIZE).sub(2**31).to(torch.int32)
    share = float((bits(index, keys(3, ["a"], "t")[0]) <= limit(probability)).double().mean())
    assert abs(share - probability) < 4 * np.sqrt(probability * (1 - probability) / SIZE)


def test_limits_at_the_ends_and_in_order():
    assert limit(1) == 2**31 - 1  # all numbers
    assert limit(0) == -(2**31)  # one number of 2^32
    limits = [limit(p) for p in np.linspace(0, 1, 50)]
    assert limits == sorted(limits)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    expected = np.random.get_state()[1].tolist()  # noqa: NPY002  # the global generator is what must not change
    field(size=10)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == expected  # noqa: NPY002
