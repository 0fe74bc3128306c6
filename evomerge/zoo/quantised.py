"""Reads a Llama from a GGUF file and returns it with plain bf16 weights, ready for `save_pretrained`.

GGUF is llama.cpp's format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.errors import ZooError
from evomerge.models.pretrained import new_model

# Names of tensors in a block: GGUF → transformers.
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
# Entries of transformers' configuration → GGUF's fields `llama.*`.
_CONFIG = {
    "vocab_size": "vocab_size",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}


def read_llama(path: Path) -> Any:
    """Return the `LlamaForCausalLM` in a GGUF file of any quantisation, in bf16 and evaluation mode.

    Without `output.weight` in the file the head is tied to the embeddings. Raises `ZooError` if gguf is not installed, or if
    the file has another architecture.
    """
    try:
        import gguf
    except ImportError:
        msg = "reading a GGUF file needs the package gguf; type: pip install gguf"
        raise ZooError(msg) from None
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    if architecture != "llama":
        msg = f"`{path}`: expected the architecture `llama`, got `{architecture}`"
        raise ZooError(msg)
    config = {key: reader.fields[f"llama.{field}"].contents() for key, field in _CONFIG.items()}
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    state: dict[str, Tensor] = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        kind = tensor.name.split(".")[-2]
        if kind in heads:
            values = unpermuted(values, heads[kind])
        state[_name(tensor.name)] = torch.tensor(values, dtype=torch.bfloat16)
    tied = "lm_head.weight" not in state
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    rope = {"rope_type": "default", "rope_theta": reader.fields["llama.rope.freq_base"].contents()}
    config = {"model_type": "llama", **config, "rope_parameters": rope, "tie_word_embeddings": tied}
    model = new_model(config, "AutoModelForCausalLM", torch.bfloat16)
    model.load_state_dict(state)
    return model


def unpermuted(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Return the rows of a query or key projection `(heads * size, width)` in transformers' order.

    llama.cpp rotates adjacent pairs of rows (0 and 1, 2 and 3, …), transformers pairs from the two halves of each head (0 and
    size / 2, …). llama.cpp's converter therefore interleaves the halves; this is the inverse.
    """
    size = weight.shape[0] // heads
    return weight.reshape(heads, size // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _name(name: str) -> str:
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    _, block, kind, suffix = name.split(".")
    return f"model.layers.{block}.{_IN_BLOCK[kind]}.{suffix}"
