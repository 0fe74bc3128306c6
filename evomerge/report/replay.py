"""The diagnostics and cells of a population of models, from a replay of its search."""

import itertools
from typing import Any

import numpy as np

from evomerge.errors import DriverError, StudyError
from evomerge.report.results import Cells, Diagnostics, Elite
from evomerge.search import CellMap, Population
from evomerge.study import Study

_POINTS = 200
"""The largest number of points of the search at which a population is looked at."""


def population(study: Study, evaluations: int) -> dict[str, Any]:
    """Return the fields of `Results` that only a population has, after a replay of the first `evaluations`."""
    driver = study.parts.new_driver(study.settings.seed)
    if not isinstance(driver, Population):
        return {}
    points = set(np.linspace(1, evaluations, min(evaluations, _POINTS)).round().astype(int).tolist())
    completed = (evaluation for _, evaluation in study.replay(driver) if evaluation is not None)
    series = {}
    try:
        for count, _ in enumerate(itertools.islice(completed, evaluations), start=1):
            if count in points and (diagnostics := driver.diagnostics()):
                series[count] = diagnostics
    except (StudyError, DriverError) as error:  # the rest of the report does not depend on it
        return {"not_replayed": str(error)}
    if not series:
        return {}
    entropy = [diagnostics["entropy"] for diagnostics in series.values() if "entropy" in diagnostics]
    return {
        "diagnostics": Diagnostics(
            evaluations=tuple(series),
            coverage=tuple(diagnostics["coverage"] for diagnostics in series.values()),
            entropy=tuple(entropy) if len(entropy) == len(series) else None,
            members=len(driver.members()),
        ),
        "cells": tuple(map(_cells, driver.maps())),
    }


def _cells(cells: CellMap) -> Cells:
    return Cells(
        quality=cells.quality,
        axes=cells.axes,
        edges=tuple(tuple(edges.tolist()) for edges in cells.edges),
        elites=tuple(
            Elite(cell=cell, recipe_id=identity, quality=quality)
            for cell, (identity, quality) in sorted(cells.elites.items())
        ),
    )
