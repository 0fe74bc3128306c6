"""Subjects that several test files use."""

import pytest
from subjects import image_task, subject_of, text_task
from tiny_models import TINY, tiny_model

from evomerge.models import LiveModel


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Return a function that makes a subject of an architecture and a kind of task, each once."""
    made = {}

    def make(architecture, kind=None, **more):
        key = (architecture, kind)
        if key not in made:
            folder = tmp_path_factory.mktemp(architecture)
            _, auto = TINY[architecture]
            model = tiny_model(folder / "model", architecture)
            chosen = kind or ("classification" if "Classification" in auto else "language_modelling")
            task = image_task(folder) if architecture == "vit" else text_task(folder, chosen)
            made[key] = model, task, LiveModel(model)
        model, task, live = made[key]
        return subject_of(model, task, live=live, **more)

    return make
