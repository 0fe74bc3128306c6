"""Tiny models of many architectures of transformers: configurations, classes and inputs."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

_WIDTH = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TEXT = {**_WIDTH, **_IDS, "vocab_size": 32, "max_position_embeddings": 32}
_DECODER = {**_TEXT, "num_key_value_heads": 1, "head_dim": 8}
_MIXTURE = {**_DECODER, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
_IMAGE = {**_WIDTH, "image_size": 8, "patch_size": 4, "num_channels": 3}
_CAUSAL = "AutoModelForCausalLM"

ALIGNED = ("llama", "qwen3", "gpt2", "gpt_neox", "phi3", "bert", "vit", "mixtral", "t5", "convnext")
"""Those whose units are reordered in the tests of alignment."""

CONFIGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": (_CAUSAL, _DECODER),
    "mistral": (_CAUSAL, _DECODER),
    "qwen2": (_CAUSAL, _DECODER),
    "qwen3": (_CAUSAL, _DECODER),
    "gemma2": (_CAUSAL, _DECODER),
    "gemma3_text": (_CAUSAL, _DECODER),
    "phi3": (_CAUSAL, _DECODER),
    "gpt2": (
        _CAUSAL,
        {
            "vocab_size": 32,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 32,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "gpt_neox": (_CAUSAL, _TEXT),
    "opt": (_CAUSAL, {**_TEXT, "ffn_dim": 24, "word_embed_proj_dim": 16}),
    "falcon": (_CAUSAL, {**_TEXT, "new_decoder_architecture": True, "num_kv_heads": 1}),
    "olmo2": (_CAUSAL, _DECODER),
    "stablelm": (_CAUSAL, _DECODER),
    "cohere": (_CAUSAL, _DECODER),
    "granite": (_CAUSAL, _DECODER),
    "glm": (_CAUSAL, _DECODER),
    "bert": ("AutoModelForSequenceClassification", _TEXT),
    "roberta": ("AutoModelForSequenceClassification", _TEXT),
    "deberta-v2": (
        "AutoModelForSequenceClassification",
        {**_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    ),
    "distilbert": (
        "AutoModelForSequenceClassification",
        {"vocab_size": 32, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 32},
    ),
    "electra": ("AutoModelForSequenceClassification", {**_TEXT, "embedding_size": 8}),
    "modernbert": ("AutoModelForSequenceClassification", {**_TEXT, "cls_token_id": 1, "sep_token_id": 2}),
    "t5": (
        "AutoModelForSeq2SeqLM",
        {
            "vocab_size": 32,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 24,
            "num_layers": 2,
            "num_heads": 2,
            "decoder_start_token_id": 0,
        },
    ),
    "bart": (
        "AutoModelForSeq2SeqLM",
        {
            "vocab_size": 32,
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 24,
            "max_position_embeddings": 32,
            **_IDS,
        },
    ),
    "whisper": (
        "AutoModelForSpeechSeq2Seq",
        {
            "vocab_size": 32,
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 24,
            "num_mel_bins": 8,
            "max_source_positions": 8,
            "max_target_positions": 16,
            "decoder_start_token_id": 1,
            **_IDS,
        },
    ),
    "vit": ("AutoModelForImageClassification", _IMAGE),
    "clip": ("AutoModel", {"text_config": _TEXT, "vision_config": _IMAGE, "projection_dim": 8}),
    "siglip": ("AutoModel", {"text_config": {**_TEXT, "projection_size": 16}, "vision_config": _IMAGE}),
    "convnext": (
        "AutoModelForImageClassification",
        {"num_channels": 3, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1], "image_size": 32},
    ),
    "swin": (
        "AutoModelForImageClassification",
        {
            "image_size": 16,
            "patch_size": 2,
            "num_channels": 3,
            "embed_dim": 8,
            "depths": [1, 2],
            "num_heads": [2, 2],
            "window_size": 2,
        },
    ),
    "dinov2": ("AutoModelForImageClassification", _IMAGE),
    "llava": (
        "AutoModelForImageTextToText",
        {
            "text_config": {"model_type": "llama", **_DECODER},
            "vision_config": {"model_type": "clip_vision_model", **_IMAGE},
            "image_token_id": 31,
        },
    ),
    "qwen2_vl": (
        "AutoModelForImageTextToText",
        {
            "text_config": {
                **_DECODER,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
            },
            "vision_config": {
                "depth": 2,
                "embed_dim": 16,
                "hidden_size": 16,
                "num_heads": 2,
                "mlp_ratio": 2,
                "patch_size": 4,
            },
            "image_token_id": 31,
            "vision_start_token_id": 29,
            "vision_end_token_id": 30,
        },
    ),
    "paligemma": (
        "AutoModelForImageTextToText",
        {
            "text_config": {"model_type": "gemma", **_DECODER},
            "vision_config": {"model_type": "siglip_vision_model", **_IMAGE, "projection_dim": 16},
            "projection_dim": 16,
            "hidden_size": 16,
            "image_token_id": 31,
        },
    ),
    "idefics3": (
        "AutoModelForImageTextToText",
        {
            "text_config": {"model_type": "llama", **_DECODER},
            "vision_config": _IMAGE,
            "image_token_id": 31,
            "scale_factor": 2,
        },
    ),
    "mixtral": (_CAUSAL, {**_MIXTURE, "num_local_experts": 3}),
    "qwen2_moe": (_CAUSAL, {**_MIXTURE, "num_experts": 3, "shared_expert_intermediate_size": 8}),
    "qwen3_moe": (_CAUSAL, {**_MIXTURE, "num_experts": 3}),
    "olmoe": (_CAUSAL, {**_MIXTURE, "num_experts": 3}),
    "deepseek_v3": (
        _CAUSAL,
        {
            **_MIXTURE,
            "head_dim": 4,
            "num_key_value_heads": 2,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
        },
    ),
    "gpt_oss": (_CAUSAL, {**_MIXTURE, "num_local_experts": 3, "layer_types": ["full_attention", "sliding_attention"]}),
    "granitemoe": (_CAUSAL, {**_MIXTURE, "num_local_experts": 3}),
    "llama4_text": (
        _CAUSAL,
        {
            **_MIXTURE,
            "intermediate_size_mlp": 24,
            "num_local_experts": 3,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
        },
    ),
    "mamba": (_CAUSAL, {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, **_IDS}),
    "mamba2": (
        _CAUSAL,
        {
            "vocab_size": 32,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "state_size": 4,
            "num_heads": 4,
            "head_dim": 8,
            "n_groups": 1,
            **_IDS,
        },
    ),
    "jamba": (
        _CAUSAL,
        {
            **_DECODER,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "mamba_d_state": 4,
            "mamba_d_conv": 2,
            "mamba_expand": 1,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "bamba": (
        _CAUSAL,
        {
            **_DECODER,
            "attn_layer_indices": [1],
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_n_groups": 1,
            "mamba_d_state": 4,
        },
    ),
    "recurrent_gemma": (
        _CAUSAL,
        {**_DECODER, "lru_width": 16, "attention_window_size": 8, "block_types": ["recurrent", "attention"]},
    ),
    "rwkv": (
        _CAUSAL,
        {
            "vocab_size": 32,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "attention_hidden_size": 16,
            "intermediate_size": 24,
            "context_length": 32,
        },
    ),
}


def build(name: str, seed: int) -> Any:
    """Return a model with random weights, large enough for its outputs to differ. The global generator is not changed."""
    auto, settings = CONFIGS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = transformers.AutoConfig.for_model(name, **settings)
        model = getattr(transformers, auto).from_config(config).eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def outputs(name: str, model: Any) -> torch.Tensor:
    """Return the logits of a model on fixed inputs; of vision-language models on text alone."""
    ids = torch.arange(3, 11)[None]
    auto, settings = CONFIGS[name]
    size = settings.get("image_size", 8)
    image = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
    given: dict[str, torch.Tensor] = {"input_ids": ids}
    if auto == "AutoModelForImageClassification":
        given = {"pixel_values": image}
    elif auto == "AutoModel":
        given["pixel_values"] = image
    elif auto == "AutoModelForSeq2SeqLM":
        given["decoder_input_ids"] = ids[:, :4]
    elif auto == "AutoModelForSpeechSeq2Seq":
        given = {"input_features": torch.linspace(-1, 1, 8 * 16).view(1, 8, 16), "decoder_input_ids": ids[:, :4]}
    output = model(**given)
    return output.logits if "logits" in output else output.logits_per_image


def write_outputs(folders: Mapping[str, str], file: str) -> None:
    """Load the exported models in `folders`, by architecture, and write their outputs to `file`. For another process."""
    results = {}
    for name, folder in folders.items():
        named = transformers.AutoConfig.from_pretrained(folder).architectures[0]
        model = getattr(transformers, named).from_pretrained(folder).eval()
        results[name] = outputs(name, model).contiguous()
    save_file(results, file)
