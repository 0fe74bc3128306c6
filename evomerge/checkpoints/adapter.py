"""Adapter: a LoRA adapter together with its base, read as the whole model that the two make.

On disk it is PEFT's folder: `adapter_config.json` beside `adapter_model.safetensors`. A weight W that the adapter changes
is W + s·B·A with s = lora_alpha / r (LoRA, https://arxiv.org/abs/2106.09685, section 4.1) or, with `use_rslora`,
lora_alpha / √r (https://arxiv.org/abs/2312.03732). The product is made before anything is merged: factors merged apart
would multiply into cross terms Bᵢ·Aⱼ that no expert ever had. Everything here is checked from the configuration and the
headers; numbers are read when a tensor is asked for.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError, safe_open

from evomerge.checkpoints.folder import Folder, TensorInfo, read_header
from evomerge.errors import CheckpointError
from evomerge.recipe import describe

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_INSTEAD = "merge it into its base first (peft: merge_and_unload, save_pretrained) and give that folder"
_WRAPPER = "base_model.model."  # PEFT's own modules around the model, whose names begin every key
_WRAPPED = re.compile(r"\.(?:base_layer|modules_to_save)(?=\.)")  # and those around one layer
_FACTOR = re.compile(r"(?P<module>.+)\.(?:lora_(?P<linear>[AB])\.weight|lora_embedding_(?P<embedding>[AB]))")
_KEEPS_BASE = ("gaussian", "eva", "orthogonal")
"""Ways to start B·A that leave the base as it is. The others (PiSSA, OLoRA, ...) subtract from it what B·A starts with."""
_SILENT = {  # what has no bearing on the weights, or only says which of them the file holds
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "target_modules",
    "task_type",
}


def is_adapter(path: str | Path) -> bool:
    """Return whether the folder at `path` holds an adapter, and no whole model beside it."""
    folder = Path(path)
    whole = ("model.safetensors", "model.safetensors.index.json")
    return (folder / _CONFIG).is_file() and not any((folder / name).exists() for name in whole)


class Adapter:
    """The checkpoint of a base with a LoRA adapter on it. Not to be confused with the adapter's own file of factors.

    A weight with a product is in fp32 (fp64 where the base is), also on a base in bf16, so that nothing is rounded before
    it is merged. A tensor that the adapter stores whole (`modules_to_save`, biases) is a view of its file, any other the
    base's own.
    """

    def __init__(self, path: str | Path, base: Folder) -> None:
        """Read and check the configuration and the header in the folder at `path`; no tensor is read.

        The adapter is put on `base`, whatever its `base_model_name_or_path` says, which is a note and never fetched.
        Raises `CheckpointError` for what is not plain LoRA, and for what does not fit the base.
        """
        self.path = Path(path)
        self.base = base
        config = _read_config(self.path / _CONFIG)
        self._stored = _read_stored(self.path)
        factors, whole = self._targets()
        rename = self._names_in_base([*factors, *whole])
        self._whole = {rename[target]: key for target, key in whole.items()}
        info = dict(base.info)
        for name, key in self._whole.items():
            info[name] = self._stored[key]
            if info[name].shape != base.info[name].shape:
                msg = (
                    f"{self.path}: tensor `{key}` has shape {list(info[name].shape)}, `{name}` of the base "
                    f"({base.path}) {list(base.info[name].shape)}; expected an adapter trained on this base"
                )
                raise CheckpointError(msg)
        self._products: dict[str, _Product] = {}
        for target, pair in factors.items():
            name = rename[target]
            product = self._products[name] = _Product.of(pair, target, len(info[name].shape), config)
            self._check_fits(product, name, info[name])
            info[name] = TensorInfo(info[name].shape, torch.promote_types(info[name].dtype, torch.float32))
        self.info: Mapping[str, TensorInfo] = info

    @property
    def config(self) -> dict[str, Any]:
        """The content of the base's `config.json`."""
        return self.base.config

    @property
    def files(self) -> tuple[Path, ...]:
        """The adapter's own files: configuration and weights."""
        return (self.path / _CONFIG, self.path / _WEIGHTS)

    @property
    def changed(self) -> tuple[str, ...]:
        """The names of the tensors that are not the base's own, in order."""
        return tuple(sorted(self._products.keys() | self._whole.keys()))

    def makes(self, name: str) -> bool:
        """Return whether the tensor is a product, which costs more than to read it."""
        return name in self._products

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor: W + s·B·A, made anew at each call, where it has a product, else a view of a file."""
        origin = self._read(self._whole[name]) if name in self._whole else self.base.tensor(name)
        if name not in self._products:
            return origin
        product = self._products[name]
        a, b = (self._read(key).to(self.info[name].dtype).flatten(1) for key in (product.a, product.b))
        change = (a.T @ b.T if product.transposed else b @ a).view(origin.shape)
        # W - (0 - s·B·A), not W + s·B·A: where the product is zero of either sign, W's own zero keeps its sign.
        return torch.sub(origin, change.mul_(-product.scale).add_(0.0), out=change)

    def write(self, name: str, out: torch.Tensor) -> None:
        """Copy the tensor into `out`, rounded once to its dtype."""
        out.copy_(self.tensor(name))

    def forget(self) -> None:
        """Close the adapter's file, and those of its base."""
        self.__dict__.pop("_open", None)
        self.base.forget()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_open"}

    @cached_property
    def _open(self) -> Any:
        file = self.path / _WEIGHTS
        try:
            return safe_open(file, framework="pt")
        except (OSError, SafetensorError) as error:
            msg = f"{file}: cannot be opened ({error}); it was readable before: has it changed?"
            raise CheckpointError(msg) from None

    def _read(self, key: str) -> torch.Tensor:
        tensor: torch.Tensor = self._open.get_tensor(key)
        return tensor

    def _targets(self) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
        """Return what the file changes, by the names of the model that was trained.

        That is: each weight with a product → the keys of its factors, and each tensor stored whole → its key.
        """
        factors: dict[str, dict[str, str]] = {}
        whole: dict[str, str] = {}
        for key in self._stored:
            name = key.removeprefix(_WRAPPER)
            if found := _FACTOR.fullmatch(name):
                factors.setdefault(f"{found['module']}.weight", {})[found["linear"] or found["embedding"]] = key
            elif ".original_module." not in name:  # with `bias: all`, PEFT also stores what modules_to_save replaced,
                target = _WRAPPED.sub("", name)
                if target == name or target not in whole:  # and what it put there under a second name
                    whole[target] = key
        for pair in factors.values():
            if len(pair) == 1:
                have, key = next(iter(pair.items()))
                msg = f"{self.path}: tensor `{key}` has no {'B' if have == 'A' else 'A'} beside it; expected both factors of every module"
                raise CheckpointError(msg)
        return factors, whole

    def _names_in_base(self, targets: list[str]) -> dict[str, str]:
        """Return the base's name of each target: the same, or that with one prefix more, or one less, for all of them."""
        names = self.base.info
        edits = [("", ""), *sorted({edit for name in names for edit in _prefixes(targets[0], name)})]
        edits = [edit for edit in edits if all(target.startswith(edit[0]) for target in targets)]
        found = {(drop, add): [f"{add}{target.removeprefix(drop)}" for target in targets] for drop, add in edits}
        fitting = [edit for edit in edits if all(name in names for name in found[edit])]
        if len(fitting) > 1 and fitting[0] != ("", ""):
            ways = " or ".join(f"`{found[edit][0]}`" for edit in fitting)
            msg = f"{self.path}: `{targets[0]}` could be {ways} of the base ({self.base.path}); expected the base's own names"
            raise CheckpointError(msg)
        if not fitting:
            best = max(edits, key=lambda edit: sum(name in names for name in found[edit]))
            lost = [target for target, name in zip(targets, found[best], strict=True) if name not in names]
            more = f" ({len(lost) - 1} more tensors likewise)" if len(lost) > 1 else ""
            msg = (
                f"{self.path}: changes `{lost[0]}`, which the base ({self.base.path}) does not have{more}; "
                "expected LoRA factors and whole tensors of this base's modules"
            )
            raise CheckpointError(msg)
        return dict(zip(targets, found[fitting[0]], strict=True))

    def _check_fits(self, product: "_Product", name: str, entry: TensorInfo) -> None:
        """Raise `CheckpointError` unless the product has the shape of the tensor `name`, and all are floating point."""
        a, b = self._stored[product.a], self._stored[product.b]
        shape, rank = entry.shape, product.rank
        expected: list[tuple[int, ...]]
        if product.transposed:
            expected = [(rank, shape[0]), (shape[1], rank)] if len(shape) == 2 else []
        else:  # a convolution's A has its kernel, and B one of size 1
            expected = [(rank, *shape[1:]), (shape[0], rank, *(1 for _ in shape[2:]))] if len(shape) > 1 else []
        if [a.shape, b.shape] != expected:
            wanted = " and ".join(f"{letter} {list(s)}" for letter, s in zip("AB", expected, strict=False))
            turned = " (its weights are (in, out), says the adapter)" if product.transposed else ""
            msg = (
                f"{self.path}: factors A {list(a.shape)} and B {list(b.shape)} of rank r = {rank} do not fit `{name}`, "
                f"{list(shape)} in the base ({self.base.path}){turned}; expected {wanted or 'a matrix or a convolution'}"
            )
            raise CheckpointError(msg)
        for what, dtype in ((f"`{name}`", entry.dtype), ("A", a.dtype), ("B", b.dtype)):
            if not dtype.is_floating_point:
                msg = f"{self.path}: {what} of the product for `{name}` is {dtype}; expected floating point"
                raise CheckpointError(msg)


def _prefixes(target: str, name: str) -> Iterator[tuple[str, str]]:
    """Yield the prefix (to drop, to add) that makes the base's `name` of `target`, if one does.

    It has no number in it: what wraps a model has none, and another block's tensor is another tensor.
    """
    longer, shorter = (target, name) if len(target) > len(name) else (name, target)
    prefix = longer.removesuffix(f".{shorter}")
    if prefix != longer and not any(part.isdecimal() for part in prefix.split(".")):
        yield (f"{prefix}.", "") if longer == target else ("", f"{prefix}.")


# -- the adapter's folder ----------------------------------------------------------------------------------------------

_Rank = Annotated[int, Field(ge=1)]
_Alpha = Annotated[float, Field(allow_inf_nan=False)]
_Number = TypeVar("_Number", int, float)


class _Config(BaseModel):
    """What scales and turns the products, by PEFT's names; `model_extra` is the rest of the file."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    r: _Rank
    lora_alpha: _Alpha
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Alpha] | None = None
    init_lora_weights: bool | str | None = None

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _patterns(cls, table: dict[str, Any] | None) -> dict[str, Any] | None:
        for pattern in table or {}:
            try:
                re.compile(pattern)
            except re.error as error:
                msg = f"expected regular expressions, got `{pattern}` ({error})"
                raise ValueError(msg) from None
        return table


@dataclass(frozen=True, slots=True)
class _Product:
    """One weight's s·B·A: its factors' keys in the file, their rank, and the scale s.

    A is `(r, in)`, B `(out, r)`, for a convolution with A's kernel behind; a transposed weight is `(in, out)`.
    """

    a: str
    b: str
    rank: int
    scale: float
    transposed: bool

    @classmethod
    def of(cls, pair: Mapping[str, str], weight: str, dimensions: int, config: _Config) -> "_Product":
        """Return the product of the factors with the keys `pair`, as `config` has it for that weight."""
        module = weight.removesuffix(".weight")
        rank = _first_match(config.rank_pattern, module, config.r)
        alpha = _first_match(config.alpha_pattern, module, config.lora_alpha)
        scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
        embedding = pair["A"].endswith("lora_embedding_A")
        transposed = embedding or (config.fan_in_fan_out and dimensions == 2)
        return cls(pair["A"], pair["B"], rank, scale, transposed)


def _first_match(patterns: Mapping[str, _Number] | None, module: str, default: _Number) -> _Number:
    """Return the number of the first pattern that the whole name `module` matches, or its end behind a dot."""
    for pattern, number in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return number
    return default


def _read_config(path: Path) -> _Config:
    """Return what `adapter_config.json` says. Raises `CheckpointError` unless the weights are W + s·B·A by it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror}); expected the configuration of a LoRA adapter"
        raise CheckpointError(msg) from None
    except (ValueError, RecursionError) as error:
        msg = f"{path}: not valid JSON ({error}); download the adapter again"
        raise CheckpointError(msg) from None
    kind = data.get("peft_type") if isinstance(data, dict) else None
    if kind != "LORA":
        msg = f"{path}: `peft_type` is {kind!r}; expected 'LORA'. If PEFT can merge this kind, {_INSTEAD}"
        raise CheckpointError(msg)
    try:
        config = _Config.model_validate(data)
    except ValidationError as error:
        raise CheckpointError(describe(error, str(path), {})) from None
    if isinstance(config.init_lora_weights, str) and config.init_lora_weights.lower() not in _KEEPS_BASE:
        msg = f"{path}: `init_lora_weights` is {config.init_lora_weights!r}, which changes the base, too; {_INSTEAD}"
        raise CheckpointError(msg)
    for key, value in (config.model_extra or {}).items():
        if value and key not in _SILENT:
            msg = f"{path}: `{key}` is {str(value)[:80]}, so the weights may not be W + s·B·A alone; {_INSTEAD}"
            raise CheckpointError(msg)
    return config


def _read_stored(folder: Path) -> dict[str, TensorInfo]:
    """Return the checked header of the adapter's weights. Raises `CheckpointError`."""
    weights, pickled = folder / _WEIGHTS, folder / "adapter_model.bin"
    if not weights.is_file() and pickled.exists():
        msg = f"{folder}: only pickle weights ({pickled.name}), which can run code when read; convert them with peft's save_pretrained and give that folder"
        raise CheckpointError(msg)
    if not weights.is_file():
        msg = f"{folder}: no {_WEIGHTS} beside {_CONFIG}; expected both, as peft's save_pretrained writes them"
        raise CheckpointError(msg)
    stored = read_header(weights)
    if not stored:
        msg = f"{weights}: holds no tensor; expected the factors of at least one module"
        raise CheckpointError(msg)
    return stored
