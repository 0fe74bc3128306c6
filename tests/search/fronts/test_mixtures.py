"""Mixtures as candidates: where they lie, and which of them fill gaps."""

import numpy as np
import pytest

from evomerge.search.fronts import mixtures
from evomerge.space import SearchSpace


def space(experts, **more):
    weight = {"float": [0, 1.2], "per": ["expert"]}
    parameters = {"weight": weight, "lambda": {"float": [0.5, 1]} if more else 1.0}
    merge = {"method": "task_arithmetic", "inputs": "experts", "parameters": parameters}
    return SearchSpace({"merge": merge}, experts=[f"e{i}" for i in range(experts)])


@pytest.mark.parametrize("experts", [2, 3, 4])
def test_candidates_are_all_different_mixtures_of_the_experts(experts):
    searched = space(experts)
    points = mixtures.candidates(searched, 0)
    weights = searched.from_unit(points)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)
    assert weights.min() >= 0
    assert len(np.unique(points.round(9), axis=0)) == len(points)
    np.testing.assert_allclose(weights.mean(axis=0), 1 / experts, atol=0.02)
    assert mixtures.are_mixtures(searched, points).all()
    assert (points == mixtures.candidates(searched, 0)).all()


def test_points_off_the_simplex_are_no_mixtures():
    searched = space(2)
    genomes = np.array([[0.5, 0.5], [0.6, 0.5], [1.0, 0.0], [0.4, 0.4]])
    assert mixtures.are_mixtures(searched, searched.to_unit(genomes)).tolist() == [True, False, True, False]


def test_other_genes_are_spread_over_their_ranges():
    searched = space(2, lambda_=True)
    genomes = searched.from_unit(mixtures.candidates(searched, 1))
    (other,) = [i for i, gene in enumerate(searched.genes) if "lambda" in gene.name]
    assert genomes[:, other].min() < 0.51
    assert genomes[:, other].max() > 0.99


def test_the_widest_gaps_of_the_predicted_front_are_filled_first():
    scores = np.array([[0, 10], [1, 9], [5, 5], [8, 2], [10, 0], [4, 4]], float)  # the last is dominated
    known = np.array([[0, 10], [10, 0]], float)
    assert mixtures.filling(scores, known, 1).tolist() == [2]
    assert mixtures.filling(scores, known, 3).tolist() == [2, 3, 1]
    assert mixtures.filling(scores, known, 9).tolist() == [2, 3, 1]
    assert mixtures.filling(scores[:0], known, 2).tolist() == []


def test_gaps_are_in_units_of_the_ranges_of_scores():
    scores = np.array([[0, 1000], [6, 990], [10, 0]], float)
    assert mixtures.filling(scores, scores[[0, 2]], 1).tolist() == [1]
    assert mixtures.filling(scores * [1, 1e-6], scores[[0, 2]] * [1, 1e-6], 1).tolist() == [1]
