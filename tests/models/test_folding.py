"""A stack's scales are put into its weights only where the model stays the same, and it is said why where not."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TINY, tiny_model

from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.stack import Stacked, StackedLayer
from evomerge.models import LiveModel
from evomerge.models.blocks import find_blocks
from evomerge.models.folding import TOLERANCE, Change, fold, folded
from evomerge.recipe import Recipe

LAYERS = [("a", 0), ("b", 2), ("b", 2), ("base", 1), ("a", 2)]
POWERS = (2.0, 1.0, 0.5, 0.25, 8.0)
OTHERS = (1.3, 0.7, 1.0, 1.1, 0.9)
SIGNED = (1.0, -0.7, 1.2, -1.5, -1.0)
EPSILON = {"gpt2": "layer_norm_epsilon", "bert": "layer_norm_eps", "vit": "layer_norm_eps"}


class World:
    """A base, two experts and a live model, whose norms have the given ε; the files may be in bfloat16."""

    def __init__(self, folder, architecture, epsilon=1e-12, dtype=torch.float32):
        layers = {"n_layer" if architecture == "gpt2" else "num_hidden_layers": 3}
        epsilon = {EPSILON.get(architecture, "rms_norm_eps"): epsilon}
        for seed, name in enumerate(("base", "a", "b")):
            file = tiny_model(folder / name, architecture, seed, **layers, **epsilon) / "model.safetensors"
            save_file({key: tensor.to(dtype) for key, tensor in load_file(file).items()}, file)
        self.architecture = architecture
        self.builder = Builder(Pool(folder / "base", {name: folder / name for name in "ab"}))
        self.live = LiveModel(folder / "base")

    def stack(self, scales, layers=LAYERS):
        slots = [
            {"source": source, "layer": layer, "scale": scale}
            for (source, layer), scale in zip(layers, scales, strict=True)
        ]
        return self.builder.build(Recipe.parse({"stack": {"slots": slots, "rest": "a"}}))

    def fold(self, scales, layers=LAYERS):
        return fold(self.live, self.stack(scales, layers))

    def logits(self, checkpoint):
        """Return outputs on inputs that folding has not seen."""
        self.live.refit(checkpoint)
        generator = torch.Generator().manual_seed(7)
        if self.architecture == "vit":
            return self.live.module(pixel_values=torch.randn(5, 1, 4, 4, generator=generator)).logits
        return self.live.module(input_ids=torch.randint(3, 99, (5, 9), generator=generator)).logits


@pytest.mark.parametrize("architecture", TINY)
def test_folded_stack_is_the_stack_up_to_rounding(architecture, tmp_path):
    world = World(tmp_path, architecture)
    for scales in (POWERS, OTHERS, SIGNED):
        folding = world.fold(scales)
        assert folding.difference <= TOLERANCE
        assert folding.stored == folding.difference, "fp32 is stored as it is"
        assert all(layer.scale == 1 for layer in folding.stack.layers)
        wanted = world.logits(world.stack(scales))
        assert (world.logits(folding.stack) - wanted).abs().max() <= TOLERANCE * wanted.abs().max()
        unscaled = world.logits(world.stack([1.0] * len(LAYERS)))
        assert (unscaled - wanted).abs().max() > 100 * TOLERANCE * wanted.abs().max(), "the scales do matter"


@pytest.mark.parametrize("architecture", ["vit", "gpt2", "gemma", "mixtral"])
def test_powers_of_two_are_exact_where_blocks_add_to_the_stream(architecture, tmp_path):
    assert World(tmp_path, architecture, 1e-30).fold(POWERS).difference == 0


def test_only_weights_at_the_residual_stream_are_changed(tmp_path):
    world = World(tmp_path, "llama")
    scales = (1.0, -2.0, 1.0, 1.0, -1.0)
    stack = world.stack(scales)
    folded = world.fold(scales).stack
    changed = {name for name in stack.info if not torch.equal(stack.tensor(name), folded.tensor(name))}
    writers = {f"model.layers.{i}.{part}.weight" for i in range(1, 5) for part in ("self_attn.o_proj", "mlp.down_proj")}
    readers = {
        f"model.layers.{i}.{part}.weight" for i in (1, 2, 3) for part in ("input_layernorm", "post_attention_layernorm")
    }
    assert changed == writers | readers
    down = "model.layers.4.mlp.down_proj.weight"
    assert torch.equal(folded.tensor(down), stack.tensor(down) / 2)
    assert folded.info == stack.info


def test_norm_that_replaces_the_stream_takes_the_next_scale(tmp_path):
    world = World(tmp_path, "bert")
    scales = (3.0, 1.0, 1.0, 0.0, 1.0)
    stack, folded = world.stack(scales), world.fold(scales).stack
    for norm, factor in (("embeddings.LayerNorm", 3), ("encoder.layer.2.output.LayerNorm", 0)):
        for name in (f"bert.{norm}.weight", f"bert.{norm}.bias"):
            assert torch.equal(folded.tensor(name), stack.tensor(name) * factor)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_epsilon_that_matters_prevents_folding(architecture, tmp_path):
    folding = World(tmp_path, architecture, 1e-2).fold(POWERS)
    assert folding.stack is None
    assert folding.difference > TOLERANCE
    assert "more than rounding does" in folding.why


def test_stream_that_is_multiplied_by_zero_cannot_be_divided_by_it(tmp_path):
    folding = World(tmp_path, "llama").fold((1.0, 0.0, 1.0, 1.0, 1.0))
    assert folding.stack is None
    assert "scale of 0" in folding.why


def test_unknown_inputs_prevent_folding(tmp_path):
    world = World(tmp_path, "llama")
    world.live.module.main_input_name = "input_values"
    assert "`input_values`" in world.fold(POWERS).why


def test_tied_tensors_that_would_differ_prevent_folding(tmp_path):
    world = World(tmp_path, "llama")
    world.live._twins["model.layers.0.self_attn.o_proj.weight"] = "model.layers.1.self_attn.o_proj.weight"
    alike = [("a", 0)] * len(LAYERS)
    assert "tied" in world.fold((1.0, 3.0, 1.0, 1.0, 1.0), alike).why


def test_storage_in_bfloat16_rounds_once_and_is_told_apart(tmp_path):
    world = World(tmp_path, "llama", dtype=torch.bfloat16)
    exact, rounded = world.fold(POWERS), world.fold(OTHERS)
    assert exact.stored == exact.difference <= TOLERANCE
    assert rounded.difference <= TOLERANCE < rounded.stored < 0.1
    assert {entry.dtype for entry in rounded.stack.info.values()} == {torch.bfloat16}
    name = "model.layers.0.self_attn.o_proj.weight"
    stored = world.stack(OTHERS).tensor(name)
    assert torch.equal(rounded.stack.tensor(name), (stored.float() * (1 / 1.3)).bfloat16())


def test_model_shows_anything_after_folding(tmp_path):
    world = World(tmp_path, "qwen3")
    stack = world.stack(SIGNED)
    before = world.logits(stack)
    world.fold(SIGNED)
    assert torch.equal(world.logits(stack), before)
    assert not world.live.module._forward_hooks
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in find_blocks(world.live.module).modules())


def test_change_includes_the_offset_that_the_model_adds_to_its_weight(tmp_path):
    source = Builder(
        Pool(tiny_model(tmp_path / "base", "gemma"), {"a": tiny_model(tmp_path / "a", "gemma", 1)})
    ).pool.base
    name = "model.norm.weight"
    weight = source.tensor(name)
    changed = folded(source, {name: Change(-2.0, 1.0)})
    assert torch.equal(changed.tensor(name), (weight + 1) * -2 - 1)
    out = torch.empty_like(weight)
    changed.write(name, out)
    assert torch.equal(out, changed.tensor(name))
    assert changed.tensor("model.embed_tokens.weight") is source.tensor("model.embed_tokens.weight")
    prefix = "model.layers"
    assert (
        Stacked([StackedLayer(changed, "folded", 0)], changed, "folded", prefix)
        .tensor(name)
        .equal(changed.tensor(name))
    )
