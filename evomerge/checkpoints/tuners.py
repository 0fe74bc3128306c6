"""Tuners: PEFT's kinds of adapters other than LoRA whose merged weight is a short formula, one function each.

A function takes a weight W `(out, in)` and the adapter's tensors for it, by PEFT's names, all float32 or wider, and returns the merged weight.
What a formula needs from `adapter_config.json` is in `Settings`; all other settings that are set are refused by the reader.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field

from evomerge.checkpoints.header import TensorInfo
from evomerge.checkpoints.patterns import first_match

Tensors = Mapping[str, torch.Tensor]


class Settings(BaseModel):
    """The settings of all these kinds, by PEFT's names; `model_extra` is the rest of the file."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    peft_type: str
    r: int = 8
    alpha: float = Field(default=8, allow_inf_nan=False)
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    fan_in_fan_out: bool = False
    gram_schmidt: bool = Field(default=False, alias="apply_GS")
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: int = Field(default=5, ge=1, le=100)
    ensure_weight_tying: bool = False

    def scale(self, module: str) -> float:
        """Return alpha / r of a module."""
        rank = first_match(self.rank_pattern, module, self.r)
        if rank < 1:
            raise ValueError(f"rank {rank}")
        return first_match(self.alpha_pattern, module, self.alpha) / rank


def hadamard(weight: torch.Tensor, parts: Tensors, settings: Settings, module: str) -> torch.Tensor:
    """LoHa: W + s·(A₁·B₁) ∘ (A₂·B₂) (arXiv:2108.06098)."""
    first, second = (parts[f"hada_w{i}_a"] @ parts[f"hada_w{i}_b"] for i in (1, 2))
    return weight + settings.scale(module) * first * second


def kronecker(weight: torch.Tensor, parts: Tensors, settings: Settings, module: str) -> torch.Tensor:
    """LoKr: W + s·C ⊗ D, where C and D are stored as they are, or as products of two factors (arXiv:2309.14859)."""
    left, right = (
        parts[name] if name in parts else parts[f"{name}_a"] @ parts[f"{name}_b"] for name in ("lokr_w1", "lokr_w2")
    )
    return weight + settings.scale(module) * torch.kron(left, right)


def rescaled(weight: torch.Tensor, parts: Tensors, settings: Settings, module: str) -> torch.Tensor:
    """IA³: rows, or columns of feed-forward layers, times a vector (arXiv:2205.05638)."""
    vector = parts["ia3_l"]
    if vector.shape not in ((weight.shape[0], 1), (1, weight.shape[1])):
        raise ValueError(f"its vector has shape {list(vector.shape)}")
    return weight * vector


def rescaled_bias(bias: torch.Tensor, parts: Tensors, settings: Settings, module: str) -> torch.Tensor:
    """IA³: the bias of a layer whose rows are rescaled."""
    vector = parts["ia3_l"]
    return bias * vector[:, 0] if vector.shape == (len(bias), 1) else bias


def rotated(weight: torch.Tensor, parts: Tensors, settings: Settings, module: str) -> torch.Tensor:
    """OFT: W·Rᵀ, where R has orthogonal blocks, Cayley transforms (I - Q)·(I + Q)⁻¹ or their series (arXiv:2306.07280)."""
    upper = parts["oft_R.weight"]
    size = round((1 + (1 + 8 * upper.shape[1]) ** 0.5) / 2)  # a block has size·(size - 1) / 2 numbers
    rows, columns = torch.triu_indices(size, size, 1)
    skew = upper.new_zeros(len(upper), size, size)
    skew[:, rows, columns] = upper
    skew = skew - skew.mT
    one = torch.eye(size, dtype=skew.dtype, device=skew.device)
    if settings.use_cayley_neumann:
        terms = settings.num_cayley_neumann_terms
        power, blocks = one, one.expand_as(skew)
        for term in range(1, terms):  # I + 2·(Q + Q² + …), the last term once
            power = power @ skew
            blocks = blocks + (1 if term == terms - 1 and term > 1 else 2) * power
    else:
        blocks = torch.linalg.solve(one + skew, one - skew, left=False)
    if len(blocks) == 1:  # one block for all
        blocks = blocks.expand(weight.shape[1] // size, size, size)
    parts_of_rows = weight.reshape(weight.shape[0], len(blocks), size).transpose(0, 1)
    return (parts_of_rows @ blocks.mT).transpose(0, 1).flatten(1)


def reflected(weight: torch.Tensor, parts: Tensors, settings: Settings, module: str) -> torch.Tensor:
    """HRA: W times Householder reflections, whose vectors are the columns of U (arXiv:2405.17484)."""
    vectors = parts["hra_u"]
    if settings.gram_schmidt:
        basis = torch.zeros_like(vectors)[:, :0]
        for vector in vectors.T:
            rest = vector - basis @ (basis.T @ vector)
            basis = torch.cat([basis, (rest / rest.norm())[:, None]], 1)
        return weight - 2 * (weight @ basis) @ basis.T
    for vector in (vectors / vectors.norm(dim=0)).T:
        weight = weight - 2 * torch.outer(weight @ vector, vector)
    return weight


def multiplied(weight: torch.Tensor, parts: Tensors, settings: Settings, module: str) -> torch.Tensor:
    """HiRA: W + W ∘ (B·A) (Huang et al., ICLR 2025)."""
    return weight + weight * (parts["hira_B"] @ parts["hira_A"])


def sparse(weight: torch.Tensor, parts: Tensors, settings: Settings, module: str) -> torch.Tensor:
    """SHiRA: W plus numbers at stored places (arXiv:2406.13175)."""
    places, numbers = parts["shira_indices"], parts["shira_weight"]
    if numbers.numel() != (expected := settings.r * sum(weight.shape)):
        raise ValueError(f"it has {numbers.numel()} numbers, r·(out + in) is {expected}")
    if places.dtype != torch.int64 or places.shape != (2, *numbers.shape):
        raise ValueError(f"its indices are {places.dtype} of shape {list(places.shape)}")
    if not places.is_meta and bool((places < 0).any()):
        raise ValueError("its indices are negative")
    return weight.index_put((places[0], places[1]), numbers, accumulate=True)


def vectors_of_random(weight: torch.Tensor, parts: Tensors, settings: Settings, module: str) -> torch.Tensor:
    """VeRA: W + diag(b)·B·diag(d)·A, with the same random A and B for all layers (arXiv:2310.11454)."""
    a, b = parts["vera_A"][:, : weight.shape[1]], parts["vera_B"][: weight.shape[0]]
    return weight + (parts["vera_lambda_b"][:, None] * b) @ (parts["vera_lambda_d"][:, None] * a)


@dataclass(frozen=True, slots=True)
class Tuner:
    """One kind: its formula, the names of its tensors of one module, and of those for all modules."""

    merged: Callable[[torch.Tensor, Tensors, Settings, str], torch.Tensor]
    parts: tuple[str, ...]
    shared: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    """Settings that do not affect the merged weight, beside those of all kinds."""
    bias: Callable[[torch.Tensor, Tensors, Settings, str], torch.Tensor] | None = None
    """The formula of the bias beside the weight, where it changes, too."""


@dataclass(frozen=True, slots=True)
class Change:
    """The change of one tensor of the base: a formula, and the keys of its tensors in the adapter's file, by part."""

    merged: Callable[[torch.Tensor, Tensors, Settings, str], torch.Tensor]
    keys: Mapping[str, str]
    settings: Settings
    module: str
    transposed: bool = False
    """Whether the weight is (in, out)."""

    def apply(self, tensor: torch.Tensor, parts: Tensors) -> torch.Tensor:
        """Return the merged matrix or bias. Raises `ValueError`, `IndexError`, `KeyError` or `RuntimeError` for parts that do not fit."""
        if tensor.ndim > 2:
            raise ValueError("it is no matrix")
        oriented = tensor.T if self.transposed else tensor
        result = self.merged(oriented, parts, self.settings, self.module)
        return result.T if self.transposed else result

    def check(self, shape: tuple[int, ...], stored: Mapping[str, TensorInfo]) -> None:
        """Raise `ValueError` unless tensors of the shapes in `stored`, the header of the adapter's file, fit one of `shape`."""
        parts = {
            part: torch.empty(stored[key].shape, dtype=_wide(stored[key].dtype, torch.float32), device="meta")
            for part, key in self.keys.items()
        }
        try:
            came = tuple(self.apply(torch.empty(shape, device="meta"), parts).shape)
        except (RuntimeError, IndexError, KeyError) as error:
            raise ValueError(str(error)) from None
        if came != shape:
            msg = f"the result has shape {list(came)}"
            raise ValueError(msg)

    def read(self, get: Callable[[str], torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Return the parts, where `get(key)` reads one: numbers in `dtype`, indices in int64."""
        return {part: (tensor := get(key)).to(_wide(tensor.dtype, dtype)) for part, key in self.keys.items()}


def _wide(stored: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    return dtype if stored.is_floating_point else torch.int64


TUNERS = {
    "LOHA": Tuner(
        hadamard, ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), ignored=("rank_dropout", "module_dropout")
    ),
    "LOKR": Tuner(
        kronecker,
        ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
        ignored=("rank_dropout", "rank_dropout_scale", "module_dropout", "decompose_both", "decompose_factor"),
    ),
    "IA3": Tuner(rescaled, ("ia3_l",), ignored=("feedforward_modules", "init_ia3_weights"), bias=rescaled_bias),
    "OFT": Tuner(rotated, ("oft_R.weight",), ignored=("module_dropout", "oft_block_size", "eps", "block_share")),
    "HRA": Tuner(reflected, ("hra_u",)),
    "HIRA": Tuner(multiplied, ("hira_A", "hira_B"), ignored=("hira_dropout",)),
    "SHIRA": Tuner(sparse, ("shira_weight", "shira_indices"), ignored=("mask_type", "random_seed")),
    "VERA": Tuner(
        vectors_of_random,
        ("vera_lambda_b", "vera_lambda_d"),
        shared=("vera_A", "vera_B"),
        ignored=("vera_dropout", "d_initial", "projection_prng_key", "save_projection"),
    ),
    "LN_TUNING": Tuner(lambda weight, *_: weight, ()),  # complete tensors only
}
"""By PEFT's `peft_type`."""
