"""Models of the hub in commands: merges, studies and scores."""

import json
from pathlib import Path

import pytest
import yaml
from commands import evomerge
from hubs import COMMIT, read_files, serve

from evomerge.settings import StudySettings
from evomerge.study import Study

NAMES = ("base", "maths", "code")


@pytest.fixture
def hub(pool_folder, tmp_path):
    """A hub with the models of the tiny pool."""
    with serve(tmp_path / "cache") as served:
        served.models |= {f"org/{name}": read_files(pool_folder / name) for name in NAMES}
        yield served


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.yaml"
    experts = {name: f"org/{name}" for name in NAMES[1:]}
    merge = {"merge": {"method": "linear", "inputs": "experts"}}
    file.write_text(yaml.safe_dump({"pool": {"base": "org/base@main", "experts": experts}, "recipe": merge}))
    return file


def test_a_recipe_names_models_of_the_hub_and_its_export_their_commits(hub, recipe, pool_folder, tmp_path):
    said = evomerge("merge", recipe, "-o", tmp_path / "out").stdout
    assert said.count("2 files to download") == 3
    pool = yaml.safe_load((tmp_path / "out/recipe.yaml").read_text())["pool"]
    assert pool == {"base": f"org/base@{COMMIT}", "experts": {name: f"org/{name}@{COMMIT}" for name in NAMES[1:]}}
    hub.asked.clear()
    again = evomerge("merge", tmp_path / "out/recipe.yaml", "-o", tmp_path / "again").stdout
    assert again.count("in the cache") == 3
    assert hub.asked == [] or not hub.bodies
    assert read_files(tmp_path / "again") == read_files(tmp_path / "out")
    options = ("--base", pool_folder / "base", *(f"--expert={name}={pool_folder / name}" for name in NAMES[1:]))
    evomerge("merge", recipe, *options, "-o", tmp_path / "local")
    same = (tmp_path / "local/model.safetensors").read_bytes()
    assert (tmp_path / "out/model.safetensors").read_bytes() == same


def test_a_dry_run_says_what_a_merge_downloads_and_downloads_no_weights(hub, recipe, tmp_path):
    said = evomerge("merge", recipe, "-o", tmp_path / "out", "--dry-run").stdout
    assert said.count("2 files to download") == 3
    assert "nothing was downloaded" in said
    assert not hub.bodies


def test_options_take_ids_and_a_folder_of_that_name_goes_first(hub, recipe, pool_folder, tmp_path):
    (tmp_path / "org").mkdir()
    (tmp_path / "org/base").symlink_to(pool_folder / "base")
    options = ("--base", "org/base", "--expert", "maths=org/maths", "--expert", "code=org/code@main")
    said = evomerge("merge", recipe, *options, "-o", "out", cwd=tmp_path).stdout
    assert "org/base" not in said
    assert said.count("to download") == 2


def test_a_study_keeps_the_commits_of_its_models(hub, small_digits, study_file, tmp_path):
    models = {"base": small_digits.pool["base"], **small_digits.pool["experts"]}
    served = {f"org/{name}": read_files(Path(folder)) for name, folder in models.items()}
    hub.models |= served
    data = yaml.safe_load(study_file.read_text())
    data |= {"pool": {"base": "org/base", "experts": {name: f"org/{name}" for name in models if name != "base"}}}
    data |= {"evaluations": 2, "driver": {"kind": "random"}}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(data))
    assert "nothing was downloaded" in evomerge("run", file, "--dry-run").stdout
    evomerge("run", file, "-o", tmp_path / "run")
    header = json.loads((tmp_path / "run/study.json").read_text())
    assert header["identity"]["pool_commits"] == dict.fromkeys(models, COMMIT)
    assert header["settings"]["pool"]["base"] == f"hf://org/base@{COMMIT}"
    hub.models.clear()
    assert Study.open(tmp_path / "run", StudySettings.read(file)).digest(), "from the cache alone"
    refs = tmp_path / "cache/models--org--base/refs/main"
    moved = refs.parent.parent / "snapshots" / ("d" * 40)
    moved.symlink_to(refs.parent.parent / "snapshots" / COMMIT)
    refs.write_text("d" * 40)
    said = evomerge("run", file, "-o", tmp_path / "run", code=2).stderr
    assert "not the study that was started here" in said
    assert "pool_commits" in said
    Study.open(tmp_path / "run")  # what it started with is in its own settings


def test_score_takes_an_id(hub, small_digits, study_file):
    hub.models["org/base"] = read_files(Path(small_digits.pool["base"]))
    said = evomerge("score", "org/base", "--tasks", study_file, "--json")
    assert json.loads(said.stdout)["models"][0]["path"] == "org/base"
    assert "to download" in said.stderr


def test_a_missing_model_is_an_error_before_any_work(hub, recipe, tmp_path):
    said = evomerge("merge", recipe, "--base", "org/typo", "--expert", "a=org/maths", "-o", tmp_path / "out", code=2)
    assert "org/typo@main: no such folder here, and no such model" in said.stderr
    assert not (tmp_path / "out").exists()


def test_merge_stores_the_dtype_and_the_file_size_that_are_asked_for(pool_folder, recipe, tmp_path):
    options = ("--base", pool_folder / "base", *(f"--expert={name}={pool_folder / name}" for name in NAMES[1:]))
    said = evomerge(
        "merge", recipe, *options, "-o", tmp_path / "out", "--dtype", "bfloat16", "--shard-size", "50KB"
    ).stdout
    assert f"merged checkpoint: {tmp_path / 'out'}" in said
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    evomerge("merge", tmp_path / "out/recipe.yaml", "-o", tmp_path / "again", "--shard-size", "50KB")
    assert read_files(tmp_path / "again") == read_files(tmp_path / "out"), "the recipe has the dtype"
    evomerge("merge", recipe, *options, "-o", tmp_path / "mib", "--shard-mib", "1")
    for wrong, message in (
        ("--dtype=fp8", "dtype 'fp8': expected one of"),
        ("--shard-size=big", "size 'big': expected"),
    ):
        assert message in evomerge("merge", recipe, *options, "-o", tmp_path / "no", wrong, code=2).stderr
    done = evomerge("merge", recipe, *options, "-o", tmp_path / "no", "--as-adapter", "--dtype=float32", code=2)
    assert "`--dtype` and `--shard-size` are for checkpoints" in done.stderr
