"""A candidate written in place is the model that transformers would load from disk, for any architecture."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TINY, tiny_model

from evomerge import recipe
from evomerge.build import Builder
from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.save import save
from evomerge.errors import CheckpointError, ModelError
from evomerge.models import LiveModel
from evomerge.models.blocks import find_blocks
from evomerge.models.pretrained import load_model, new_model, save_model


def inputs(architecture):
    if architecture == "vit":
        return {"pixel_values": torch.linspace(-1, 1, 32).view(2, 1, 4, 4)}
    return {"input_ids": torch.tensor([[1, 40, 50, 60, 70], [1, 9, 98, 3, 2]])}


@torch.inference_mode()
def outputs(module, architecture):
    output = module(**inputs(architecture))
    return output.logits if "logits" in output else output.last_hidden_state


def perturbed(base, folder, dtype=None, seed=5):
    """Write a copy of the checkpoint in `base` with other weights, and return its folder."""
    torch.manual_seed(seed)
    folder.mkdir()
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    tensors = {
        name: tensor + 0.1 * torch.randn(tensor.shape) for name, tensor in load_file(base / "model.safetensors").items()
    }
    tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("architecture", TINY)
def test_candidate_written_in_place_is_the_one_loaded_from_disk(architecture, tmp_path):
    base = tiny_model(tmp_path / "base", architecture)
    candidate = perturbed(base, tmp_path / "candidate")
    live = LiveModel(base)
    parameters = [(parameter, parameter.data_ptr()) for parameter in live.module.parameters()]
    before = outputs(live.module, architecture)
    auto = TINY[architecture][1]
    assert torch.equal(before, outputs(load_model(base, auto), architecture))
    live.refit(Folder(candidate))
    after = outputs(live.module, architecture)
    assert torch.equal(after, outputs(load_model(candidate, auto), architecture))
    assert not torch.equal(before, after)
    live.refit(Folder(base))
    assert torch.equal(outputs(live.module, architecture), before)
    for parameter, (same, address) in zip(live.module.parameters(), parameters, strict=True):
        assert parameter is same
        assert parameter.data_ptr() == address
        assert not parameter.requires_grad
    assert not live.module.training
    assert live.unused == ()


@pytest.mark.parametrize("architecture", TINY)
def test_find_blocks_works_for_every_architecture(architecture, tmp_path):
    live = LiveModel(tiny_model(tmp_path, architecture))
    assert len(find_blocks(live.module)) == 2
    assert len({type(block) for block in find_blocks(live.module)}) == 1
    inside = sum(parameter.numel() for parameter in find_blocks(live.module).parameters())
    assert 0 < inside < sum(parameter.numel() for parameter in live.module.parameters())


def test_tied_parameters_stay_one(tmp_path):
    live = LiveModel(tiny_model(tmp_path / "base", "llama_tied"))
    live.refit(Folder(perturbed(tmp_path / "base", tmp_path / "candidate")))
    assert live.module.lm_head.weight.data_ptr() == live.module.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama_tied", "mixtral", "vit"])
def test_merge_in_memory_is_the_merge_on_disk(architecture, precision, tmp_path):
    """Stored in bf16, computed in either precision: a merge is rounded for storage before it is cast to compute."""
    plain = tiny_model(tmp_path / "plain", architecture)
    base = perturbed(plain, tmp_path / "base", torch.bfloat16)
    experts = {"one": perturbed(plain, tmp_path / "one", torch.bfloat16, seed=1)}
    experts["other"] = perturbed(plain, tmp_path / "other", torch.bfloat16, seed=2)
    merged = Builder(Pool(base, experts)).build(
        recipe.merge("task_arithmetic", ["one", "other"], {"weight": 0.3, "lambda": 1.0})
    )
    save(merged, tmp_path / "saved", like=base)
    live = LiveModel(base, precision=precision)
    live.refit(merged)
    loaded = load_model(tmp_path / "saved", TINY[architecture][1], dtype=getattr(torch, precision))
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == getattr(torch, precision)
        assert torch.equal(live.module.state_dict()[name], tensor), name


def test_tied_pair_that_differs_gets_memory_of_its_own(tmp_path):
    base = tiny_model(tmp_path / "base", "llama_tied")
    both = {"lm_head.weight": load_file(base / "model.safetensors")["model.embed_tokens.weight"].clone()}
    rewrite(base, lambda tensors: {**tensors, **both})
    live = LiveModel(base)
    assert live.unused == ()
    candidate = perturbed(base, tmp_path / "candidate")
    live.refit(Folder(candidate))
    apart = outputs(load_model(candidate, "AutoModelForCausalLM"), "llama")
    assert torch.equal(outputs(live.module, "llama"), apart)
    rewrite(candidate, lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    live.refit(Folder(candidate))
    expected = outputs(load_model(candidate, "AutoModelForCausalLM"), "llama")
    assert torch.equal(outputs(live.module, "llama"), expected)


def test_class_comes_from_auto_where_it_is_given(tmp_path):
    base = tiny_model(tmp_path / "base", "bert")
    live = LiveModel(base, "AutoModel")
    assert type(live.module).__name__ == "BertModel"
    assert live.unused == ("classifier.bias", "classifier.weight")
    candidate = perturbed(base, tmp_path / "candidate")
    live.refit(Folder(candidate))
    assert torch.equal(outputs(live.module, "bert"), outputs(load_model(candidate), "bert"))


def test_model_without_architectures_is_taken_without_head(tmp_path):
    base = tiny_model(tmp_path, "llama")
    config = json.loads((base / "config.json").read_text())
    del config["architectures"]
    (base / "config.json").write_text(json.dumps(config))
    live = LiveModel(base)
    assert type(live.module).__name__ == "LlamaModel"
    assert live.unused == ("lm_head.weight",)


def test_pooler_without_weights_is_left_out(tmp_path):
    base = tiny_model(tmp_path, "bert", auto="AutoModel")
    rewrite(base, lambda tensors: {name: t for name, t in tensors.items() if "pooler" not in name})
    live = LiveModel(base)
    assert live.module.pooler is None
    assert not live.unused


def rewrite(folder, change):
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_tensor_is_an_error_and_not_random(tmp_path):
    base = tiny_model(tmp_path, "llama")
    rewrite(base, lambda tensors: {n: t for n, t in tensors.items() if n != "model.layers.1.mlp.up_proj.weight"})
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*would be random"):
        LiveModel(base)


def test_missing_part_of_a_fused_tensor_is_an_error(tmp_path):
    base = tiny_model(tmp_path, "mixtral")
    gone = "model.layers.1.block_sparse_moe.experts.1.w3.weight"
    rewrite(base, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != gone})
    with pytest.raises(ModelError, match="gate_up_proj"):
        LiveModel(base)


def test_tensor_that_a_block_does_not_know_is_an_error(tmp_path):
    base = tiny_model(tmp_path, "llama")
    rewrite(base, lambda tensors: {**tensors, "model.layers.0.mlp.gate_scale.weight": torch.ones(3)})
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.gate_scale\.weight.*no place"):
        LiveModel(base)


def test_other_shape_than_the_configuration_says_is_an_error(tmp_path):
    base = tiny_model(tmp_path, "llama")
    rewrite(base, lambda tensors: {**tensors, "model.norm.weight": torch.ones(17)})
    with pytest.raises(ModelError, match=r"shape \[16\] for `model\.norm\.weight`, got \[17\]"):
        LiveModel(base)


def test_candidate_that_differs_from_the_base_is_an_error(tmp_path):
    live = LiveModel(tiny_model(tmp_path / "base", "llama"))
    before = live.module.model.norm.weight.clone()
    other = tiny_model(tmp_path / "other", "llama", intermediate_size=32)
    with pytest.raises(ModelError, match=r"down_proj\.weight.*shape \[16, 32\]; expected shape \[16, 24\]"):
        live.refit(Folder(other))
    fewer = tiny_model(tmp_path / "fewer", "llama", num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"layers\.1\..*missing"):
        live.refit(Folder(fewer))
    assert torch.equal(live.module.model.norm.weight, before)


def test_encoder_decoder_is_refused_for_its_two_stacks(tmp_path):
    torch.manual_seed(0)
    config = {
        "model_type": "t5",
        "vocab_size": 32,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 2,
    }
    save_model(new_model(config, "AutoModelForSeq2SeqLM"), tmp_path)
    live = LiveModel(tmp_path)
    live.refit(Folder(tmp_path))
    with pytest.raises(ModelError, match=r"`decoder\.block` \(2 blocks.*`encoder\.block` \(2 blocks"):
        find_blocks(live.module)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("auto_map", {"AutoModel": "modeling.Model"}, "needs the folder's code"),
        ("quantization_config", {"quant_method": "gptq"}, "quantised"),
        ("model_type", "lama", "not the configuration"),
        ("architectures", ["LamaForCausalLM"], "`LamaForCausalLM`, which is no model"),
        ("architectures", ["AutoConfig"], "which is no model"),
    ],
)
def test_configuration_that_cannot_be_used_is_refused(key, value, says, tmp_path):
    base = tiny_model(tmp_path, "llama")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ModelError, match=says):
        LiveModel(base)


def test_unknown_auto_is_refused(tmp_path):
    base = tiny_model(tmp_path, "vit")
    with pytest.raises(ModelError, match="AutoModelForCausalLM"):
        LiveModel(base, "AutoModelForCausalML")
    with pytest.raises(ModelError, match="no class for a model of type `vit`"):
        LiveModel(base, "AutoModelForCausalLM")


def test_precision_is_checked(tmp_path):
    with pytest.raises(ModelError, match="one of float32, bfloat16"):
        LiveModel(tmp_path, precision="float8")


def test_missing_folder_is_not_looked_for_on_a_hub(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        LiveModel(tmp_path / "org" / "model")


def test_making_a_model_leaves_generator_and_streams_alone(tmp_path, capfd):
    base = tiny_model(tmp_path, "llama")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    LiveModel(base, "AutoModel")
    assert torch.equal(torch.rand(2), expected)
    assert capfd.readouterr() == ("", "")


def test_generation_config_that_is_no_object_is_one_error(tmp_path):
    live = LiveModel(tiny_model(tmp_path, "llama"))
    (tmp_path / "generation_config.json").write_text("[2]", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"generation_config\.json: expected a JSON object, got list"):
        _ = live.end_tokens
