"""`--device`: said before the work, and refused before it where there is no such device."""

import pytest
from commands import evomerge

from evomerge import placement


def test_the_dry_run_says_where_candidates_run_and_what_else_there_is(study_file, monkeypatch):
    monkeypatch.setattr(placement, "available", lambda: {"cpu": ""})
    said = evomerge("run", study_file, "--dry-run", "--device", "auto").stdout
    assert " device cpu, float32 budget" in " ".join(said.split())
    monkeypatch.setattr(placement, "available", lambda: {"cuda:0": "NVIDIA H100", "cpu": ""})
    said = evomerge("run", study_file, "--dry-run").stdout
    assert "cpu, float32; there is cuda:0 (NVIDIA H100): `device: cuda:0` runs there" in " ".join(said.split())


@pytest.mark.parametrize(
    "command",
    [
        ("run", "STUDY", "-o", "OUT"),
        ("merge", "RECIPE", "--zoo", "digits", "-o", "OUT"),
        ("show", "RUN"),
    ],
)
def test_a_device_that_is_not_there_is_refused_before_any_work(command, study_file, finished, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("merge: {method: linear, inputs: experts}\n")
    places = {"STUDY": study_file, "OUT": tmp_path / "out", "RECIPE": recipe, "RUN": finished[0]}
    refused = evomerge(*(places.get(word, word) for word in command), "--device", "cuda:7", code=2)
    assert "device `cuda:7`: not here" in " ".join(refused.stderr.split())
    assert not (tmp_path / "out").exists()
