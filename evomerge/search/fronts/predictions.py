"""Predictions of surrogates at candidates that are asked for again and again, each computed once."""

from collections.abc import Collection

import numpy as np

from evomerge import surrogate
from evomerge.search.driver import Genomes, Means
from evomerge.surrogate import Surrogate


class Predictions:
    """Means and standard deviations that `fits` predict, kept by point.

    With as many points at once as are new, linear algebra may round otherwise than with all: the last bits depend on the order of the calls.
    """

    def __init__(self, fits: Collection[Surrogate]) -> None:
        """Predict nothing yet."""
        self._fits = fits
        self._rows: dict[bytes, int] = {}  # of both tables, by point
        self._means: Means = np.empty((0, len(fits)))
        self._deviations: Means = np.empty((0, len(fits)))

    def at(self, points: Genomes) -> tuple[Means, Means]:
        """Return means and standard deviations at `points`, `(points, genes)`: both `(points, objectives)`."""
        keys = [point.tobytes() for point in points]
        new = {key: row for row, key in enumerate(keys) if key not in self._rows}
        if new:
            means, deviations = surrogate.predict_all(self._fits, points[list(new.values())])
            self._rows |= {key: len(self._means) + place for place, key in enumerate(new)}
            self._means = np.concatenate([self._means, means])
            self._deviations = np.concatenate([self._deviations, deviations])
        rows = [self._rows[key] for key in keys]
        return self._means[rows], self._deviations[rows]
