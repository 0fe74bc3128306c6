"""The keyed noise: equal for equal keys, unlike otherwise, uniform, and the same for ever."""

import hashlib

import numpy as np
import torch

from evomerge.merging.randomness import uniform


def test_first_numbers_never_change():
    """A recipe with a seed means the same bytes in every later version: these are the format, not an observation."""
    found = uniform(0, "maths", "layers.0.mlp.weight", 0, 4)
    digest = hashlib.sha256(b"0\0maths\0layers.0.mlp.weight").digest()
    philox = np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8"), counter=[0, 0, 0, 0])
    assert found.tolist() == np.random.Generator(philox).random(4, dtype=np.float32).tolist()
    assert [round(v, 6) for v in found.tolist()] == [0.668292, 0.618085, 0.282667, 0.298118]


def test_each_part_of_the_key_matters():
    keys = [(0, "a", "t", 0), (1, "a", "t", 0), (0, "b", "t", 0), (0, "a", "u", 0), (0, "a", "t", 1)]
    fields = [uniform(*key, 1000) for key in keys]
    for i, one in enumerate(fields):
        for other in fields[i + 1 :]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.12  # 3.8 standard errors of 1000 independent draws


def test_a_shorter_field_begins_the_longer_one():
    assert torch.equal(uniform(7, "a", "t", 2, 10), uniform(7, "a", "t", 2, 1000)[:10])


def test_numbers_are_uniform_and_below_one():
    field = uniform(3, "a", "t", 0, 100_000)
    assert field.dtype == torch.float32
    assert 0 <= float(field.min()) <= float(field.max()) < 1
    histogram = np.histogram(field.numpy(), bins=10, range=(0, 1))[0]
    assert abs(histogram - 10_000).max() < 4 * np.sqrt(10_000 * 0.9)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    expected = np.random.get_state()[1].tolist()  # noqa: NPY002  # the global generator is what must not change
    uniform(0, "a", "t", 0, 10)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == expected  # noqa: NPY002
