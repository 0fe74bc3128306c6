"""Tasks of lm-evaluation-harness in an engine, by the harness's own class for vLLM; the engine is a fake."""

import numpy as np
import pytest
from engines import engine_and_modules, install_fake, install_what_the_harness_imports
from harness_tasks import CHOICE, GENERATION, TARGET, harness

from evomerge.recipe import expert
from evomerge.testing import candidate

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.usefixtures("own_data_cache")


@pytest.mark.parametrize("kind", [CHOICE, TARGET, GENERATION])
def test_scores_are_those_of_the_harness_with_transformers(tmp_path, monkeypatch, kind):
    install_fake(monkeypatch)
    install_what_the_harness_imports(monkeypatch)
    engine, modules = engine_and_modules(tmp_path)
    task = harness(tmp_path, kind)
    task.check(engine)
    for name in ("a", "b", "a"):
        engine.refit(candidate(expert(name)))
        for split in ("search", "report"):
            served, expected = task.serve(engine, split).scores, task.score(modules[name], split).scores
            assert served.keys() == expected.keys()
            for metric, scores in expected.items():
                np.testing.assert_allclose(served[metric], scores, atol=1e-4)
