"""A small study and its run, for all tests of commands."""

import pytest
import yaml
from commands import evomerge


@pytest.fixture(scope="session")
def study_file(small_digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    data = {
        "name": "cli",
        "pool": small_digits.pool,
        "tasks": dict(list(small_digits.tasks.items())[:2]),
        "space": "task_arithmetic",
        "driver": {"kind": "nsga2"},
        "evaluations": 10,
        "report": {"scales": [0.2, 0.4], "front": 4, "resamples": 100},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return folder / "study.yaml"


@pytest.fixture(scope="session")
def finished(study_file):
    out = study_file.parent / "run"
    return out, evomerge("run", study_file, "-o", out)
