"""Layout: in which block and tower of a model a tensor is, and of which kind it is, inferred from names, shapes and configured depth."""

import re
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from evomerge.checkpoints.fused import Matrix, matrices
from evomerge.checkpoints.header import TensorInfo
from evomerge.recipe import KINDS, TOWERS, Place

_WORDS = {
    "attention": ("attn", "attention", "q_proj", "k_proj", "v_proj", "o_proj", "qkv"),
    "mlp": ("mlp", "ffn", "feed_forward", "feedforward", "intermediate", "output", "experts", "moe", "fc1", "fc2"),
}
_TOWERS = {  # the first that a part of a name before its block's number matches
    "projector": re.compile(
        r"(.*_)?(projector|connector|merger|aligner|resampler|qformer|perceiver)(_.*)?|query_tokens|"
        r"(.*_)?(text|language|visual|vision|image|audio|modality)_projection"
    ),
    "vision": re.compile(r"(.*_)?(vision|visual|image)(_.*)?"),
    "audio": re.compile(r"(.*_)?(audio|speech)(_.*)?"),
}
_HEADS = {"head", "classifier", "score", "pooler", "cls", "predictions"}
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


class Layout:
    """The block and the kind of each tensor of a checkpoint.

    A model may have several stacks of blocks, such as an encoder and a decoder: the largest, and each other one of
    transformer blocks. `prefix` is the part of the names before the block's number in the largest, None where there is no
    stack, and `blocks` is its depth.
    """

    def __init__(self, info: Mapping[str, TensorInfo], config: Mapping[str, Any] | None = None) -> None:
        """Read the names and shapes of a checkpoint's tensors, and the depth in its `config.json`.

        Blocks after the configured depth that hold tensors of their own, as those that predict further tokens, are outside.
        """
        stacks: dict[str, dict[int, int]] = {}
        inner: dict[str, dict[int, set[str]]] = {}
        for name, entry in info.items():
            parts = name.split(".")
            for i, part in enumerate(parts):
                if part.isdecimal():
                    prefix, block = ".".join(parts[:i]), int(part)
                    sizes = stacks.setdefault(prefix, {})
                    sizes[block] = sizes.get(block, 0) + entry.numel
                    inner.setdefault(prefix, {}).setdefault(block, set()).add(".".join(parts[i + 1 :]))
                    break  # the outermost number is the block; numbers inside it are experts or sub-layers
        depth = _depth(config or {})
        complete = [
            prefix
            for prefix, sizes in stacks.items()
            if sorted(sizes) == list(range(len(sizes))) and (len(sizes) > 1 or (depth == 1 and _attends(inner[prefix])))
        ]
        self.prefix = max(complete, key=lambda prefix: sum(stacks[prefix].values()), default=None)
        self.stacks = {
            prefix: _blocks(inner[prefix], depth if prefix == self.prefix else None)
            for prefix in complete
            if prefix == self.prefix or _attends(inner[prefix])
        }
        """The number of blocks of each stack, by prefix."""
        self.blocks = 1 if self.prefix is None else self.stacks[self.prefix]
        self._places = {name: self._place(name, entry) for name, entry in info.items()}
        self._shapes = {name: entry.shape for name, entry in info.items()}
        self._config = config or {}
        self._matrices: dict[str, tuple[Matrix, ...]] = {}

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of tensor that the model has, in the order of `KINDS`."""
        present = {place.kind for place in self._places.values()}
        return tuple(kind for kind in KINDS if kind in present)

    @property
    def towers(self) -> tuple[str, ...]:
        """The towers that the model has, in the order of `TOWERS`."""
        present = {place.tower for place in self._places.values()}
        return tuple(tower for tower in TOWERS if tower in present)

    def place(self, name: str) -> Place:
        """Return the tensor's place; outside of the stacks, its block is the nearer end."""
        return self._places[name]

    def matrices(self, name: str) -> tuple[Matrix, ...]:
        """Return the matrices of a tensor: itself, unless it holds those of all experts of a mixture."""
        if name not in self._matrices:
            inside = self.place(name).inside
            whole = (Matrix(name, name),)
            self._matrices[name] = matrices(name, self._shapes[name], self._config) if inside else whole
        return self._matrices[name]

    def _place(self, name: str, entry: TensorInfo) -> Place:
        numbers = {prefix: block_number(name, prefix) for prefix in self.stacks}
        prefix = next((prefix for prefix, number in numbers.items() if number is not None), None)
        block = None if prefix is None else numbers[prefix]
        kind = _kind(name, len(entry.shape), inside=block is not None)
        if prefix is None or block is None or block >= self.stacks[prefix]:
            first = block is None and ("embed" in name.lower() or kind == "embedding")
            block = 0 if first else self.blocks - 1
            return Place(block, self.blocks, kind, inside=False, tensor=name, tower=_tower(name))
        model = 0 if prefix == self.prefix else self.blocks
        return Place(block, self.stacks[prefix], kind, tensor=name, model=model, tower=_tower(name))


def _depth(config: Mapping[str, Any]) -> int | None:
    """Return the number of blocks that a configuration gives to its only or main stack; None where it gives several."""
    if config.get("is_encoder_decoder"):
        return None
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        for key in _DEPTHS:
            if type(part.get(key)) is int and part[key] > 0:
                return int(part[key])
    return None


def _blocks(inner: Mapping[int, set[str]], depth: int | None) -> int:
    """Return the number of blocks of a stack, without those after `depth` that have tensors no other has."""
    if depth is None or depth >= len(inner):
        return len(inner)
    known = set[str]().union(*(inner[block] for block in range(depth)))
    return len(inner) if any(inner[block] <= known for block in range(depth, len(inner))) else depth


def _attends(inner: Mapping[int, set[str]]) -> bool:
    """Return whether all blocks of a list are transformer blocks, and not the parts of a front end or a head."""
    return all({"attention", "mlp"} <= {_kind(name, 2, inside=True) for name in names} for names in inner.values())


def _tower(name: str) -> str:
    parts = list(takewhile(lambda part: not part.isdecimal(), name.lower().split(".")))
    return next((tower for tower, words in _TOWERS.items() if any(map(words.fullmatch, parts))), "language")


def block_number(name: str, prefix: str) -> int | None:
    """Return the number after `prefix` in a tensor's name, or None where the name has another prefix."""
    if prefix and not name.startswith(f"{prefix}."):
        return None
    number = name[len(prefix) + 1 if prefix else 0 :].partition(".")[0]
    return int(number) if number.isdecimal() else None


def is_head(name: str) -> bool:
    """Return whether a tensor of this name is outside of blocks and in a head, such as a classifier."""
    words = re.split(r"[._]", name.lower())
    return not any(map(str.isdecimal, words)) and not _HEADS.isdisjoint(words)


def _kind(name: str, dimensions: int, *, inside: bool) -> str:
    words = re.split(r"[._]", name.lower())
    if "norm" in name.lower() or any(re.fullmatch(r"ln\d*|ln|layernorm", word) for word in words):
        return "norm"
    if not inside:
        if any("embed" in word or word in ("wte", "wpe", "token", "position") for word in words):
            return "embedding"
        if not _HEADS.isdisjoint(words):
            return "head"
        return "other"
    for kind in ("attention", "mlp"):
        if any(word in name.lower() for word in _WORDS[kind]):
            return kind
    return "other" if dimensions < 2 else "mlp"
