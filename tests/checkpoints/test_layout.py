"""Layout: blocks and kinds are inferred from names and shapes."""

import pytest
import torch

from evomerge.checkpoints.header import TensorInfo
from evomerge.checkpoints.layout import Layout, block_number
from evomerge.recipe import Place


def layout(*names, shape=(2, 2)):
    return Layout(
        {
            name: TensorInfo(shape if not name.endswith(("bias", "norm.weight")) else (2,), torch.float32)
            for name in names
        }
    )


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
