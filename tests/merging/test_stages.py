"""Each stage: the suite that all must keep, and the numbers that its paper gives."""

import pytest
import torch

from evomerge.errors import RecipeError
from evomerge.merging import STAGES
from evomerge.merging.stages import Block
from evomerge.recipe import Recipe
from evomerge.testing import StageSuite, merge_tensors


class TestTrim(StageSuite):
    name = "trim"


class TestDrop(StageSuite):
    name = "drop"


class TestWeight(StageSuite):
    name = "weight"


class TestElect(StageSuite):
    name = "elect"


class TestSlerp(StageSuite):
    name = "slerp"
    symmetric = False


class TestScale(StageSuite):
    name = "scale"


def test_every_stage_is_held_to_the_suite():
    assert {suite.name for suite in StageSuite.__subclasses__()} == set(STAGES)


def block(rows, labels=None):
    stack = torch.tensor(rows, dtype=torch.float32)
    return Block(stack, "t", 0, tuple(labels or (f"e{i}" for i in range(len(rows)))), 0)


def staged(rows, **stages):
    """Merge task vectors over a base of zeros by explicit stages."""
    inputs = [{"t": torch.tensor(row)} for row in rows]
    recipe = Recipe.parse({"merge": {"inputs": [f"e{i}" for i in range(len(rows))], "stages": stages}})
    return merge_tensors(recipe, {"t": torch.zeros_like(inputs[0]["t"])}, inputs)["t"].tolist()


def test_trim_keeps_the_largest_and_all_equals_of_the_smallest_kept():
    rows = [[2.0, -1.0, 0.5, 0.1, 3.0]]
    assert staged(rows, edit=[{"trim": {"density": 0.6}}]) == [2.0, -1.0, 0.0, 0.0, 3.0]
    assert staged([[1.0, -1.0, 1.0, 0.5]], edit=[{"trim": {"density": 0.25}}]) == [1.0, -1.0, 1.0, 0.0]


def test_trim_of_nothing_and_of_all():
    rows = [[2.0, -1.0, 0.5]]
    assert staged(rows, edit=[{"trim": {"density": 0}}]) == [0.0, 0.0, 0.0]
    assert staged(rows, edit=[{"trim": {"density": 1}}]) == rows[0]


def test_trim_keeps_at_least_one_number():
    """A density that rounds to none of a small tensor would lose it whole."""
    assert staged([[2.0, -1.0, 0.5]], edit=[{"trim": {"density": 0.01, "scope": "tensor"}}]) == [2.0, 0.0, 0.0]


def test_second_trim_measures_what_is_left_for_it(monkeypatch):
    """Its threshold is taken after the second drop, not after the first: of 6, 5 and 3, half of 4 are 6 and 5."""
    noise = torch.tensor([0.9, 0.9, 0.1, 0.1, 0.9, 0.1, 0.9, 0.9])
    monkeypatch.setattr("evomerge.merging.stages.uniform", lambda *key: noise)
    found = staged(
        [[8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]],
        edit=[
            {"drop": {"drop": 0.0}},
            {"trim": {"density": 0.75}},
            {"drop": {"drop": 0.5, "rescale": "none"}},
            {"trim": {"density": 0.25}},
        ],
    )
    assert found == [0, 0, 6.0, 5.0, 0, 0, 0, 0]


@pytest.mark.parametrize(("rescale", "expected"), [("inverse", 2.0), ("l1", 2.5), ("none", 1.0)])
def test_drop_rescales_as_asked(monkeypatch, rescale, expected):
    """τ = [1, 2, 3, 4] with the mask [1, 0, 1, 0] at p = 1/2; mergekit keeps Σ|τ| = 10 from the Σ = 4 that is left."""
    monkeypatch.setattr("evomerge.merging.stages.uniform", lambda *key: torch.tensor([0.1, 0.9, 0.2, 0.5]))
    found = staged([[1.0, 2.0, 3.0, 4.0]], edit=[{"drop": {"drop": 0.5, "rescale": rescale}}])
    assert found == [expected, 0.0, 3 * expected, 0.0]


def test_higher_rates_drop_more_of_the_same():
    """Common random numbers: what a lower rate drops, a higher one drops too."""
    rows = [[1.0] * 2000]
    kept = [
        {i for i, v in enumerate(staged(rows, edit=[{"drop": {"drop": p, "rescale": "none"}}])) if v}
        for p in (0, 0.3, 0.6, 0.9)
    ]
    assert kept[0] == set(range(2000))
    assert kept[0] > kept[1] > kept[2] > kept[3]
    assert [round(len(k) / 2000, 1) for k in kept] == [1.0, 0.7, 0.4, 0.1]


def test_dropped_and_rescaled_mean_is_the_task_vector():
    """E[τ̃] = τ: over 400 seeds, within 4 standard errors of p / (1-p) τ² each."""
    tau, p = torch.tensor([1.0, -2.0, 3.0]), 0.8
    apply = STAGES["drop"].apply
    numbers = {"drop": torch.tensor([[p]]), "rescale": "inverse"}
    draws = torch.stack(
        [apply(Block(tau[None], "t", 0, ("e",), seed), tau[None], numbers, None)[0] for seed in range(400)]
    )
    assert ((draws.mean(0) - tau).abs() < 4 * (p / (1 - p) * tau**2 / 400).sqrt()).all()


def test_election_by_mass_and_by_count():
    rows = [[3.0, 1.0], [-1.0, 0.0], [-1.0, -1.0]]
    inputs = {"weight": torch.ones(3, 1), "undecided": "none"}
    apply = STAGES["elect"].apply
    by_mass = apply(block(rows), torch.tensor(rows), {**inputs, "elect": "mass"}, None)
    assert by_mass.tolist() == [[1, 0], [0, 0], [0, 0]]
    by_count = apply(block(rows), torch.tensor(rows), {**inputs, "elect": "count"}, None)
    assert by_count.tolist() == [[0, 0], [1, 0], [1, 0]]


def test_undecided_votes_contribute_nothing_or_the_positive():
    rows = [[2.0], [-2.0]]
    inputs = {"weight": torch.ones(2, 1), "elect": "mass"}
    apply = STAGES["elect"].apply
    assert apply(block(rows), torch.tensor(rows), {**inputs, "undecided": "none"}, None).tolist() == [[0], [0]]
    assert apply(block(rows), torch.tensor(rows), {**inputs, "undecided": "positive"}, None).tolist() == [[1], [0]]


def test_arc_between_opposites_is_refused_not_guessed():
    inputs = [{"t": torch.tensor([1.0, 2.0])}, {"t": torch.tensor([-2.0, -4.0])}]
    recipe = Recipe.parse({"merge": {"method": "slerp", "inputs": ["a", "b"]}})
    with pytest.raises(RecipeError, match=r"anti-parallel in `t`.*use linear"):
        merge_tensors(recipe, {"t": torch.zeros(2)}, inputs)


@pytest.mark.parametrize("angle", [1e-2, 1e-4, 1e-5])
def test_small_angles_are_not_lost(angle):
    """For such angles arccos of an fp32 cosine is 0. The point in the middle of the arc has length 1; the chord's has cos(θ/2)."""
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    b = torch.tensor([1.0, angle], dtype=torch.float64) / (1 + angle**2) ** 0.5
    stack = torch.stack([a, b]).float()
    stage = STAGES["slerp"]
    blocks = lambda: [block(stack.tolist())]  # noqa: E731
    found = stage.measure(stage.prepare(blocks), blocks, {"t": 0.25}).double().flatten()
    true = torch.atan2(stack[1, 1].double(), stack[1, 0].double())
    expected = torch.stack([torch.sin(0.75 * true), torch.sin(0.25 * true)]) / torch.sin(true)
    assert torch.allclose(found, expected, rtol=1e-6)
