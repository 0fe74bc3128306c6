"""`evomerge check`: whether models can be merged, and what to type next."""

import json
import shlex

import pytest
from adapters import base_tensors, factors, write_adapter
from commands import evomerge
from hubs import read_files, serve
from pools import write_checkpoint

PNG = b"\x89PNG"


def test_a_pool_is_compared_drawn_and_what_is_typed_next_runs(pool_folder, tmp_path):
    experts = (pool_folder / "maths", f"kode={pool_folder / 'code'}")
    said = evomerge("check", pool_folder / "base", *experts, "-o", tmp_path / "check.png").stdout
    assert (tmp_path / "check.png").read_bytes().startswith(PNG)
    assert "note: " not in said
    lines = [line.strip() for line in said.splitlines()]
    recipe = lines[lines.index("next:") + 1]
    assert recipe == "echo 'merge: {method: task_arithmetic, inputs: experts}' > recipe.yaml"
    (tmp_path / "recipe.yaml").write_text(shlex.split(recipe)[1])
    evomerge(*shlex.split(lines[lines.index("next:") + 2])[1:], cwd=tmp_path)
    assert (tmp_path / "merged/model.safetensors").is_file()


def test_json_has_norms_and_cosines_by_block(pool_folder):
    done = evomerge("check", pool_folder / "base", pool_folder / "maths", pool_folder / "code", "--json")
    data = json.loads(done.stdout)
    assert data["mergeable"]
    assert [model["kind"] for model in data["models"]] == ["full"] * 3
    vectors = data["task_vectors"]
    assert vectors["experts"] == ["maths", "code"]
    assert vectors["cosines"][0][0] == pytest.approx(1)
    assert [block["block"] for block in vectors["blocks"]] == [0, 1, 2, 3, None]


def test_a_model_that_cannot_be_merged_is_exit_code_2_and_the_others_go_on(pool_folder, tmp_path):
    (tmp_path / "gone").mkdir()
    done = evomerge("check", pool_folder / "base", pool_folder / "maths", tmp_path / "gone", "--no-weights", code=2)
    assert "gone cannot be merged: " in done.stdout
    assert "1 of 3 models cannot be merged: `gone`; the reasons are above" in done.stderr
    assert f"--expert maths={pool_folder / 'maths'} -o merged" in done.stdout


def test_an_adapter_is_an_expert(tmp_path):
    write_checkpoint(tmp_path / "base", base_tensors(), {"model_type": "tiny"})
    name = next(n for n, t in base_tensors().items() if n.endswith(".weight") and t.dim() == 2)
    shape = base_tensors()[name].shape
    write_adapter(tmp_path / "lora", factors(name.removesuffix(".weight"), shape=shape), r=2, lora_alpha=4)
    data = json.loads(evomerge("check", tmp_path / "base", tmp_path / "lora", "--json").stdout)
    assert data["models"][1]["kind"] == "adapter"
    assert data["task_vectors"]["norms"][0] > 0


def test_models_on_the_hub_are_compared_without_their_weights(pool_folder, tmp_path):
    names = ("base", "maths", "code")
    with serve(tmp_path / "cache") as hub:
        hub.models |= {f"org/{name}": read_files(pool_folder / name) for name in names}
        said = evomerge("check", "org/base", "org/maths@main", pool_folder / "code", "--out", tmp_path / "a.png").stdout
        assert all(span == "bytes=0-100000" for name, span in hub.bodies if name.endswith(".safetensors"))
        assert said.count("reading the headers alone") == 2
        assert "weights were not compared" in said
        assert "no picture" in said
        assert (
            f"--base org/base@main --expert maths=org/maths@main --expert code={pool_folder / 'code'} -o merged" in said
        )
        hub.models["org/other"] = read_files(write_checkpoint(tmp_path / "other", base_tensors(), {"model_type": "b"}))
        done = evomerge("check", "org/base", "org/other", code=2)
    assert "expert `other` (org/other@main) differs from the base (org/base@main) in " in done.stdout


def test_two_models_of_one_name_are_refused(pool_folder):
    done = evomerge("check", pool_folder / "base", pool_folder / "maths", pool_folder / "maths", code=2)
    assert "a second model named `maths`; give it another name, such as `other=" in done.stderr
