"""Layout: blocks and kinds are inferred from names and shapes."""

import pytest
import torch

from evomerge.checkpoints.header import TensorInfo
from evomerge.checkpoints.layout import Layout, block_number
from evomerge.errors import RecipeError
from evomerge.recipe import Place
from evomerge.recipe.tiling import Tiled


def layout(*names, shape=(2, 2), config=None):
    info = {
        name: TensorInfo(shape if not name.endswith(("bias", "norm.weight")) else (2,), torch.float32) for name in names
    }
    return Layout(info, config)


CASES = {
    "bert": (
        "bert.encoder.layer.{}.attention.self.query.weight",
        "bert.encoder.layer.{}.attention.output.dense.weight",
        "bert.encoder.layer.{}.intermediate.dense.weight",
        "bert.encoder.layer.{}.output.LayerNorm.weight",
    ),
    "gpt2": ("h.{}.attn.c_attn.weight", "h.{}.attn.c_proj.weight", "h.{}.mlp.c_fc.weight", "h.{}.ln_1.weight"),
    "llama": (
        "model.layers.{}.self_attn.q_proj.weight",
        "model.layers.{}.self_attn.o_proj.weight",
        "model.layers.{}.mlp.up_proj.weight",
        "model.layers.{}.input_layernorm.weight",
    ),
    "vit": (
        "vit.encoder.layer.{}.attention.attention.key.weight",
        "vit.encoder.layer.{}.attention.output.dense.weight",
        "vit.encoder.layer.{}.output.dense.weight",
        "vit.encoder.layer.{}.layernorm_before.weight",
    ),
    "mixtral": (
        "model.layers.{}.self_attn.v_proj.weight",
        "model.layers.{}.self_attn.o_proj.weight",
        "model.layers.{}.block_sparse_moe.experts.3.w1.weight",
        "model.layers.{}.post_attention_layernorm.weight",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_blocks_and_kinds_are_inferred_from_names(case):
    names = [pattern.format(block) for block in range(12) for pattern in CASES[case]]
    parsed = layout(*names)
    assert parsed.blocks == 12
    for block in (0, 7, 11):
        names = [pattern.format(block) for pattern in CASES[case]]
        kinds = ("attention", "attention", "mlp", "norm")
        expected = [Place(block, 12, kind, tensor=name) for kind, name in zip(kinds, names, strict=True)]
        assert [parsed.place(name) for name in names] == expected
    assert parsed.kinds == ("attention", "mlp", "norm")


def test_tensors_outside_of_the_stack_belong_to_its_nearer_end():
    parsed = layout(
        "model.embed_tokens.weight",
        "embeddings.LayerNorm.weight",
        "model.layers.0.mlp.weight",
        "model.layers.1.mlp.weight",
        "model.norm.weight",
        "lm_head.weight",
    )

    def place(name):
        found = parsed.place(name)
        assert (found.inside, found.tensor) == (False, name)
        return found.block, found.blocks, found.kind

    assert place("model.embed_tokens.weight") == (0, 2, "embedding")
    assert place("embeddings.LayerNorm.weight") == (0, 2, "norm")
    assert place("model.norm.weight") == (1, 2, "norm")
    assert place("lm_head.weight") == (1, 2, "head")
    assert block_number("lm_head.weight", parsed.prefix) is None


def test_the_largest_stack_is_used_and_a_stack_has_no_gaps():
    assert layout("tower.0.w", "tower.1.w", "tower.2.w", "stem.0.w", "stem.1.w").prefix == "tower"
    assert layout("layers.0.w", "layers.2.w").blocks == 1
    assert layout("0.weight", "1.weight").prefix == ""
    assert layout("weight").blocks == 1


T5 = ("layer.0.SelfAttention.q.weight", "layer.1.DenseReluDense.wi.weight", "layer.0.layer_norm.weight")
LLAMA = ("self_attn.q_proj.weight", "mlp.up_proj.weight", "input_layernorm.weight")


def blocks(prefix, count, inner=LLAMA):
    return [f"{prefix}.{i}.{name}" for i in range(count) for name in inner]


def test_each_stack_has_its_own_blocks_and_kinds():
    decoder, encoder = (
        blocks("decoder.block", 4, (*T5, "layer.1.EncDecAttention.q.weight")),
        blocks("encoder.block", 2, T5),
    )
    parsed = layout(*encoder, *decoder, "encoder.final_layer_norm.weight", "shared.weight")
    assert (parsed.prefix, parsed.blocks, parsed.stacks) == (
        "decoder.block",
        4,
        {"encoder.block": 2, "decoder.block": 4},
    )
    name = "encoder.block.1.layer.1.DenseReluDense.wi.weight"
    assert parsed.place(name) == Place(1, 2, "mlp", tensor=name, model=4)
    kinds = [parsed.place(f"encoder.block.0.{name}").kind for name in T5]
    assert kinds == ["attention", "mlp", "norm"]
    assert parsed.place(decoder[0]) == Place(0, 4, "attention", tensor=decoder[0])
    assert not parsed.place("encoder.final_layer_norm.weight").inside


@pytest.mark.parametrize(("block", "entry"), [(0, "first"), (1, "third")])
def test_smaller_stack_takes_groups_of_blocks_by_relative_depth(block, entry):
    parsed = layout(*blocks("text.layers", 8), *blocks("vision.layers", 2))
    table = Tiled(per=("block/4",), values=["first", "second", "third", "fourth"])
    assert table.at(parsed.place(f"vision.layers.{block}.mlp.up_proj.weight"), None) == entry
    with pytest.raises(RecipeError, match="9 groups, but the model has"):
        Tiled(per=("block/9",), values=[*range(9)]).at(parsed.place("vision.layers.0.mlp.up_proj.weight"), None)


def test_front_ends_and_heads_of_numbered_layers_are_no_stacks():
    parsed = layout(*blocks("layers", 3), "stem.0.weight", "stem.1.weight", "cls_head.0.weight", "cls_head.1.weight")
    assert parsed.stacks == {"layers": 3}


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"num_hidden_layers": 2}, 2),
        ({"text_config": {"num_hidden_layers": 2}}, 2),
        ({"num_hidden_layers": 3}, 3),
        ({}, 3),
        ({"num_hidden_layers": 2, "is_encoder_decoder": True}, 3),
    ],
)
def test_blocks_after_the_configured_depth_that_predict_further_tokens_are_outside(config, count):
    parsed = layout(*blocks("model.layers", 3), "model.layers.2.eh_proj.weight", config=config)
    assert parsed.blocks == count
    place = parsed.place("model.layers.2.mlp.up_proj.weight")
    assert (place.block, place.inside) == (count - 1, count == 3)
    assert layout(*blocks("model.layers", 3), config=config).blocks == 3, (
        "the same blocks, another depth: not ours to say"
    )


def test_stack_of_one_block_is_known_by_its_configured_depth():
    names = blocks("layers", 1)
    assert layout(*names).prefix is None
    parsed = layout(*names, config={"num_hidden_layers": 1})
    assert (parsed.prefix, parsed.blocks, parsed.place(names[0]).kind) == ("layers", 1, "attention")
