"""Reads a Llama from a GGUF file and returns it with plain bf16 weights, ready for `save_pretrained`.

GGUF is llama.cpp's format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.errors import ZooError
from evomerge.models.pretrained import new_model

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
        raise ZooError("reading a GGUF file needs the package gguf; type: pip install gguf") from None
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    if architecture != "llama":
        raise ZooError(f"`{path}`: expected the architecture `llama`, got `{architecture}`")
    config = {key: reader.fields[f"llama.{field}"].contents() for key, field in _CONFIG.items()}
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    stored = {tensor.name: tensor for tensor in reader.tensors}
    rope = {"rope_type": "default", "rope_theta": reader.fields["llama.rope.freq_base"].contents()}
    config |= {"model_type": "llama", "rope_parameters": rope, "tie_word_embeddings": "output.weight" not in stored}
    model = new_model(config, "AutoModelForCausalLM", torch.bfloat16)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, parameter in model.named_parameters():  # without a tied head
        tensor = stored[str(names.get_name(name, (".weight",)))]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        kind = name.split(".")[-2]
        if kind in heads:
            values = unpermuted(values, heads[kind])
        parameter.data.copy_(torch.tensor(values))
    return model


def unpermuted(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Return the rows of a query or key projection `(heads * size, width)` in transformers' order.

    llama.cpp rotates adjacent pairs of rows (0 and 1, 2 and 3, …), transformers pairs from the two halves of each head (0 and
    size / 2, …). llama.cpp's converter therefore interleaves the halves; this is the inverse.
    """
    size = weight.shape[0] // heads
    return weight.reshape(heads, size // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)
