"""Adapters out: PEFT loads them onto the base, with the outputs of the complete merge, or with the loss that is said."""

import json

import pytest
import torch
import transformers
from adapters import draw, factors, write_adapter
from commands import evomerge
from safetensors.torch import load_file, save_file
from tiny_models import TINY, tiny_model
from vocabularies import write_base, write_expert

from evomerge import strict_yaml
from evomerge.build import Builder
from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.vocabulary import TokenizerChoice
from evomerge.errors import CheckpointError, RecipeError
from evomerge.recipe import Recipe, expert, merge
from evomerge.report.export import export
from evomerge.report.export_adapter import export_adapter

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # which PEFT asks transformers for
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True but"),  # GPT-2 has weights of both orders
]
LINEAR = ("q_proj.weight", "down_proj.weight")
IDS = torch.arange(3, 15)[None]


def auto(architecture):
    return getattr(transformers, TINY[architecture][1])


def logits(model, architecture):
    inputs = {"pixel_values": draw(2, 1, 4, 4, seed=3)} if architecture == "vit" else {"input_ids": IDS}
    with torch.no_grad():
        return model.eval()(**inputs).logits


def lora_pool(folder, architecture="llama", ends=LINEAR, count=2, rank=2):
    """A base with `count` LoRA adapters `a0`, `a1`, ..."""
    tiny_model(folder / "base", architecture)
    info = Folder(folder / "base").info
    modules = [name.removesuffix(".weight") for name in info if name.endswith(ends)]
    experts = {}
    for k in range(count):
        tensors = {}
        for i, module in enumerate(modules):
            tensors |= factors(module, rank, shape=info[f"{module}.weight"].shape, seed=100 * k + 2 * i)
        experts[f"a{k}"] = write_adapter(folder / f"a{k}", {key: 0.2 * tensor for key, tensor in tensors.items()})
    return Pool(folder / "base", experts)


def tuned(folder, architecture, change, seed=7):
    """A base, and a copy whose tensors `change(name, tensor, noise)` gives."""
    base = tiny_model(folder / "base", architecture)
    tuned = tiny_model(folder / "tuned", architecture)
    tensors = load_file(tuned / "model.safetensors")
    changed = {
        name: change(name, tensor, 0.1 * draw(*tensor.shape, seed=seed + i)) if tensor.is_floating_point() else tensor
        for i, (name, tensor) in enumerate(tensors.items())
    }
    save_file(changed, tuned / "model.safetensors", metadata={"format": "pt"})
    return Pool(base, {"tuned": tuned})


def loaded(folder, adapter, architecture):
    peft = pytest.importorskip("peft")
    return peft.PeftModel.from_pretrained(auto(architecture).from_pretrained(folder), adapter)


RECIPES = {
    "one": (expert("a0"), 2),
    "sum": (merge("task_arithmetic", ["a0", "a1"], {"lambda": 0.7}), 4),
    "mean": (merge("linear", ["a0", "a1"], {"weight": {"per": ["expert"], "values": {"a0": 0.8, "a1": 0.2}}}), 4),
    "nested": (merge("task_arithmetic", ["a0", merge("linear", ["a0", "a1"])], {"lambda": 0.5}), 4),
    "left out": (
        merge("task_arithmetic", ["a0", "a1"], {"weight": {"per": ["expert"], "values": {"a0": 1, "a1": 0}}}),
        2,
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_weighted_sum_of_adapters_is_exact_by_their_factors_side_by_side(tmp_path, name):
    recipe, rank = RECIPES[name]
    pool = lora_pool(tmp_path)
    extraction = export_adapter(recipe, pool, tmp_path / "out")
    assert extraction.total.exact == extraction.total.matrices == 4
    assert (extraction.total.rank, extraction.total.lost) == (rank, 0)
    export(recipe, pool, tmp_path / "whole")
    whole = auto("llama").from_pretrained(tmp_path / "whole")
    peft = loaded(tmp_path / "base", tmp_path / "out", "llama")
    expected = logits(whole, "llama")
    torch.testing.assert_close(logits(peft, "llama"), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(peft.merge_and_unload(), "llama"), expected, rtol=1e-4, atol=1e-4)
    again = Pool(tmp_path / "base", {"out": tmp_path / "out"}).experts["out"]
    merged = Builder(pool).build(recipe)
    for tensor in again.info:
        torch.testing.assert_close(again.tensor(tensor), merged.tensor(tensor).float(), rtol=0, atol=1e-6)


def test_rank_below_the_sum_of_ranks_is_the_best_approximation(tmp_path):
    pool = lora_pool(tmp_path, count=3)
    recipe = merge("task_arithmetic", list(pool.experts))
    extraction = export_adapter(recipe, pool, tmp_path / "out", rank=4)
    merged, lost, total = Builder(pool).build(recipe), 0.0, 0.0
    cut = Pool(tmp_path / "base", {"out": tmp_path / "out"}).experts["out"]
    for name in cut.changed:
        base = pool.base.tensor(name)
        sigma = torch.linalg.svdvals((merged.tensor(name) - base).double())
        error = torch.linalg.norm((cut.tensor(name) - merged.tensor(name)).double())
        assert error == pytest.approx(float(sigma[4:].square().sum()) ** 0.5, rel=1e-4, abs=1e-5)  # Eckart and Young
        lost, total = lost + float(sigma[4:].square().sum()), total + float(sigma.square().sum())
    assert extraction.total.share_lost == pytest.approx(lost / total, rel=1e-3)
    assert extraction.total.rank == 4
    assert not extraction.total.exact
    assert export_adapter(recipe, pool, None, rank=6).total.exact == len(cut.changed)  # room for all side by side


def test_merge_that_is_no_weighted_sum_needs_a_rank(tmp_path):
    pool = lora_pool(tmp_path)
    recipe = merge("ties", ["a0", "a1"], {"density": 0.3})
    with pytest.raises(
        RecipeError, match=r"the change of `.*weight` is no weighted sum of LoRA adapters .* `--rank R`"
    ):
        export_adapter(recipe, pool, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    extraction = export_adapter(recipe, pool, tmp_path / "out", rank=16)  # the models' width
    assert extraction.total.share_lost < 1e-10
    export(recipe, pool, tmp_path / "whole")
    expected = logits(auto("llama").from_pretrained(tmp_path / "whole"), "llama")
    torch.testing.assert_close(
        logits(loaded(tmp_path / "base", tmp_path / "out", "llama"), "llama"), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "llama_tied", "bert", "gemma"])
def test_expert_that_changed_in_all_tensors_is_an_adapter_of_full_rank(tmp_path, architecture):
    pool = tuned(tmp_path, architecture, lambda name, tensor, noise: tensor + noise)
    extraction = export_adapter(expert("tuned"), pool, tmp_path / "out", rank=99)
    assert extraction.total.share_lost < 1e-10
    peft = loaded(tmp_path / "base", tmp_path / "out", architecture)
    expected = logits(auto(architecture).from_pretrained(tmp_path / "tuned"), architecture)
    assert not torch.allclose(
        logits(auto(architecture).from_pretrained(tmp_path / "base"), architecture), expected, atol=0.1
    )
    torch.testing.assert_close(logits(peft, architecture), expected, rtol=1e-4, atol=1e-4)
    again = Pool(tmp_path / "base", {"out": tmp_path / "out"})
    for name in again.merged:
        torch.testing.assert_close(
            again.experts["out"].tensor(name), pool.experts["tuned"].tensor(name), rtol=0, atol=1e-5
        )


def test_parameters_of_their_own_are_saved_with_the_module_that_holds_them(tmp_path):
    pool = tuned(tmp_path, "vit", lambda name, tensor, noise: tensor + noise)
    extraction = export_adapter(expert("tuned"), pool, tmp_path / "out", rank=99)
    assert "vit.embeddings" in extraction.complete
    expected = logits(auto("vit").from_pretrained(tmp_path / "tuned"), "vit")
    torch.testing.assert_close(
        logits(loaded(tmp_path / "base", tmp_path / "out", "vit"), "vit"), expected, rtol=1e-4, atol=1e-4
    )


def test_packed_experts_are_refused_by_name(tmp_path):
    pool = tuned(tmp_path, "mixtral", lambda name, tensor, noise: tensor + noise)
    with pytest.raises(
        CheckpointError, match=r"`.*experts.*` fills a part of a larger parameter .* complete checkpoint"
    ):
        export_adapter(expert("tuned"), pool, tmp_path / "out", rank=4)


def test_energy_is_reached_by_the_least_rank(tmp_path):
    pool = tuned(tmp_path, "llama", lambda name, tensor, noise: tensor + noise * name.endswith(LINEAR))
    export_adapter(expert("tuned"), pool, tmp_path / "out", share=0.9)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    for name, tensor in load_file(tmp_path / "out" / "adapter_model.safetensors").items():
        if not name.endswith("lora_A.weight"):
            continue
        weight = name.removeprefix("base_model.model.").replace("lora_A.", "")
        change = pool.experts["tuned"].tensor(weight) - pool.base.tensor(weight)
        squares = torch.linalg.svdvals(change.double()).square()
        rank = len(tensor)
        assert squares[:rank].sum() >= 0.9 * squares.sum() > squares[: rank - 1].sum()
    assert sorted(config["target_modules"]) == ["down_proj", "q_proj"]
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert set(config["rank_pattern"].values()) - {config["r"]} == set(config["rank_pattern"].values())


def test_command_prints_the_loss_writes_the_folder_and_remakes_the_model(tmp_path):
    pool = tuned(tmp_path, "llama", lambda name, tensor, noise: tensor + noise)
    base, model = pool.base.path, pool.experts["tuned"].path
    said = evomerge("extract-lora", base, model, "--rank", "4", "-o", tmp_path / "out").stdout
    assert all(word in said for word in ("attention", "mlp", "energy lost", "modules_to_save"))
    data = json.loads(evomerge("extract-lora", base, model, "--rank", "4", "--json").stdout)
    assert 0 < data["all"]["lost"] < 1
    assert data["all"]["rank"] == 4
    recipe = strict_yaml.read(tmp_path / "out" / "recipe.yaml")
    assert Recipe.parse(recipe["recipe"]) == expert("model")
    evomerge("merge", tmp_path / "out" / "recipe.yaml", "-o", tmp_path / "again")
    assert Folder(tmp_path / "again").info == pool.base.info


def test_wrong_options_say_what_to_type(tmp_path):
    pool = lora_pool(tmp_path)
    file = tmp_path / "recipe.yaml"
    file.write_text(strict_yaml.text({"recipe": merge("linear", ["a0", "a1"]).data}))
    named = ["--base", pool.base.path, *(f"--expert={name}={one.path}" for name, one in pool.experts.items())]
    say = evomerge("merge", file, *named, "-o", tmp_path / "out", "--rank", "3", code=2)
    assert "add `--as-adapter`" in say.stdout + say.stderr
    say = evomerge(
        "merge", file, *named, "-o", tmp_path / "out", "--as-adapter", "--rank", "3", "--energy", "0.9", code=2
    )
    assert "give one of them" in say.stdout + say.stderr
    assert "adapter of" in evomerge("merge", file, *named, "-o", tmp_path / "out", "--as-adapter").stdout
    base, out = pool.base.path, tmp_path / "extracted"
    say = evomerge("extract-lora", base, base, "--rank", "2", "-o", out, code=2)
    assert "nothing for a LoRA adapter" in say.stdout + say.stderr
    say = evomerge("extract-lora", base, base, "-o", out, code=2)
    assert "which rank?" in say.stdout + say.stderr


def test_stack_is_refused(tmp_path):
    pool = lora_pool(tmp_path)
    stack = Recipe.parse({"stack": {"slots": [{"source": "a0", "layer": 0}], "rest": "base"}})
    with pytest.raises(RecipeError, match="a stack has layers of its own"):
        export_adapter(stack, pool, tmp_path / "out", rank=2)


def test_modules_whose_names_end_as_a_complete_one_are_complete_too_since_peft_replaces_them(tmp_path):
    folders = [tiny_model(tmp_path / name, "llama", auto="AutoModel") for name in ("base", "tuned")]
    tensors = load_file(folders[1] / "model.safetensors")
    tensors["norm.weight"] += 0.3
    tensors["layers.0.self_attn.q_proj.weight"] += 0.3 * draw(
        *tensors["layers.0.self_attn.q_proj.weight"].shape, seed=1
    )
    save_file(tensors, folders[1] / "model.safetensors", {"format": "pt"})
    export_adapter(expert("tuned"), Pool(folders[0], {"tuned": folders[1]}), tmp_path / "out", rank=16)
    peft = pytest.importorskip("peft")
    base, tuned = (transformers.AutoModel.from_pretrained(folder) for folder in folders)
    states = [
        model.eval()(input_ids=IDS).last_hidden_state.detach()
        for model in (tuned, peft.PeftModel.from_pretrained(base, tmp_path / "out"))
    ]
    torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-4)


def test_modules_named_by_numbers_are_told_from_blocks_of_that_number(tmp_path):
    """The head of a ResNet is `classifier.1`, and so end the names of blocks."""
    peft = pytest.importorskip("peft")
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic")
    for seed, name in enumerate(("base", "tuned")):
        torch.manual_seed(seed)
        transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / name)
    pool = Pool(tmp_path / "base", {"tuned": tmp_path / "tuned"})
    export_adapter(expert("tuned"), pool, tmp_path / "out", rank=16)
    base, tuned = (
        transformers.ResNetForImageClassification.from_pretrained(tmp_path / name) for name in ("base", "tuned")
    )
    pixels = draw(2, 3, 32, 32, seed=2)
    with torch.no_grad():
        expected = tuned.eval()(pixels).logits
        came = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()(pixels).logits
    torch.testing.assert_close(came, expected, rtol=1e-4, atol=1e-4)


def test_complete_tensor_that_overflows_the_dtype_of_the_base_is_refused(tmp_path):
    for name, size in (("base", 1.0), ("tuned", 4e4)):
        tiny_model(tmp_path / name, "llama")
        tensors = {key: tensor.half() for key, tensor in load_file(tmp_path / name / "model.safetensors").items()}
        tensors["model.norm.weight"].fill_(size)
        tensors["model.layers.0.self_attn.q_proj.weight"] *= 1 + (size > 1)
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
    pool = Pool(tmp_path / "base", {"tuned": tmp_path / "tuned"})
    with pytest.raises(CheckpointError, match=r"norm.weight` .* holds NaN or infinity in torch.float16"):
        export_adapter(merge("task_arithmetic", ["tuned"], {"lambda": 2.0}), pool, tmp_path / "out", rank=16)
    assert not (tmp_path / "out").exists()


def test_experts_with_tokens_of_their_own_are_an_adapter_where_merges_have_the_bases_tokens(tmp_path):
    base = write_base(tmp_path / "base", "llama", "byte_level")
    write_expert(tmp_path / "a", base, 1, "<x>", "<a>")
    pool = Pool(base, {"a": tmp_path / "a"}, tokenizer=TokenizerChoice(source="base"))
    recipe = merge("task_arithmetic", ["a"], {"lambda": 0.5})
    export(recipe, pool, tmp_path / "whole")
    export_adapter(recipe, pool, tmp_path / "out", rank=16)
    expected = logits(auto("llama").from_pretrained(tmp_path / "whole"), "llama")
    assert not torch.allclose(logits(auto("llama").from_pretrained(base), "llama"), expected, atol=1e-2)
    torch.testing.assert_close(logits(loaded(base, tmp_path / "out", "llama"), "llama"), expected, rtol=1e-4, atol=1e-4)
    union = Pool(base, {"a": tmp_path / "a"}, tokenizer=TokenizerChoice())
    with pytest.raises(CheckpointError, match=r"rows of tokens .* `tokenizer: base`"):
        export_adapter(recipe, union, tmp_path / "more", rank=16)
