"""Edits that drop at random: worked examples, and the statistics of what is kept."""

import numpy as np
import pytest
import torch
from merging.vectors import fix_noise, merged, staged

from evomerge.merging import STAGES
from evomerge.merging.randomness import bits, keys
from evomerge.merging.site import Chunk, Piece, Site
from evomerge.recipe import Place


@pytest.mark.parametrize(("rescale", "expected"), [("inverse", 2.0), ("l1", 2.5), ("none", 1.0)])
def test_dare_rescales_as_asked(monkeypatch, rescale, expected):
    """τ = [1, 2, 3, 4] with the mask [1, 0, 1, 0] at p = 1/2; mergekit keeps Σ|τ| = 10 from the Σ = 4 that is left."""
    fix_noise(monkeypatch, [0.1, 0.9, 0.2, 0.6])
    found = staged([[1.0, 2.0, 3.0, 4.0]], edit=[{"dare": {"drop": 0.5, "rescale": rescale}}])
    assert found == [expected, 0.0, 3 * expected, 0.0]


def test_della_by_hand(monkeypatch):
    """τ = [.1, -3, 2, .5] at d = .5, ε = .2: q = [.3, .7, .566667, .433333], and the mask [0, 1, 1, 0]."""
    row, q = [0.1, -3.0, 2.0, 0.5], [0.3, 0.7, 0.566667, 0.433333]
    edit = {"density": 0.5, "epsilon": 0.2}
    for shift, mask in ((1e-3, [0, 0, 0, 0]), (-1e-3, [1, 1, 1, 1])):  # to either side of each probability
        fix_noise(monkeypatch, [share + shift for share in q])
        kept = staged([row], edit=[{"della": {**edit, "rescale": "none"}}])
        assert kept == pytest.approx([v * m for v, m in zip(row, mask, strict=True)])
    fix_noise(monkeypatch, [0.5, 0.5, 0.5, 0.5])
    assert staged([row], edit=[{"della": edit}]) == pytest.approx([0, -4.285714, 3.529411, 0], abs=5e-6)
    # 5.6 of the L1 norm, of which 5 are left
    assert staged([row], edit=[{"della": {**edit, "rescale": "l1"}}]) == pytest.approx([0, -3.36, 2.24, 0], rel=1e-6)


def test_della_ranks_in_rows_or_over_the_tensor(monkeypatch):
    """[[1, 2], [4, 3]]: in rows the ranks are 0, 1 and 1, 0; over the tensor 0, 1, 3, 2."""
    fix_noise(monkeypatch, [0.5, 0.5, 0.5, 0.5])
    matrix, edit = [[1.0, 2.0], [4.0, 3.0]], {"density": 0.5, "epsilon": 0.2, "rescale": "none"}
    assert staged([matrix], edit=[{"della": edit}]) == [[0, 2], [4, 0]]
    assert staged([matrix], edit=[{"della": {**edit, "scope": "tensor"}}]) == [[0, 0], [4, 3]]


def test_della_of_one_number_a_row_has_no_ranks(monkeypatch):
    """Where (m - 1) would be divided by, all have the mean probability."""
    fix_noise(monkeypatch, [0.69, 0.71])
    found = staged([[[1.0], [-5.0]]], edit=[{"della": {"density": 0.7, "epsilon": 0.2, "rescale": "none"}}])
    assert found == [[1], [0]]


def test_epsilon_is_cut_to_what_density_leaves():
    """At density 1 nothing is dropped, whatever epsilon; at density 0 everything is."""
    row = [[float(i + 1) for i in range(50)]]
    assert staged(row, edit=[{"della": {"density": 1, "epsilon": 0.2}}]) == row[0]
    assert staged(row, edit=[{"della": {"density": 0, "epsilon": 0.2}}]) == [0] * 50


def test_ranks_of_a_row_longer_than_1024_are_scaled():
    """70,000 numbers by size: the kept fraction grows from d - ε to d + ε."""
    row = [[float(i + 1) for i in range(70_000)]]
    kept = np.array(staged(row, edit=[{"della": {"density": 0.5, "epsilon": 0.4, "rescale": "none"}}])) != 0
    shares = kept.reshape(10, -1).mean(axis=1)
    assert shares == pytest.approx([0.14 + 0.08 * i for i in range(10)], abs=0.025)  # 4 standard errors of 7,000 draws


DROPS = {
    "dare": [{"drop": p, "rescale": "none"} for p in (0, 0.3, 0.6, 0.9)],
    "della": [{"density": d, "epsilon": 0.05, "rescale": "none"} for d in (1, 0.7, 0.4, 0.1)],
}


@pytest.mark.parametrize("stage", DROPS)
def test_higher_rates_drop_more_of_the_same(stage):
    """Common random numbers: what a lower rate drops, a higher one drops too."""
    row = torch.randn(4000, generator=torch.Generator().manual_seed(0)).tolist()
    kept = [{i for i, v in enumerate(staged([row], edit=[{stage: p}])) if v} for p in DROPS[stage]]
    assert kept[0] == set(range(4000))
    assert kept[0] > kept[1] > kept[2] > kept[3]
    # 4 standard errors of 4,000 draws, at most
    assert [len(k) / 4000 for k in kept] == pytest.approx([1, 0.7, 0.4, 0.1], abs=0.032)


@pytest.mark.parametrize("density", [0.005, 0.1, 0.9, 0.995])
def test_della_keeps_as_many_as_density_says(density):
    """Its noise has 14 bits: within 4 standard errors of 400,000 draws and 2^-15."""
    kept = np.array(staged([[1.0] * 400_000], edit=[{"della": {"density": density, "epsilon": 0, "rescale": "none"}}]))
    assert abs(kept.mean() - density) < 4 * np.sqrt(density * (1 - density) / 400_000) + 2**-15


def test_della_keeps_nothing_that_has_no_chance():
    """The least of each row, where epsilon takes all of density: its 1/q would be without bounds."""
    rows = [[1.0, 2.0, 3.0]] * 100_000
    kept = np.array(staged([rows], edit=[{"della": {"density": 0.1, "epsilon": 0.1, "rescale": "none"}}])) != 0
    assert kept.mean(axis=0) == pytest.approx([0, 0.1, 0.2], abs=0.005)  # 4 standard errors
    assert not kept[:, 0].any()


@pytest.mark.parametrize("width", [2, 1023, 1024])
def test_della_holds_ranks_and_noise_exactly(width):
    """Which are in the same numbers: the rank's distance from the row's middle, and 14 bits of the noise above it."""
    row = torch.randn(width, generator=torch.Generator().manual_seed(0))
    site = Site("t", (1, width), Place(0, 1, "other"), ("a",), 0)
    chunk = Chunk(
        site, slice(0, width), Piece([row], torch.tensor(-(2**31), dtype=torch.int32)), [row], torch.zeros(width), 0.0
    )
    (both,) = STAGES["della"].prepare.make(site, lambda: iter([chunk]), {"scope": "row"}).values()
    ranks = row.abs().argsort().argsort() - width // 2
    index = torch.arange(width).sub(2**31).to(torch.int32)
    noise = ((bits(index, keys(0, ["a"], "t")[0]).long() + 2**31) >> 18).double() / 2**14 + 2**-15
    assert torch.equal(both[0].double(), ranks.double() + noise)


@pytest.mark.parametrize(("method", "edit"), [("dare_linear", {"drop": 0.8}), ("della_linear", {"density": 0.3})])
def test_dropped_and_rescaled_mean_is_the_task_vector(method, edit):
    """E[τ̃] = τ: over 60,000 elements of each value, within 4 standard errors of (1 - q) / q τ² each."""
    for tau in (1.0, -2.0):
        found = np.array(merged(method, [[tau] * 60_000], edit))
        q = 1 - edit["drop"] if "drop" in edit else edit["density"]
        assert abs(found.mean() - tau) < 4 * np.sqrt((1 - q) / q * tau**2 / 60_000)


def test_variance_of_what_dare_leaves_is_as_the_paper_says():
    """p / (1 - p) · τ²: 4 at p = 0.8; its own standard error over 60,000 draws is 0.025."""
    assert np.var(merged("dare_linear", [[1.0] * 60_000], {"drop": 0.8})) == pytest.approx(4, abs=0.1)


def test_masks_of_seeds_labels_and_neighbours_are_unlike():
    """None is another's copy, shift or complement: correlations within 4.5 standard errors of 20,000 draws."""
    masks = [
        np.array(merged("dare_linear", [[1.0] * 20_000], {"drop": 0.5}, seed=seed)) > 0 for seed in (0, 1, 2, -1, 2**40)
    ]
    two = np.array(merged("dare_linear", [[1.0] * 20_000, [10.0] * 20_000], {"drop": 0.5, "weight": 0.5}))
    masks += [two % 10 > 0.5, two > 5]
    assert (masks[0] == masks[5]).all()  # the first input's mask at seed 0: the second changes nothing
    fields = np.array(masks[1:], dtype=float)
    off = np.corrcoef(fields) - np.eye(len(fields))
    assert np.abs(off).max() < 4.5 / np.sqrt(20_000)
