"""Edits by size and by disagreement: worked examples."""

import numpy as np
import pytest
import torch
from merging.vectors import each, fix_noise, staged

from evomerge.merging import STAGES, Pipeline, Store, pipeline
from evomerge.recipe import Recipe, merge
from evomerge.testing import InMemory, merge_tensors


def test_trim_keeps_the_largest_and_all_equals_of_the_smallest_kept():
    assert staged([[2.0, -1.0, 0.5, 0.1, 3.0]], edit=[{"trim": {"density": 0.6}}]) == [2.0, -1.0, 0.0, 0.0, 3.0]
    assert staged([[1.0, -1.0, 1.0, 0.5]], edit=[{"trim": {"density": 0.25}}]) == [1.0, -1.0, 1.0, 0.0]


def test_trim_of_nothing_and_of_all():
    rows = [[2.0, -1.0, 0.5]]
    assert staged(rows, edit=[{"trim": {"density": 0}}]) == [0.0, 0.0, 0.0]
    assert staged(rows, edit=[{"trim": {"density": 1}}]) == rows[0]
    assert staged([[2.0, 1.0], [1.0, 2.0]], edit=[{"trim": {"density": each(1, 0)}}]) == [2.0, 1.0]


def test_trim_keeps_at_least_one_number():
    """A density that rounds to none of a small tensor would lose it whole."""
    assert staged([[2.0, -1.0, 0.5]], edit=[{"trim": {"density": 0.01, "scope": "tensor"}}]) == [2.0, 0.0, 0.0]


def test_a_density_is_rounded_and_not_cut():
    """100 · 0.29 is 28.999999999999996 in binary."""
    found = staged([[float(i + 1) for i in range(100)]], edit=[{"trim": {"density": 0.29}}])
    assert sum(v != 0 for v in found) == 29


def test_second_trim_measures_what_is_left_for_it(monkeypatch):
    """Its threshold is taken after the second drop, not after the first: of 6, 5 and 3, half of 4 are 6 and 5."""
    fix_noise(monkeypatch, [0.9, 0.9, 0.1, 0.1, 0.9, 0.1, 0.9, 0.9])
    found = staged(
        [[8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]],
        edit=[
            {"dare": {"drop": 0.0}},
            {"trim": {"density": 0.75}},
            {"dare": {"drop": 0.5, "rescale": "none"}},
            {"trim": {"density": 0.25}},
        ],
    )
    assert found == [0, 0, 6.0, 5.0, 0, 0, 0, 0]


CRUMBS = [0.1, -3.0, 2.0, 0.5, -1.0, 0.7, 0.05, 4.0, -0.3, 1.5]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        # of ten, 4 goes at the top, and 0.05, 0.1 and 0.3 at the bottom
        ({"density": 0.6, "gamma": 0.1}, [0, -3, 2, 0.5, -1, 0.7, 0, 0, 0, 1.5]),
        # gamma never takes from what density keeps: only one is left to be cut at the top
        ({"density": 0.9, "gamma": 0.3}, [0.1, -3, 2, 0.5, -1, 0.7, 0.05, 0, -0.3, 1.5]),
        # gamma of less than one element cuts nothing, and the rest is not lost with it
        ({"density": 0.2, "gamma": 0.05}, [0, -3, 0, 0, 0, 0, 0, 4, 0, 0]),
        ({"density": 0, "gamma": 0.1}, [0] * 10),
        ({"density": 1, "gamma": 0.1}, CRUMBS),
    ],
)
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_breadcrumbs_by_hand(parameters, expected, scope):
    found = staged([CRUMBS], edit=[{"breadcrumbs": {**parameters, "scope": scope}}])
    assert found == pytest.approx(expected, rel=1e-7)


def test_clip_by_hand():
    """A tenth at each end: the smallest is raised to the second smallest, the largest lowered; zeros stay."""
    row = [0.1, -0.2, 3.0, -4.0, 5.0, 6.0, 7.0, 8.0, 9.0, -10.0]
    clipped = [0.2, -0.2, 3.0, -4.0, 5.0, 6.0, 7.0, 8.0, 9.0, -9.0]
    assert staged([row], edit=[{"clip": {"clip": 0.1}}]) == pytest.approx(clipped, rel=1e-7)
    assert staged([row], edit=[{"clip": {"clip": 0}}]) == pytest.approx(row, rel=1e-7)
    assert staged([[0.0, -0.0, 1.0, 2.0]], edit=[{"clip": {"clip": 0.49}}]) == [0, 0, 1, 1]


def test_near_moves_by_t_at_most():
    """NearSwap's w = clip(t / |τ|, 0, 1) times τ."""
    assert staged([[3.0, -3.0, 0.5, -0.25, 0.0]], edit=[{"near": {"t": 1}}]) == [1, -1, 0.5, -0.25, 0]


def test_select_by_hand():
    """SCE's example: variances 1, 4, 0.25 and 0.04, of which half are kept."""
    rows = [[1.0, -2.0, 0.5, 0.0], [3.0, 2.0, -0.5, 0.4]]
    assert staged(rows, edit=[{"select": {"select": 0.5}}], weigh=[{"weight": {"weight": each(0, 1)}}]) == [3, 2, 0, 0]


def test_select_counts_only_what_varies():
    """Half of the two positions that vary, not of all four: 1 is kept."""
    rows = [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 3.0, 2.0]]
    assert staged(rows, edit=[{"select": {"select": 0.5}}]) == [0, 0, 4, 0]
    assert staged([rows[0], rows[0]], edit=[{"select": {"select": 0.5}}]) == [0, 0, 0, 0]


def test_every_edit_can_stand_alone():
    rows = [[1.0, -2.0, 3.0], [0.5, 2.0, -1.0]]
    assert all(len(staged(rows, edit=[name])) == 3 for name, stage in STAGES.items() if stage.role == "edit")


def test_the_first_of_equals_are_kept_by_index():
    row = [1.0, -1.0, 2.0, 1.0, -1.0, 0.0]
    assert staged([row], edit=[{"trim": {"density": 0.5, "equals": "first"}}]) == [1, -1, 2, 0, 0, 0]
    crumbs = {"density": 0.5, "gamma": 0.34, "equals": "first"}  # 2 and the first 1 are too large
    assert staged([row], edit=[{"breadcrumbs": crumbs}]) == [0, -1, 0, 1, -1, 0]
    rows = [[1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 3.0, 6.0]]  # variances 1, 1, 0 and 1, half of three is 2
    assert staged(rows, edit=[{"select": {"select": 0.5, "equals": "first"}}]) == [4, 6, 0, 0]


def stable(models, density, taken):
    """Return by a stable sort over all tensors which elements are among the largest; `taken` is the share above them."""
    sizes = np.concatenate([np.abs(model.numpy().ravel()) for model in models.values()])
    top, count = int(taken * len(sizes)), max(round(density * len(sizes)), 1)
    mask = np.zeros(len(sizes), dtype=bool)
    mask[np.argsort(-sizes, kind="stable")[top : top + count]] = True
    return mask


@pytest.mark.parametrize("before", [[], [{"dare": {"drop": 0, "rescale": "none"}}]])
@pytest.mark.parametrize(("density", "gamma"), [(0.05, 0.0), (0.5, 0.1), (0.001, 0.9), (0.9, 0.05)])
def test_exactly_the_fraction_is_kept_of_a_model_in_bf16(monkeypatch, before, density, gamma):
    """Of 8 values, in chunks of any length, with the rows as they are or as another edit leaves them."""
    monkeypatch.setattr(pipeline, "CHUNK", 100)
    generator = torch.Generator().manual_seed(1)
    shapes = {"a": (40, 9), "layers.0.mlp.weight": (100, 7), "layers.1.mlp.bias": (1,), "none": (0, 3), "head": (333,)}
    base = {name: torch.zeros(shape) for name, shape in shapes.items()}
    tau = {name: torch.randint(1, 9, shape, generator=generator) / 4 for name, shape in shapes.items()}
    size = sum(tensor.numel() for tensor in tau.values())
    for name, taken in (("trim", 0.0), ("breadcrumbs", gamma)):
        cut = {"gamma": gamma} if name == "breadcrumbs" else {}
        edit = {name: {"density": density, "scope": "model", "equals": "first", **cut}}
        stages = {"edit": [*before, edit]}
        recipe = Recipe.parse({"merge": {"inputs": ["x"], "stages": stages}})
        found = merge_tensors(recipe, base, [tau])
        kept = np.concatenate([(tensor != 0).numpy().ravel() for tensor in found.values()])
        assert (kept == stable(tau, density, min(taken, 1 - density))).all()
        share = densities(recipe, base, [tau])["x"]
        assert share * size == pytest.approx(kept.sum())


def test_realised_densities_are_those_of_each_input():
    """All equals of the smallest kept are kept: 3 of 4; of distinct sizes 1 of 4."""
    base = {"t": torch.zeros(4)}
    inputs = [{"t": torch.tensor(row)} for row in ([1.0, -1.0, 1.0, 0.5], [4.0, 3.0, 2.0, 1.0])]
    for method, expected in (("ties", {"a": 0.75, "b": 0.25}), ("linear", {}), ("iso_c", {})):
        recipe = merge(method, ["a", "b"], {"density": 0.25} if expected else {})
        assert densities(recipe, base, inputs) == expected


def densities(recipe, base, inputs):
    """Return what is left after the edits, counted while the merge is made."""
    pipeline = Pipeline(recipe.root.merge, InMemory(base, inputs), Store(), once=True)
    assert pipeline.densities() == {}
    for name, tensor in base.items():
        pipeline.write(name, torch.empty_like(tensor))
    return pipeline.densities()
