"""Models that the class loads alike are one model in a pool, whatever their files call the tensors; ties are kept or cut."""

import json

import pytest
import torch
from adapters import write_adapter
from safetensors.torch import load_file, save_file
from tiny_models import TINY, tiny_model

from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.errors import PoolError
from evomerge.models import LiveModel
from evomerge.models.pretrained import load_model, new_model, save_model
from evomerge.recipe import Recipe
from evomerge.report.export import export

ONE = Recipe.parse({"merge": {"method": "linear", "inputs": [{"expert": "a"}]}})
DARE = Recipe.parse({"merge": {"method": "dare_linear", "inputs": [{"expert": "a"}], "parameters": {"drop": 0.5}}})
IDS = torch.tensor([[1, 40, 50, 60, 70], [1, 9, 98, 3, 2]])
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
TEXT = {"vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@torch.inference_mode()
def logits(module):
    return module.eval()(input_ids=IDS).logits


def rewrite(folder, change):
    file = folder / "model.safetensors"
    tensors = change(dict(load_file(file)))
    save_file(tensors, file, {"format": "pt"})
    return folder


def merged(base, expert, recipe=ONE, auto="AutoModelForCausalLM"):
    """Return the outputs of a merge in memory, having checked that its export has the same."""
    pool = Pool(base, {"a": expert})
    live = LiveModel(base)
    live.refit(Builder(pool).build(recipe))
    out = base.parent / "out"
    export(recipe, pool, out)
    assert torch.equal(logits(load_model(out, auto)), logits(live.module))
    return logits(live.module), out


def without_prefix(tensors):
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64).tril() for i in range(2)}
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()} | masks


def with_frequencies(tensors):
    return tensors | {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}


def with_positions(tensors):
    return tensors | {"bert.embeddings.position_ids": torch.arange(64)[None]}


def with_gamma(tensors):
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, old in names.items():
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    return tensors


SPELLINGS = [("gpt2", without_prefix), ("llama", with_frequencies), ("bert", with_positions), ("bert", with_gamma)]


@pytest.mark.parametrize(("architecture", "spelling"), SPELLINGS)
@pytest.mark.parametrize("whose", ["base", "a"])
def test_files_that_are_loaded_alike_are_one_model(tmp_path, architecture, spelling, whose):
    folders = {name: tiny_model(tmp_path / name, architecture, seed) for seed, name in enumerate(("base", "a"))}
    expected = logits(load_model(folders["a"], TINY[architecture][1]))
    rewrite(folders[whose], spelling)
    outputs, _ = merged(folders["base"], folders["a"], auto=TINY[architecture][1])
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)


def test_tensor_that_the_class_of_the_expert_uses_and_the_base_lacks_is_refused(tmp_path):
    base = tiny_model(tmp_path / "base", "llama")
    expert = tiny_model(tmp_path / "a", "llama", 1, attention_bias=True)
    with pytest.raises(PoolError, match=r"q_proj\.bias`|k_proj\.bias`: shape \[8\] in the expert, missing in the base"):
        Pool(base, {"a": expert})


@pytest.mark.parametrize("whose", ["base", "a"])
def test_head_that_equals_the_embedding_may_be_stored_by_one_model_only(tmp_path, whose):
    folders = {name: tiny_model(tmp_path / name, "llama_tied", seed) for seed, name in enumerate(("base", "a"))}
    expected = logits(load_model(folders["a"], "AutoModelForCausalLM"))
    rewrite(folders[whose], lambda tensors: tensors | {HEAD: tensors[EMBEDDING].clone()})
    pool = Pool(folders["base"], {"a": folders["a"]})
    assert HEAD not in pool.merged
    outputs, out = merged(folders["base"], folders["a"])
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"]


@pytest.mark.parametrize("stored", [True, False])
def test_expert_with_a_head_of_its_own_makes_an_untied_merge(tmp_path, stored):
    base = tiny_model(tmp_path / "base", "llama_tied")
    expert = tiny_model(tmp_path / "a", "llama", 1, tie_word_embeddings=stored)
    rewrite(expert, lambda tensors: tensors | {HEAD: torch.randn(99, 16)})
    if stored:
        rewrite(base, lambda tensors: tensors | {HEAD: tensors[EMBEDDING].clone()})
    expected = logits(load_model(expert, "AutoModelForCausalLM"))
    outputs, out = merged(base, expert)
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize("target", ["embedding", "head", "both"])
def test_adapter_on_one_of_two_tied_tensors_leaves_the_other(tmp_path, target):
    base = tiny_model(tmp_path / "base", "llama_tied")
    noise = torch.randn(99, 16, generator=torch.Generator().manual_seed(3))
    names = {"embedding": [EMBEDDING], "head": [HEAD], "both": [EMBEDDING, HEAD]}[target]
    together = {"ensure_weight_tying": True} if target == "both" else {}
    write_adapter(tmp_path / "a", {f"base_model.model.{name}": noise.clone() for name in names}, **together)
    outputs, _ = merged(base, tmp_path / "a")
    model = load_model(base, "AutoModelForCausalLM")
    if target == "embedding":
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    if target != "head":
        model.model.embed_tokens.weight.data = noise
    if target != "embedding":
        model.lm_head.weight = torch.nn.Parameter(noise)
    torch.testing.assert_close(outputs, logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "auto", "first", "others"),
    [
        (
            {"model_type": "t5", "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 99},
            "AutoModelForSeq2SeqLM",
            "shared.weight",
            ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
        ),
        (
            {"model_type": "bert", **TEXT},
            "AutoModelForPreTraining",
            "cls.predictions.bias",
            ("cls.predictions.decoder.bias",),
        ),
    ],
)
def test_stored_copies_of_one_parameter_are_merged_once(tmp_path, config, auto, first, others):
    for seed, name in enumerate(("base", "a")):
        torch.manual_seed(seed)
        model = new_model(config, auto)
        for parameter in model.parameters():
            parameter.data += 0.1 * seed * torch.randn_like(parameter)
        save_model(model, tmp_path / name)
        rewrite(tmp_path / name, lambda tensors: tensors | {other: tensors[first].clone() for other in others})
    pool = Pool(tmp_path / "base", {"a": tmp_path / "a"})
    candidate = Builder(pool).build(DARE)
    assert len({first, *others} & pool.merged.keys()) == 1
    assert all(torch.equal(candidate.tensor(first), candidate.tensor(other)) for other in others)
    LiveModel(tmp_path / "base").refit(candidate)


def test_encoder_decoder_is_not_untied(tmp_path):
    config = {"model_type": "t5", "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 99}
    save_model(new_model(config, "AutoModelForSeq2SeqLM"), tmp_path / "base")
    write_adapter(tmp_path / "a", {"base_model.model.lm_head.weight": torch.randn(99, 8)})
    with pytest.raises(PoolError, match=r"an encoder-decoder cannot be written untied"):
        Pool(tmp_path / "base", {"a": tmp_path / "a"})


def test_equal_tensors_that_the_module_does_not_tie_are_merged_each(tmp_path):
    base = tiny_model(tmp_path / "base", "llama")
    q, k = (f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2))
    for folder in (base, tiny_model(tmp_path / "a", "llama", 1)):
        rewrite(folder, lambda tensors: tensors | {k: tensors[q].clone()})
    assert Pool(base, {"a": tmp_path / "a"}).aliases == {}


def test_adapter_names_modules_that_the_files_of_the_base_name_otherwise(tmp_path):
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {
        "model_type": "llava",
        "text_config": {"model_type": "llama", **TEXT},
        "vision_config": {"model_type": "clip_vision_model", **vision, "image_size": 8, "patch_size": 4},
        "image_token_index": 60,
    }
    save_model(new_model(config, "AutoModelForImageTextToText"), tmp_path / "base")
    change = torch.randn(16, 16)
    inside = "layers.1.self_attn.q_proj.weight"
    for spelling in ("model.language_model", "language_model.model"):  # today's, and that of older versions
        adapter = tmp_path / spelling
        write_adapter(adapter, {f"base_model.model.{spelling}.{inside}": change})
        pool = Pool(tmp_path / "base", {"a": adapter})
        live = LiveModel(tmp_path / "base")
        live.refit(Builder(pool).build(ONE))
        torch.testing.assert_close(live.module.state_dict()[f"model.language_model.{inside}"], change)


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("module", ["attn.c_proj", "attn.c_attn"])
def test_each_weight_is_turned_as_its_module_is_whatever_the_adapter_says_for_all(tmp_path, module, said):
    base = tiny_model(tmp_path / "base", "gpt2", tie_word_embeddings=False)
    width = {"attn.c_proj": 16, "attn.c_attn": 48}[module]
    a, b, head_a, head_b = (torch.randn(shape) for shape in ((2, 16), (width, 2), (2, 16), (99, 2)))
    inside, start = f"transformer.h.1.{module}", "base_model.model."
    tensors = {f"{inside}.lora_A": a, f"{inside}.lora_B": b, "lm_head.lora_A": head_a, "lm_head.lora_B": head_b}
    write_adapter(
        tmp_path / "a", {f"{start}{name}.weight": tensor for name, tensor in tensors.items()}, fan_in_fan_out=said
    )
    pool = Pool(base, {"a": tmp_path / "a"})
    for name, change in ((f"{inside}.weight", (b @ a).T), ("lm_head.weight", head_b @ head_a)):
        expected = pool.base.tensor(name) + 1.5 * change
        torch.testing.assert_close(pool.experts["a"].tensor(name), expected, rtol=1e-4, atol=1e-4)
