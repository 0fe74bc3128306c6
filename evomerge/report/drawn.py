"""Drawn: the figures of a report as files beside its page, and small enough to stand in the page."""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from PIL import Image

from evomerge import files
from evomerge.report import figures, gains_figure, population, surface_figures
from evomerge.report.results import Results

_FIGURES: Mapping[str, Callable[[Results], Figure | None]] = {
    "front": figures.front_figure,
    "hypervolume": figures.hypervolume_figure,
    "population": population.curves,
    "cells": population.maps,
    "surface": surface_figures.front,
    "predicted": surface_figures.predicted,
    "gains": gains_figure.draw,
}
_COLOURS = 64


class Drawn(NamedTuple):
    """A figure in three forms, and its size on a page in pixels: that of the figure, not its number of dots."""

    png: bytes
    svg: bytes
    small: bytes
    """The PNG in 64 colours."""
    width: int
    height: int


def draw(results: Results, pairs: Sequence[Sequence[str]] = ()) -> dict[str, Drawn]:
    """Return the figures that have something to draw, by name. `pairs` are those of `figures.front_figure`."""
    makers: dict[str, Callable[[Results], Figure | None]] = {
        **_FIGURES,
        "front": partial(figures.front_figure, pairs=pairs),
    }
    drawn = {name: figure for name, make in makers.items() if (figure := make(results)) is not None}
    return {name: _drawn(figure) for name, figure in drawn.items()}


def write(drawn: Mapping[str, Drawn], folder: Path) -> None:
    """Write the figures as PNG and SVG into the study's `folder`; remove those that have nothing to draw now."""
    for name in _FIGURES:
        for kind in ("png", "svg"):
            path = folder / f"{name}.{kind}"
            if name in drawn:
                files.write(path, getattr(drawn[name], kind))
            else:
                path.unlink(missing_ok=True)


def _drawn(figure: Figure) -> Drawn:
    width, height = (round(float(inches) * 96) for inches in figure.get_size_inches())
    return Drawn(png := figures.png(figure), figures.svg(figure), _small(png), width, height)


def _small(png: bytes) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(_COLOURS).save(out, "PNG", optimize=True)
    return out.getvalue()
