"""Quantised checkpoints are refused by what they say and hold; masks, counters and positions are no weights."""

import json

import pytest
import torch
from pools import CONFIG, write_checkpoint

from evomerge.checkpoints.pool import Pool
from evomerge.errors import PoolError

WEIGHTS = {"layers.0.norm.weight": torch.ones(4), "layers.1.norm.weight": torch.ones(4)}


def pool(folder, base, expert, config=CONFIG):
    write_checkpoint(folder / "base", base, config)
    write_checkpoint(folder / "maths", expert, config)
    return Pool(folder / "base", {"maths": folder / "maths"})


@pytest.mark.parametrize(
    ("more", "where"),
    [
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            r"`quantization_config` in config.json \(gptq\)",
        ),
        ({"compression_config": {"format": "pack"}}, "`compression_config` in config.json"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "`quantization_config` in `text_config`"),
    ],
)
def test_configuration_that_says_quantised_is_refused(more, where, tmp_path):
    with pytest.raises(PoolError, match=rf"the model is quantised, says {where}.*dequantize\(\)"):
        pool(tmp_path, WEIGHTS, WEIGHTS, CONFIG | more)


@pytest.mark.parametrize(("prefix", "wrapper"), [("_orig_mod.", "torch.compile"), ("module.", "DataParallel")])
def test_names_that_a_wrapper_gave_are_refused_though_all_models_have_them(prefix, wrapper, tmp_path):
    wrapped = {f"{prefix}{name}": tensor for name, tensor in WEIGHTS.items()}
    with pytest.raises(PoolError, match=rf"base: all tensors have the prefix `{prefix}` of {wrapper}"):
        pool(tmp_path, wrapped, wrapped, CONFIG | {"architectures": ["LlamaForCausalLM"]})


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json"])
def test_files_of_a_quantiser_beside_an_expert_are_refused(name, tmp_path):
    write_checkpoint(tmp_path / "maths", WEIGHTS)
    (tmp_path / "maths" / name).write_text(json.dumps({"bits": 4}))
    with pytest.raises(PoolError, match=rf"maths: .*`{name}` beside it"):
        pool(tmp_path, WEIGHTS, WEIGHTS)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (torch.int32, (2, 4)),
        (torch.uint8, (2, 8, 1, 16)),
        (torch.int16, (3, 2)),
        (torch.int8, (8,)),
        (torch.uint8, (64, 1)),
    ],
)
def test_packed_weights_that_differ_are_refused(dtype, shape, tmp_path):
    sides = [{**WEIGHTS, "layers.0.qweight": torch.full(shape, i, dtype=dtype)} for i in (1, 2)]
    with pytest.raises(PoolError, match=r"`layers.0.qweight` .*(differ from the base's|is quantised).*dequantize\(\)"):
        pool(tmp_path, *sides)


def test_counters_positions_masks_and_no_quantisation_are_accepted(tmp_path):
    def with_buffers(i):
        return {
            **WEIGHTS,
            "steps": torch.tensor(i, dtype=torch.int32),
            "num_batches_tracked": torch.tensor(i),
            "position_ids": torch.arange(4) + i,
            "bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
            "mask": torch.full((4,), bool(i)),
        }

    opened = pool(tmp_path, with_buffers(0), with_buffers(1), CONFIG | {"quantization_config": None})
    assert set(opened.merged) == set(WEIGHTS)
