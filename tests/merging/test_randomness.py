"""The keyed noise: equal for equal keys, unlike otherwise, uniform, and the same for ever."""

import hashlib

import numpy as np
import pytest
import torch
from scipy import special, stats

from evomerge.merging.randomness import bits, keys, limit, normal, own_key, uniform

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


def test_a_stage_s_key_is_no_input_s():
    assert own_key(0, "noise", "t").tolist() != keys(0, ["noise"], "t")[0].tolist()
    assert own_key(0, "noise", "t").tolist() != own_key(0, "svd_mutate", "t").tolist()


def test_uniform_numbers_are_the_middles_of_their_steps():
    ends = uniform(torch.tensor([-(2**31), -1, 0, 2**31 - 1], dtype=torch.int32)).tolist()
    assert ends == [2.0**-33, 0.5 - 2.0**-33, 0.5 + 2.0**-33, 1 - 2.0**-33]


def steps():
    """Bits from all over, int64: 10^6 evenly, the first and last 5000, and ever more finely towards the ends and the middle."""
    near = np.unique(np.geomspace(1, 2**31 - 1, 50_000).astype(np.int64))
    return np.concatenate(
        [
            np.arange(-(2**31), 2**31, 4295),
            *(np.arange(5000) + start for start in (-(2**31), -2500, 2**31 - 5000)),
            *(-(2**31) + near, 2**31 - 1 - near, near, -near),
        ]
    )


def test_normal_numbers_are_the_quantiles_to_fp32_accuracy():
    """Against scipy's Φ⁻¹ in float64, taken at the nearer end: within four roundings of an fp32 number, everywhere."""
    drawn = steps()
    lower = (np.minimum(drawn, -1 - drawn) + 2**31 + 0.5) / 2**32  # at most 1/2, and exact
    expected = np.copysign(special.ndtri(lower), drawn + 0.5)
    found = normal(torch.from_numpy(drawn).to(torch.int32)).double().numpy()
    np.testing.assert_allclose(found, expected, rtol=5e-7)
    assert found.max() == -found.min() == pytest.approx(6.337957, abs=1e-6)  # of p = 2^-33


def test_normal_numbers_are_as_frequent_as_they_should_be():
    """Of 2^21 numbers: Kolmogorov's distance at the 0.1 % level, four moments and the tails within 4 standard errors."""
    count = 1 << 21
    index = torch.arange(count).sub(2**31).to(torch.int32)
    found = normal(bits(index, own_key(0, "noise", "t"))).double().numpy()
    assert stats.kstest(found, "norm").statistic < 1.95 / np.sqrt(count)
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((found**power).mean() - moment) < 4 * np.sqrt(spread / count)
    for bound in (1, 2, 3, 4, 4.5):
        for beyond in (found > bound, found < -bound):
            expected = count * special.ndtr(-bound)
            assert abs(beyond.sum() - expected) < 4 * np.sqrt(expected) + 1
    for lag in (1, 2, 64, 4096):
        assert correlation(found[lag:], found[:-lag]) < 4
        assert correlation(found[lag:] ** 2, found[:-lag] ** 2) < 4


def test_normal_numbers_never_change():
    """They are part of what a recipe with a seed means."""
    found = normal(torch.tensor([-(2**31), -(2**30), -1, 0, 2**30, 2**31 - 1], dtype=torch.int32))
    assert found.numpy().tobytes().hex() == "8cd0cac05cab2cbf9a6ca0af9a6ca02f5cab2c3f8cd0ca40"


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    expected = np.random.get_state()[1].tolist()  # noqa: NPY002  # the global generator is what must not change
    field(size=10)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == expected  # noqa: NPY002  # as above
