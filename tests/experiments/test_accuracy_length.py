"""The study of accuracy against length runs as it is shipped, on tiny models in place of the zoo's."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rows import write_jsonl
from tiny_models import tiny_model

from evomerge import zoo
from evomerge.settings import StudySettings
from evomerge.study import Study

FILE = Path(__file__).parents[2] / "experiments" / "accuracy_length.yaml"


@pytest.fixture
def tiny_zoo(tmp_path, monkeypatch):
    """Put tiny models and sums in the place of the language zoo."""
    models = [
        str(tiny_model(tmp_path / name, "llama", seed=i)) for i, name in enumerate(("base", "german", "addition"))
    ]
    task = {"kind": "generation", "max_new_tokens": 5, "match": "exact", "stop": ["\n"]}
    for split in ("search", "report"):
        rows = [{"prompt": f"{10 + i}+{split[0]}=", "answer": str(i)} for i in range(4)]
        task[split] = write_jsonl(tmp_path / f"{split}.jsonl", rows)
    pool = {"base": models[0], "experts": dict(zip(("german", "addition"), models[1:], strict=True))}
    monkeypatch.setattr(zoo, "load", lambda name, seed: SimpleNamespace(pool=pool, tasks={"addition": task}))


def test_the_study_searches_both_objectives_of_one_task(tiny_zoo, tmp_path):
    settings = StudySettings.read(FILE).with_options({"evaluations": 6})
    study = Study.create(tmp_path / "run", settings)
    assert study.parts.searched == ["addition/accuracy", "brevity/length"]
    assert study.parts.reported == ["addition/accuracy", "brevity/length"]
    assert study.parts.setup.tasks["brevity"]["max_new_tokens"] == 24
    study.run()
    lengths = np.array([done.scores["brevity/length"] for _, done in study.population()])
    assert lengths.shape[1] == 4
    assert ((lengths <= 0) & (lengths >= -24) & (lengths == lengths.round())).all()
    assert len(np.unique(lengths)) > 1
