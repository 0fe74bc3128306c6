"""Layout: in which block of a model a tensor is, and of which kind it is, inferred from names and shapes alone."""

import re
from collections.abc import Mapping

from evomerge.checkpoints.header import TensorInfo
from evomerge.recipe import KINDS, Place

_WORDS = {
    "attention": ("attn", "attention", "q_proj", "k_proj", "v_proj", "o_proj", "qkv"),
    "mlp": ("mlp", "ffn", "feed_forward", "feedforward", "intermediate", "output", "experts", "moe", "fc1", "fc2"),
}


class Layout:
    """The block and the kind of each tensor of a checkpoint.

    `prefix` is the part of the names before the block's number, None where there is no stack of blocks.
    """

    def __init__(self, info: Mapping[str, TensorInfo]) -> None:
        """Read the names and shapes of a checkpoint's tensors."""
        stacks: dict[str, dict[int, int]] = {}
        for name, entry in info.items():
            parts = name.split(".")
            for i, part in enumerate(parts):
                if part.isdecimal():
                    sizes = stacks.setdefault(".".join(parts[:i]), {})
                    sizes[int(part)] = sizes.get(int(part), 0) + entry.numel
                    break  # the outermost number is the block; numbers inside it are experts or sub-layers
        complete = [
            prefix for prefix, sizes in stacks.items() if sorted(sizes) == list(range(len(sizes))) and len(sizes) > 1
        ]
        self.prefix = max(complete, key=lambda prefix: sum(stacks[prefix].values()), default=None)
        self.blocks = len(stacks[self.prefix]) if self.prefix is not None else 1
        self._places = {name: self._place(name, entry) for name, entry in info.items()}

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of tensor that the model has, in the order of `KINDS`."""
        present = {place.kind for place in self._places.values()}
        return tuple(kind for kind in KINDS if kind in present)

    def place(self, name: str) -> Place:
        """Return the tensor's place; outside of the stack, its block is the nearer end."""
        return self._places[name]

    def _place(self, name: str, entry: TensorInfo) -> Place:
        block = None if self.prefix is None else block_number(name, self.prefix)
        kind = _kind(name, len(entry.shape), inside=block is not None)
        if block is None:
            block = 0 if "embed" in name.lower() or kind == "embedding" else self.blocks - 1
            return Place(block, self.blocks, kind, inside=False, tensor=name)
        return Place(block, self.blocks, kind, tensor=name)


def block_number(name: str, prefix: str) -> int | None:
    """Return the number after `prefix` in a tensor's name, or None where the name has another prefix."""
    if prefix and not name.startswith(f"{prefix}."):
        return None
    number = name[len(prefix) + 1 if prefix else 0 :].partition(".")[0]
    return int(number) if number.isdecimal() else None


def _kind(name: str, dimensions: int, *, inside: bool) -> str:
    words = re.split(r"[._]", name.lower())
    if "norm" in name.lower() or any(re.fullmatch(r"ln\d*|ln|layernorm", word) for word in words):
        return "norm"
    if not inside:
        if any("embed" in word or word in ("wte", "wpe", "token", "position") for word in words):
            return "embedding"
        if any(word in ("head", "classifier", "score", "pooler", "cls", "predictions") for word in words):
            return "head"
        return "other"
    for kind in ("attention", "mlp"):
        if any(word in name.lower() for word in _WORDS[kind]):
            return kind
    return "other" if dimensions < 2 else "mlp"
