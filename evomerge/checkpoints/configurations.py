"""Configurations of models with equal shapes: settings that make them different models, and tokens that are not the same.

Where the weights cannot make up for a difference, the models cannot be merged. Any other difference is worth a note: a merge
computes with the base's settings.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evomerge.checkpoints.folder import Folder, read_object
from evomerge.checkpoints.naming import read_settings
from evomerge.errors import CheckpointError

_IRRELEVANT = re.compile(  # of training and saving, or compared elsewhere
    r"_.*|architectures|auto_map|.*dropout.*|.*_pdrop|dropatt|torch_dtype|dtype|transformers_version|use_cache|"
    r"output_(attentions|hidden_states|scores|.*logits|past|retrieved|a3_attentions)|"
    r"return_dict.*|initializer_.*|init_.*|gradient_checkpointing|problem_type|finetuning_task|task_specific_params|"
    r".*aux_loss.*|.*jitter.*|pretraining_tp|label2id|num_labels|tie_word_embeddings|attn_implementation|"
    r"use_bfloat16|layerdrop|.*_layerdrop|quantization_config|unsloth.*|chunk_size_feed_forward|torchscript|pruned_heads"
)
_STRUCTURAL = re.compile(  # heads, activations, and which function a block is
    r"(.*_)?n?_?heads?(_.*)?|(.*_)?d_kv|.*query_groups?|multi_query.*|(.*_)?act|(.*_)?act_fn|.*activation.*|feed_forward_proj|is_gated_act|"
    r"is_decoder|is_encoder_decoder|position_embedding_type|alibi|parallel_attn|use_parallel_residual|new_decoder_architecture|"
    r"attention_type|(.*_)?layer_norm_before|"
    r"num_kv_shared_layers|no_rope_layers?|no_rope_layer_interval|mrope_section|no_op|replace_with_linear|vision_feature_(layer|select_strategy)|"
    r"layers_block_type|block_types|attention_types|scoring_func|"
    r"normalize_before|.*post_layernorm|scale_attn.*|scale_embedding|use_qk_norm|qk_layernorm|rotary_dim|rotary_pct|partial_rotary_factor|"
    r"rope_interleave|(.*_)?interleaved|scale_decoder_outputs|output_stride"
)
_TOKENS = re.compile(r"vocab_size|(.*_)?token_(id|ids|index|indices)")
_TIED = "tie_word_embeddings"  # compared by the weights; but T5 multiplies its outputs by a number if it is set
_LABELS = "id2label"
_KINDS = "layer_types"
_WINDOWS = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers that compute the same function of a text that is shorter than their windows."""


def compare_settings(
    base: Folder, expert: Folder, *, labels: bool = True, tokens: bool = True
) -> tuple[list[str], list[str]]:
    """Return what keeps an expert from being merged, and what is worth a note, each in words.

    The names of `labels` are compared only where their head is merged. Without `tokens`, how many there are and which number
    they have is left out.
    """
    if not _differing(base.config, expert.config) and base.config.get(_TIED) == expert.config.get(_TIED):
        return [], []
    ours, theirs = read_settings(base), read_settings(expert)
    complete = ours is not None and theirs is not None
    ours, theirs = (ours, theirs) if complete else (base.config, expert.config)
    assert ours is not None
    assert theirs is not None
    fatal: list[str] = []
    notes: list[str] = []
    for key, came, wanted in _differing(ours, theirs):
        words = _said(key, came, wanted)
        last = key.rpartition(".")[2]
        if not tokens and _TOKENS.fullmatch(last):
            continue
        if last == _LABELS:
            if labels and _named(came) and _named(wanted):
                (fatal if _permuted(came, wanted) else notes).append(words)
        elif (
            came is not None
            and wanted is not None
            and (_STRUCTURAL.fullmatch(last) or _other_kinds(last, came, wanted))
        ):
            fatal.append(words)
        else:
            notes.append(words)
    return fatal, notes


def added_tokens(folder: Path) -> dict[str, int]:
    """Return the ids of the tokens that were added to a tokenizer's vocabulary, by token; none without a tokenizer."""
    tokens: dict[str, int] = {}
    for file, key in (
        ("added_tokens.json", None),
        ("tokenizer_config.json", "added_tokens_decoder"),
        ("tokenizer.json", "added_tokens"),
    ):
        try:
            data: Any = read_object(folder / file)
        except CheckpointError:  # checked where the tokenizer is used
            continue
        data = data if key is None else data.get(key)
        rows = data.items() if isinstance(data, dict) else [(None, row) for row in data or () if isinstance(row, dict)]
        for name, row in rows:
            token, number = (row.get("content"), row.get("id", name)) if isinstance(row, dict) else (name, row)
            if isinstance(token, str) and (text := str(number)).isdecimal():
                tokens[token] = int(text)
    return tokens


def compare_tokens(
    ours: Mapping[str, int], theirs: Mapping[str, int], who: tuple[str, str] = ("the base", "the expert")
) -> tuple[list[str], list[str]]:
    """Return the added tokens that have other ids in the second of two models, and the ids that have other tokens, in words."""
    left, right = who
    moved = [
        f"the token {token!r}: id {theirs[token]} in {right}, {ours[token]} in {left}"
        for token in ours
        if theirs.get(token, ours[token]) != ours[token]
    ]
    known, other = (
        {number: token for token, number in ours.items()},
        {number: token for token, number in theirs.items()},
    )
    notes = [
        f"id {number}: the token {other[number]!r} in {right}, {known[number]!r} in {left}"
        for number in known
        if other.get(number, known[number]) != known[number]
    ]
    return moved, [] if moved else notes


def compare_labels(ours: Any, theirs: Any, who: tuple[str, str]) -> tuple[list[str], list[str]]:
    """Return whether the labels of two models have other numbers in words, and whether they are other labels; nothing without names."""
    ours, theirs = (
        {str(number): str(label) for number, label in dict(labels or {}).items()} for labels in (ours, theirs)
    )
    if ours == theirs or not _named(ours) or not _named(theirs):
        return [], []
    words = [f"`{_LABELS}`: {_shown(theirs)} in {who[1]}, {_shown(ours)} in {who[0]}"]
    return (words, []) if _permuted(theirs, ours) else ([], words)


def _differing(base: Mapping[str, Any], expert: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    ours, theirs = dict(_flat(base)), dict(_flat(expert))
    keys = [key for key in sorted(ours.keys() | theirs.keys()) if not _IRRELEVANT.fullmatch(key.rpartition(".")[2])]
    return [(key, theirs.get(key), ours.get(key)) for key in keys if not _same(theirs.get(key), ours.get(key))]


def _same(came: Any, wanted: Any) -> bool:
    """Return whether two values are equal; one value for all layers is the list that has it for each."""
    if isinstance(came, list) != isinstance(wanted, list):
        many, one = (came, wanted) if isinstance(came, list) else (wanted, came)
        return len(many) > 1 and one is not None and all(value == one for value in many)
    return bool(came == wanted)


def _other_kinds(key: str, came: Any, wanted: Any) -> bool:
    """Return whether layers are of kinds that differ in more than how far they look back."""
    return key == _KINDS and any(not {one, other} <= _WINDOWS for _, one, other in _unlike(came, wanted))


def _unlike(came: Any, wanted: Any) -> list[tuple[int, Any, Any]]:
    """Return where two lists of one length differ, with both values; nothing for other values."""
    if not (isinstance(came, list) and isinstance(wanted, list) and len(came) == len(wanted)):
        return []
    return [(i, one, other) for i, (one, other) in enumerate(zip(came, wanted, strict=True)) if one != other]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and key not in (_LABELS, "label2id"):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
            for number, part in enumerate(value):  # the settings of each layer, as in models from architecture search
                yield from _flat(part, f"{prefix}{key}[{number}].")
        elif key == _LABELS and isinstance(value, Mapping):
            yield f"{prefix}{key}", {str(number): str(label) for number, label in value.items()}
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def _named(labels: Any) -> bool:
    return bool(labels) and not all(re.fullmatch(r"LABEL_\d+", label) for label in labels.values())


def _permuted(came: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Return whether some label has another number in one of the two."""
    numbers = {label.lower(): number for number, label in wanted.items()}
    return any(numbers.get(label.lower(), number) != number for number, label in came.items())


def _said(key: str, came: Any, wanted: Any) -> str:
    """Return in words how a setting differs; of lists with an entry for each layer, the entries that do."""
    unlike = _unlike(came, wanted)
    if len(unlike) < 2 and not (unlike and len(came) > 2):
        return f"`{key}`: {_shown(came)} in the expert, {_shown(wanted)} in the base"
    number, one, other = unlike[0]
    more = f", and {len(unlike) - 1} more of its {len(came)} entries" if len(unlike) > 1 else ""
    return f"`{key}[{number}]`: {_shown(one)} in the expert, {_shown(other)} in the base{more}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
