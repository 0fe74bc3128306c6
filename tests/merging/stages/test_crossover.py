"""M2N2's crossover (arXiv 2508.16204): worked examples, split points, and angles of parts."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merging.vectors import RIGHT, merged

from evomerge.errors import RecipeError
from evomerge.merging import pipeline
from evomerge.merging.site import Site
from evomerge.merging.stages.crossover import CROSSOVER, elements
from evomerge.recipe import Place, merge
from evomerge.testing import merge_tensors

WHOLE = {"a": (3,), "layers.0.mlp.none": (0, 2), "layers.0.mlp.weight": (2, 2), "layers.1.mlp.scale": (), "head": (2,)}
"""Ten numbers: three, none, four, one and two; five of the kind mlp."""


def flattened(parameters, first, second):
    """Cross two models of `WHOLE`, given as ten numbers each; return ten numbers."""

    def model(numbers):
        made, start = {}, 0
        for name, shape in WHOLE.items():
            size = math.prod(shape)
            made[name] = torch.tensor(numbers[start : start + size], dtype=torch.float32).view(shape)
            start += size
        return made

    base = model([0.0] * 10)
    found = merge_tensors(merge("split_slerp", ["a", "b"], parameters), base, [model(first), model(second)])
    return [number for tensor in found.values() for number in tensor.view(-1).tolist()]


ONE, OTHER = [1.0, -2, 3, 4, -5, 6, 7, 8, -9, 10], [0.5, 2, -1, 3, 3, 2, -7, 1, 4, 2]


def test_split_slerp_by_hand():
    """A right angle at t = 1/3: sin 60° = .866025 and sin 30° = .5 before the split, and the other way round after it."""
    found = merged("split_slerp", [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 2.0]], {"t": 1 / 3, "split": 0.75})
    assert found == pytest.approx([0.866025, 0.866025, 1, 1.732051], abs=5e-7)


def test_a_part_may_have_its_own_angle():
    """The whole vectors are at 60°, the first parts at 90° and the second ones at 0°, on a line."""
    rows = [[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0]]
    whole = merged("split_slerp", rows, {"t": 0.5, "split": 0.5})
    assert whole == pytest.approx([0.577350, 0.577350, 1.154701, 0], abs=5e-7)  # sin 30° / sin 60°
    part = merged("split_slerp", rows, {"t": 0.5, "split": 0.5, "angle": "part"})
    assert part == pytest.approx([0.707107, 0.707107, 1, 0], abs=5e-7)


@pytest.mark.parametrize("angle", ["whole", "part"])
@pytest.mark.parametrize("split", range(11))
def test_at_t_0_the_first_input_comes_before_the_split_and_the_second_after_it(angle, split):
    found = flattened({"t": 0, "split": split / 10, "angle": angle}, ONE, OTHER)
    assert found == ONE[:split] + OTHER[split:]


@pytest.mark.parametrize(("over", "firsts"), [("model", [0, 1, 2, 3, 4]), ("kind", [0, 3, 4, 8])])
def test_what_is_flattened_is_split_at_half(over, firsts):
    """Of kinds: five mlp numbers at two, the head's two at one, and the other three at one; the model's ten at five."""
    found = flattened({"t": 0, "over": over}, ONE, OTHER)
    assert found == [ONE[i] if i in firsts else OTHER[i] for i in range(10)]


def test_each_tensor_may_be_split():
    """Of three, four, one and two numbers the first one, two, none and one."""
    found = flattened({"t": 0, "over": "tensor"}, ONE, OTHER)
    assert found == [ONE[i] if i in (0, 3, 4, 8) else OTHER[i] for i in range(10)]


def test_kinds_may_have_split_points_of_their_own():
    kinds = dict.fromkeys(("attention", "norm", "embedding", "head", "other"), 0)
    found = flattened({"t": 0, "over": "kind", "split": {"per": ["kind"], "values": {**kinds, "mlp": 0.8}}}, ONE, OTHER)
    assert found == [ONE[i] if i in (3, 4, 5, 6) else OTHER[i] for i in range(10)]


@pytest.mark.parametrize(("split", "t", "plain"), [(1, 0.3, 0.3), (0, 0.3, 0.7)])
@pytest.mark.parametrize("angle", ["whole", "part"])
def test_without_a_split_it_is_slerp(split, t, plain, angle):
    """At t with all before the split, at 1 - t with all after it."""
    found = merged("split_slerp", RIGHT, {"split": split, "t": t, "angle": angle})
    assert found == pytest.approx(merged("slerp", RIGHT, {"t": plain}), rel=1e-6)


@pytest.mark.parametrize("angle", ["whole", "part"])
@given(st.floats(0, 1), st.floats(0, 1))
def test_crossing_a_model_with_itself_gives_it(angle, split, t):
    assert flattened({"split": split, "t": t, "angle": angle}, ONE, ONE) == pytest.approx(ONE, rel=3e-7)


@pytest.mark.parametrize("rows", [[[1.0, 2.0], [-1.0, -2.0]], [[1.0, 2.0], [0.0, 0.0]]])
def test_opposites_and_zeros_are_crossed_along_the_chord(rows):
    """Unlike slerp's, which refuses opposites: 0.3 of the way from x to -x is 0.4x, and to 0 it is 0.7x."""
    share = 0.4 if rows[1][0] else 0.7
    found = merged("split_slerp", rows, {"t": 0.3, "split": 1})
    assert found == pytest.approx([share, 2 * share], rel=1e-6)


@given(st.data())
def test_a_split_point_is_found_again_from_its_share(data):
    """A driver that draws k in [0, n) asks for the share k / n, which a double may hold as a little less or more."""
    n = data.draw(st.integers(1, 2**31 - 1) | st.integers(1, 2**53 - 1))
    k = data.draw(st.integers(0, n - 1) | st.just(n - 1))
    assert elements(k / n, n) == k


@given(st.floats(0, 1), st.integers(0, 2**53))
def test_a_split_point_is_the_share_of_the_elements_rounded_down(share, n):
    exact = Fraction(share) * n
    assert 0 <= elements(share, n) <= n
    assert math.floor(exact) <= elements(share, n) <= exact + Fraction(n, 2**53)


@settings(max_examples=30)
@given(st.integers(0, 3000), st.integers(1, 900), st.sampled_from(["model", "kind", "tensor"]))
def test_angles_of_parts_do_not_depend_on_the_blocks(split, length, over):
    """Sums over whole blocks and the rest of one are those over the part."""
    generator = torch.Generator().manual_seed(split)
    base, *models = (
        {
            name: torch.randn(size, generator=generator)
            for name, size in {"a": 1000, "b": 0, "c": 1, "head": 1999}.items()
        }
        for _ in range(3)
    )
    recipe = merge("split_slerp", ["a", "b"], {"split": split / 3000, "t": 0.2, "angle": "part", "over": over})
    expected = merge_tensors(recipe, base, models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "CHUNK", length)
        found = merge_tensors(recipe, base, models)
    assert all(torch.equal(found[name], expected[name]) for name in base)


def test_the_angle_of_a_short_part_is_not_lost_beside_a_long_one():
    """The last number alone, 10^6 times smaller than the others, at its own angle of 0 exactly."""
    rows = [[1e6, 2e6, -3e6, 1.0], [2e6, -1e6, 1e6, 3.0]]
    found = merged("split_slerp", rows, {"split": 0.75, "t": 0.25, "angle": "part"})
    assert found[3] == 0.25 * 1 + 0.75 * 3


def test_a_point_inside_of_more_elements_than_an_index_tells_apart_is_refused():
    site = Site("huge", (2**32 + 2,), Place(0, 1, "other"), ("a", "b"), 0)
    bind, shares = CROSSOVER["split_slerp"].bind, [np.array([1.0, 0.0]), np.array([0.0, 1.0])]
    with pytest.raises(RecipeError, match=r"inside of `huge`, whose 4,294,967,298 elements are more than the 2\^32"):
        bind(site, {}, ({"huge": 5}, 9, shares))
    for split, expected in ((5, [0, 1]), (2**32 + 7, [1, 0])):
        assert bind(site, {}, ({"huge": 5}, split, shares))["after"].tolist() == expected
