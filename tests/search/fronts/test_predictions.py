"""Predictions that are kept: those of all at once, each computed once."""

import numpy as np

from evomerge.search.fronts.predictions import Predictions
from evomerge.surrogate import fit, predict_all


def test_predictions_are_kept_by_point_in_any_order(monkeypatch):
    rng = np.random.default_rng(0)
    points = rng.random((30, 2))
    fits = [fit(points, (np.sin(points @ row) + 0.01 * rng.standard_normal(30))[:, None]) for row in np.eye(2)]
    kept, asked = Predictions(fits), []
    monkeypatch.setattr(
        "evomerge.search.fronts.predictions.surrogate.predict_all",
        lambda *args: asked.append(len(args[1])) or predict_all(*args),
    )
    for rows in ([0, 1, 2], [2, 2, 5, 0], [5, 1], []):
        for found, expected in zip(kept.at(points[rows]), predict_all(fits, points[rows]), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4)  # deviations are roots of small differences
    assert asked == [3, 1]
