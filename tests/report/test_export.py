"""Exported folders give the same logits in plain transformers, in a process without evomerge."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from pools import CONFIG, Models, write_pool
from safetensors.torch import load_file, save_file
from tiny_models import TINY, tiny_model

from evomerge import strict_yaml
from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.errors import CheckpointError, ModelError, PoolError, RecipeError
from evomerge.models import LiveModel, load_stack
from evomerge.models.folding import TOLERANCE
from evomerge.models.saved_stack import SCALES
from evomerge.recipe import Recipe, merge
from evomerge.report.export import export, hub_name

ARCHITECTURES = ("llama", "gpt2", "bert", "vit", "qwen3", "gemma")
LAYERS = (("b", 2), ("a", 0), ("a", 0), ("b", 1), ("base", 1))
UNSCALED = (1.0, 1.0, 1.0, 1.0, 1.0)
MIXED = (1.5, -0.7, 1.0, 1.1, -1.0)
POWERS = (2.0, 1.0, 0.5, 0.25, 8.0)
EPSILON = {"gpt2": "layer_norm_epsilon", "bert": "layer_norm_eps", "vit": "layer_norm_eps"}
ELSEWHERE = """
import sys, pathlib, torch, transformers
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
for folder in map(pathlib.Path, sys.argv[1:]):
    auto = (folder / "auto").read_text()
    model, report = getattr(transformers, auto).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    with torch.inference_mode():
        save_file({"logits": model.eval()(**load_file(folder / "inputs")).logits}, folder / "outputs")
assert "evomerge" not in sys.modules
"""


def stack(scales, layers=LAYERS):
    slots = [{"source": s, "layer": n, "scale": c} for (s, n), c in zip(layers, scales, strict=True)]
    return Recipe.parse({"stack": {"slots": slots, "rest": "a"}})


def inputs(architecture):
    generator = torch.Generator().manual_seed(0)
    if architecture == "vit":
        return {"pixel_values": torch.randn(3, 1, 4, 4, generator=generator)}
    return {"input_ids": torch.randint(3, 99, (3, 7), generator=generator)}


@dataclass
class Export:
    """An exported folder, and the logits of the same stack in memory."""

    folder: Path
    logits: torch.Tensor

    @property
    def elsewhere(self):
        return load_file(self.folder / "outputs")["logits"]

    @property
    def card(self):
        return (self.folder / "README.md").read_text()


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Return exports by architecture and kind of scales, all run in one other process."""
    root = tmp_path_factory.mktemp("exports")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    exported = {}
    for architecture in ARCHITECTURES:
        kinds = {"unscaled": (1e-12, UNSCALED), "mixed": (1e-12, MIXED)}
        if architecture in ("llama", "gpt2"):
            kinds |= {"powers": (1e-12, POWERS), "kept": (1e-2, POWERS)}  # this ε cannot be scaled along
        pools = {}
        for kind, (epsilon, scales) in kinds.items():
            if epsilon not in pools:
                own = root / architecture / str(epsilon)
                changes = {"n_layer" if architecture == "gpt2" else "num_hidden_layers": 3}
                changes[EPSILON.get(architecture, "rms_norm_eps")] = epsilon
                for seed, name in enumerate(("base", "a", "b")):
                    tiny_model(own / name, architecture, seed, **changes)
                pools[epsilon] = Pool(own / "base", {name: own / name for name in "ab"}), LiveModel(own / "base")
            pool, live = pools[epsilon]
            folder = root / f"{architecture}-{kind}"
            export(stack(scales), pool, folder)
            live.refit(Builder(pool).build(stack(scales)))
            with torch.inference_mode():
                exported[architecture, kind] = Export(folder, live.module(**inputs(architecture)).logits)
            save_file(inputs(architecture), folder / "inputs")
            (folder / "auto").write_text(TINY[architecture][1])
    torch.set_num_threads(threads)
    subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *(str(each.folder) for each in exported.values())],
        check=True,
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    return exported


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_exported_stack_is_the_stack_in_memory_bit_for_bit(architecture, exports):
    exported = exports[architecture, "unscaled"]
    assert torch.equal(exported.elsewhere, exported.logits)
    assert "5 layers, numbered as in their sources: b 2, a 0, a 0, b 1, base 1." in exported.card
    assert not (exported.folder / SCALES).exists()


@pytest.mark.parametrize(
    ("architecture", "kind"), [*((name, "mixed") for name in ARCHITECTURES), ("llama", "powers"), ("gpt2", "powers")]
)
def test_exported_scales_are_folded_up_to_rounding(architecture, kind, exports):
    exported = exports[architecture, kind]
    assert (exported.elsewhere - exported.logits).abs().max() <= TOLERANCE * exported.logits.abs().max()
    assert "These scales are folded into the weights" in exported.card
    assert not (exported.folder / SCALES).exists()
    plain = exports[architecture, "unscaled"].logits
    assert (plain - exported.logits).abs().max() > 100 * TOLERANCE * exported.logits.abs().max()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_scales_that_are_not_folded_are_beside_the_weights(architecture, exports):
    exported = exports[architecture, "kept"]
    assert json.loads((exported.folder / SCALES).read_text()) == {"scales": list(POWERS)}
    assert "what it then computes is another model" in exported.card
    assert "more than rounding does" in exported.card
    assert not torch.allclose(exported.elsewhere, exported.logits, atol=1e-3), "the card is right"
    model = load_stack(exported.folder, TINY[architecture][1])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        assert torch.equal(model(**inputs(architecture)).logits, exported.logits)
    torch.set_num_threads(threads)


def test_rest_of_the_configuration_is_unchanged(exports):
    folder = exports["llama", "unscaled"].folder
    before = json.loads((folder.parent / "llama/1e-12/base/config.json").read_text())
    assert json.loads((folder / "config.json").read_text()) == before | {"num_hidden_layers": 5}
    assert (folder / "tokenizer.json").read_bytes() == (folder.parent / "llama/1e-12/base/tokenizer.json").read_bytes()


def test_recipe_beside_the_weights_makes_the_same_bytes_again(exports, tmp_path):
    folder = exports["llama", "mixed"].folder
    file = strict_yaml.read(folder / "recipe.yaml")
    pool = Pool(Path(file["pool"]["base"]), {name: Path(path) for name, path in file["pool"]["experts"].items()})
    export(Recipe.parse(file["recipe"]), pool, tmp_path / "again")
    for name in ("model.safetensors", "README.md", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


@pytest.fixture
def pool(tmp_path):
    write_pool(tmp_path, Models.random(2))
    return Pool(tmp_path / "base", {name: tmp_path / name for name in ("maths", "code")})


def test_merge_keeps_the_bases_configuration_byte_for_byte(pool, tmp_path):
    (tmp_path / "base" / "config.json").write_text('{"model_type" :  "no architecture of transformers"}')
    export(merge("linear", ["maths", "code"]), pool, tmp_path / "out")
    assert (tmp_path / "out/config.json").read_bytes() == (tmp_path / "base/config.json").read_bytes()
    assert "Layers" not in (tmp_path / "out/README.md").read_text()


def test_recipe_names_a_pool_of_relative_paths_absolutely(tmp_path, monkeypatch):
    write_pool(tmp_path, Models.random(1))
    monkeypatch.chdir(tmp_path)
    export(merge("linear", ["maths"]), Pool("base", {"maths": "maths"}), Path("exports/out"))
    named = strict_yaml.read(tmp_path / "exports/out/recipe.yaml")["pool"]
    assert named == {"base": str(tmp_path / "base"), "experts": {"maths": str(tmp_path / "maths")}}


def test_export_like_an_expert_has_its_tokenizer_and_says_so(tmp_path):
    for seed, name in enumerate(("base", "a")):
        tiny_model(tmp_path / name, "llama", seed, eos_token_id=2 + seed)
    (tmp_path / "a" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    pool = Pool(tmp_path / "base", {"a": tmp_path / "a"}, like="a")
    export(merge("linear", ["a"]), pool, tmp_path / "out")
    assert (tmp_path / "out/chat_template.jinja").read_text() == "{{ messages[0].content }}"
    before = json.loads((tmp_path / "base/config.json").read_text())
    assert json.loads((tmp_path / "out/config.json").read_text()) == before | {"eos_token_id": 3}
    assert strict_yaml.read(tmp_path / "out/recipe.yaml")["like"] == "a"
    assert (
        "tokenizer, chat template and generation settings are those of a." in (tmp_path / "out/README.md").read_text()
    )
    with pytest.raises(PoolError, match="`like` is `b`, which is no expert"):
        Pool(tmp_path / "base", {"a": tmp_path / "a"}, like="b")


@pytest.mark.parametrize("recipe", [{"expert": "maths"}, {"merge": {"method": "linear", "inputs": "experts"}}])
def test_configuration_names_the_dtype_of_the_weights(recipe, tmp_path):
    config = CONFIG | {"dtype": "float16"}
    models = Models.random(2)
    halves = Models.random(2, dtype=torch.float16)
    write_pool(tmp_path, Models(halves.base, models.experts), config=config)
    export(
        Recipe.parse(recipe, experts=["maths", "code"]),
        Pool(tmp_path / "base", {n: tmp_path / n for n in models.experts}),
        tmp_path / "out",
    )
    stored = {
        str(tensor.dtype)
        for tensor in load_file(tmp_path / "out/model.safetensors").values()
        if tensor.is_floating_point()
    }
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert stored == {f"torch.{written['dtype']}"} == {"torch.float32" if "expert" in recipe else "torch.float16"}
    assert written == config | {"dtype": written["dtype"]}


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [((("a", 0), ("a", 9)), RecipeError, "names layer 9"), ((("a", 0),), CheckpointError, "not empty")],
)
def test_nothing_is_written_after_an_error(layers, error, message, tmp_path):
    for seed, name in enumerate(("base", "a")):
        tiny_model(tmp_path / name, "llama", seed)
    pool, out = Pool(tmp_path / "base", {"a": tmp_path / "a"}), tmp_path / "out"
    if error is CheckpointError:
        out.mkdir()
        (out / "mine").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=message):
        export(stack([0.5] * len(layers), layers), pool, out)
    assert sorted(tmp_path.rglob("*")) == before


def test_stack_of_a_model_that_transformers_does_not_know_is_refused(pool, tmp_path):
    recipe = Recipe.parse({"stack": {"slots": [{"source": "maths", "layer": 0}], "rest": "code"}})
    with pytest.raises(ModelError, match="expected a `model_type` of transformers"):
        export(recipe, pool, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_snapshot_of_the_hub_has_the_name_that_it_has_there(tmp_path):
    assert hub_name(tmp_path / "models--owner--model-1" / "snapshots" / "1a2b") == "owner/model-1"
    assert hub_name(tmp_path / "owner" / "base") == "base"
