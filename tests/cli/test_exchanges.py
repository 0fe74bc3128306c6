"""import and export: what is printed is a file, and its notes are comments."""

import numpy as np
import optuna
import pandas as pd
import torch
import yaml
from commands import evomerge
from shared.mergekit_files import write_models

from evomerge.checkpoints.folder import Folder


def write(folder, **more):
    folders = write_models(folder / "models", torch.float32)
    entry = {"model": str(folders["maths"]), "parameters": {"weight": 0.5, "density": 0.4}}
    data = {"merge_method": "ties", "base_model": str(folders["base"]), "models": [entry], **more}
    (folder / "file.yaml").write_text(yaml.safe_dump(data))
    return folder / "file.yaml"


def test_what_import_prints_is_a_recipe_s_file_with_its_notes_as_comments(tmp_path):
    said = evomerge("import", write(tmp_path)).stdout
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(said)
    assert "# what evomerge defines otherwise:" in said
    assert "# - ties: densities are fractions of the whole model" in said
    evomerge("merge", recipe, "-o", tmp_path / "merged")
    assert len(Folder(tmp_path / "merged").info) == 39


def test_import_writes_a_file_once_and_by_mergekit_s_definitions(tmp_path):
    file, out = write(tmp_path), tmp_path / "recipe.yaml"
    said = evomerge("import", file, "-o", out, "--as", "mergekit").stdout
    assert f"next: evomerge merge {out}" in said
    assert "defines nothing in this file otherwise" in said
    assert yaml.safe_load(out.read_text())["recipe"]["merge"]["parameters"]["rounding"] == "down"
    assert "exists" in evomerge("import", file, "-o", out, code=2).stderr
    assert "did you mean `mergekit`" in evomerge("import", file, "--as", "mergkit", code=2).stderr


def test_a_key_without_meaning_is_one_error_before_any_file(tmp_path):
    failed = evomerge("import", write(tmp_path, chat_template="auto"), "-o", tmp_path / "recipe.yaml", code=2)
    assert "`chat_template`" in failed.stderr
    assert "like: EXPERT" in failed.stderr
    assert not (tmp_path / "recipe.yaml").exists()


def test_export_gives_the_configuration_back(tmp_path):
    file, recipe = write(tmp_path), tmp_path / "recipe.yaml"
    evomerge("import", file, "-o", recipe)
    said = evomerge("export", recipe, "--mergekit").stdout
    assert "# where evomerge and mergekit differ:" in said
    exported = yaml.safe_load(said)
    assert exported["models"] == yaml.safe_load(file.read_text())["models"]
    out = tmp_path / "mergekit.yaml"
    assert f"mergekit-yaml {out}" in evomerge("export", recipe, "--mergekit", "-o", out).stdout
    assert evomerge("import", out).stdout.partition("\n")[2] == evomerge("import", file).stdout.partition("\n")[2]
    assert "--mergekit" in evomerge("export", recipe, code=2).stderr


def test_a_configuration_of_mergekit_evolve_becomes_a_study(tmp_path):
    data = {"models": ["org/a", "org/b"], "merge_method": "linear"}
    (tmp_path / "evolve.yaml").write_text(yaml.safe_dump({"genome": data, "tasks": ["quiz"]}))
    out = tmp_path / "study.yaml"
    said = evomerge("import", tmp_path / "evolve.yaml", "-o", out).stdout
    assert f"next: evomerge run {out}" in said
    assert "fill in what is marked FILL-IN" in said
    assert set(yaml.safe_load(out.read_text())) == {"name", "pool", "space", "tasks", "driver", "evaluations"}


def test_a_finished_search_is_exported_to_optuna_and_to_tables_with_the_same_scores(finished, tmp_path):
    run, _ = finished
    storage = f"sqlite:///{tmp_path / 'optuna.db'}"
    assert "added 10 candidates to the study `cli`" in evomerge("export", run, "--optuna", storage).stdout
    assert "added 0 candidates" in evomerge("export", run, "--optuna", storage).stdout
    frame = optuna.load_study(study_name="cli", storage=storage).trials_dataframe(attrs=("values",))
    for name, read in (("all.csv", pd.read_csv), ("all.parquet", pd.read_parquet)):
        evomerge("show", run, "--csv", tmp_path / name)
        table = read(tmp_path / name)
        assert len(table) == len(frame) == 10
        for column in frame.columns:
            np.testing.assert_allclose(table[column.removeprefix("values_")], frame[column])
