"""Tiny models of several architectures, and their symmetries."""

import pytest
import transformers
from architectures import build

from evomerge.alignment import symmetry
from evomerge.models.live import LiveModel


@pytest.fixture(scope="session")
def symmetric(tmp_path_factory):
    """By architecture, a live model and its symmetry, found once; no test changes its weights."""
    transformers.utils.logging.disable_progress_bar()
    made = {}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            build(name, 0).save_pretrained(folder)
            live = LiveModel(folder)
            made[name] = live, symmetry(live)
        return made[name]

    return of
