"""Models of a few thousand random parameters, and examples for them."""

import pytest
from tiny_models import tiny_model

from evomerge.models import LiveModel


@pytest.fixture(scope="session")
def live(tmp_path_factory):
    """Return a function that makes each live model once; scoring does not change it."""
    models = {}

    def make(architecture, auto=None, **changes):
        key = (architecture, auto, repr(sorted(changes.items())))
        if key not in models:
            models[key] = LiveModel(
                tiny_model(tmp_path_factory.mktemp(architecture), architecture, auto=auto, **changes)
            )
        return models[key]

    return make


@pytest.fixture
def own_data_cache(tmp_path, monkeypatch):
    """Let `datasets` read every file again, and leave the user's cache alone."""
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("lm_eval")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
