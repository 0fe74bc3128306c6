"""Activation-informed merging by hand."""

import pytest
import torch
from merging.vectors import NAME

from evomerge.merging import Statistics, needs
from evomerge.recipe import Recipe, merge
from evomerge.testing import merge_tensors

SEEN = [([1.0, 2.0], 1), ([5.0, 2.0], 3)]
"""Mean magnitudes of two channels, and tokens: (1 + 3·5)/4 = 4 and 2 over all, and 1 and 0.5 of the largest."""


def aim(change, seen=SEEN, axis=1, **parameters):
    tables = [
        {"size": torch.tensor(size), "tokens": torch.tensor(tokens), "axis": torch.tensor(axis)} if size else {}
        for size, tokens in seen
    ]
    statistics = Statistics(lambda kind: [kind] * 2, lambda kind, name: tables)
    base = {NAME: torch.full((len(change), len(change[0])), 10.0)}
    inputs = [{NAME: base[NAME] + torch.tensor(change)}, base]
    recipe = merge("aim", ["e0", "e1"], {"lambda": 1.0, **parameters})
    return (merge_tensors(recipe, base, inputs, statistics=statistics)[NAME] - 10).tolist()


def test_by_hand():
    """1 - 0.6·1 and 1 - 0.6·0.5."""
    found = aim([[1.0, 2.0], [-1.0, 4.0]])
    assert found[0] == pytest.approx([0.4, 1.4], abs=1e-5)
    assert found[1] == pytest.approx([-0.4, 2.8], abs=1e-5)


def test_a_matrix_stored_the_other_way_round_has_its_channels_in_rows():
    found = aim([[1.0, -1.0, 2.0], [2.0, 4.0, 2.0]], axis=0)
    assert found[0] == pytest.approx([0.4, -0.4, 0.8], abs=1e-5)
    assert found[1] == pytest.approx([1.4, 2.8, 1.4], abs=1e-5)


def test_omega_of_one_changes_nothing():
    assert aim([[1.0, 2.0]], omega=1.0) == [[1.0, 2.0]]


def test_without_tokens_nothing_is_relaxed():
    assert aim([[1.0, 2.0]], seen=[(None, 0), (None, 0)]) == [[1.0, 2.0]]
    assert aim([[1.0, 1.0]], seen=[(None, 0), ([5.0, 2.0], 3)])[0] == pytest.approx([0.4, 1 - 0.6 * 0.4], abs=1e-5)


def test_it_follows_any_other_stages():
    recipe = {"merge": {"inputs": ["a", "b"], "stages": {"edit": ["trim"], "weigh": ["elect"], "post": ["aim"]}}}
    assert needs(Recipe.parse(recipe)) == ("base_activation",)
