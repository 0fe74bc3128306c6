"""The files of an adapter: its configuration, the header of its weights, and the products that they describe.

The folder is PEFT's: `adapter_config.json` beside `adapter_model.safetensors`. Both are checked; no tensor is read here.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from evomerge.checkpoints.folder import INDEX, WEIGHTS, read_object
from evomerge.checkpoints.header import TensorInfo, read_header
from evomerge.checkpoints.patterns import first_match
from evomerge.checkpoints.tuners import TUNERS, Settings, Tuner
from evomerge.errors import CheckpointError
from evomerge.recipe import describe

CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
INSTEAD = "merge it into its base first (peft: merge_and_unload, save_pretrained) and give that folder"
_KEEPS_BASE = ("gaussian", "eva", "orthogonal")
"""Initialisations of B·A that leave the base as it is. The others (PiSSA, OLoRA, ...) subtract the initial B·A from it."""
_IGNORED = {  # settings that do not affect the weights, or only list which of them the file holds
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
_WRAPPER = "base_model.model."  # PEFT's modules around the model; every key begins with them
_WRAPPED = re.compile(r"\.(?:base_layer|modules_to_save|ln_tuning_layers)(?=\.)")  # PEFT's modules around one layer
_LORA = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_embedding_A": "A",
    "lora_embedding_B": "B",
    "lora_magnitude_vector": "magnitude",
}

_Rank = Annotated[int, Field(ge=1, lt=1 << 31)]
_Alpha = Annotated[float, Field(allow_inf_nan=False)]


def is_adapter(path: str | Path) -> bool:
    """Return whether the folder at `path` holds an adapter, and no complete model beside it."""
    folder = Path(path)
    return (folder / CONFIG).is_file() and not any((folder / name).exists() for name in (WEIGHTS, INDEX))


class LoraConfig(BaseModel):
    """The settings that scale and transpose the products, by PEFT's names; `model_extra` is the rest of the file."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    r: _Rank
    lora_alpha: _Alpha
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    ensure_weight_tying: bool = False
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Alpha] | None = None
    init_lora_weights: bool | str | None = None
    use_dora: bool = False

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _patterns(cls, table: dict[str, Any] | None) -> dict[str, Any] | None:
        for pattern in table or {}:
            first_match({pattern: 0}, "", 0)
        return table


@dataclass(frozen=True, slots=True)
class Product:
    """The change s·B·A of one weight: its factors' keys in the file, their rank r, and the scale s.

    A is `(r, in)`, B `(out, r)`, for a convolution followed by A's kernel; a transposed weight is `(in, out)`.
    """

    a: str
    b: str
    rank: int
    scale: float
    transposed: bool
    magnitude: str | None = None
    """The key of DoRA's norms, `(out,)`: the changed weight's rows are rescaled to them (arXiv:2402.09353)."""

    @classmethod
    def of(
        cls, pair: Mapping[str, str], weight: str, dimensions: int, config: LoraConfig, *, turned: bool | None = None
    ) -> "Product":
        """Return the product of the factors with the keys `pair`, scaled as `config` says for `weight`.

        `turned` says whether that weight is `(in, out)`; None leaves it to `config`, which has one word for all modules.
        """
        module = weight.removesuffix(".weight")
        rank = first_match(config.rank_pattern, module, config.r)
        alpha = first_match(config.alpha_pattern, module, config.lora_alpha)
        scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
        embedding = pair["A"].endswith("lora_embedding_A")
        transposed = embedding or (dimensions == 2 and (config.fan_in_fan_out if turned is None else turned))
        return cls(pair["A"], pair["B"], rank, scale, transposed, pair.get("magnitude"))


def read_config(folder: Path) -> LoraConfig | Settings:
    """Return the adapter's configuration. Raises `CheckpointError` unless it makes weights by a formula that is known here."""
    path = folder / CONFIG
    data = read_object(path)
    kind = data.get("peft_type")
    if not isinstance(kind, str) or (kind != "LORA" and kind not in TUNERS):
        msg = f"{path}: `peft_type` is {kind!r}; expected 'LORA' or one of {', '.join(TUNERS)}. If PEFT can merge this kind, {INSTEAD}"
        raise CheckpointError(msg)
    try:
        config = LoraConfig.model_validate(data) if kind == "LORA" else Settings.model_validate(data)
    except ValidationError as error:
        raise CheckpointError(describe(error, str(path), {})) from None
    ignored = _IGNORED
    if isinstance(config, Settings):
        ignored = _IGNORED | {"init_weights", *TUNERS[kind].ignored}
    elif isinstance(config.init_lora_weights, str) and config.init_lora_weights.lower() not in _KEEPS_BASE:
        msg = f"{path}: `init_lora_weights` is {config.init_lora_weights!r}, which changes the base, too; {INSTEAD}"
        raise CheckpointError(msg)
    for key, value in (config.model_extra or {}).items():
        if value and key not in ignored:
            formula = "W + s·B·A alone" if kind == "LORA" else f"those of {kind} as known here"
            msg = f"{path}: `{key}` is {str(value)[:80]}, so the weights may not be {formula}; {INSTEAD}"
            raise CheckpointError(msg)
    return config


def read_stored(folder: Path) -> dict[str, TensorInfo]:
    """Return the checked header of the adapter's weights. Raises `CheckpointError`."""
    weights, pickled = folder / ADAPTER_WEIGHTS, folder / "adapter_model.bin"
    if not weights.is_file() and pickled.exists():
        msg = f"{folder}: only pickle weights ({pickled.name}), which can run code when read; convert them with peft's save_pretrained and give that folder"
        raise CheckpointError(msg)
    if not weights.is_file():
        msg = f"{folder}: no {ADAPTER_WEIGHTS} beside {CONFIG}; expected both, as peft's save_pretrained writes them"
        raise CheckpointError(msg)
    stored = read_header(weights).info
    if not stored:
        raise CheckpointError(f"{weights}: holds no tensor; expected the factors of at least one module")
    return stored


class AdapterFiles:
    """What the folder of an adapter says, before it is put on a base.

    `factors` has the keys of the tensors that change each weight, by part, and `replaced` the key of each tensor that is stored
    complete; both by names of the trained model.
    """

    def __init__(self, path: str | Path) -> None:
        """Read and check the configuration and the header in the folder at `path`. Raises `CheckpointError`."""
        self.path = Path(path)
        self.config = read_config(self.path)
        self.stored = read_stored(self.path)
        self.tuner = TUNERS[self.config.peft_type] if isinstance(self.config, Settings) else None
        self.factors, self.replaced = self._targets(self.config, self.tuner)

    def _targets(
        self, config: LoraConfig | Settings, tuner: Tuner | None
    ) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
        """Return the keys of the tensors that change each weight, and the key of each replaced tensor, by names of the trained model."""
        parts = _LORA if tuner is None else {part: part for part in tuner.parts}
        shared = {} if tuner is None else {part: f"base_model.{part}" for part in tuner.shared}
        for key in shared.values():
            if key not in self.stored:
                msg = (
                    f"{self.path}: no tensor `{key}`, which PEFT draws anew where `save_projection` is false; {INSTEAD}"
                )
                raise CheckpointError(msg)
        pattern = re.compile(rf"(?P<module>.+)\.(?P<part>{'|'.join(map(re.escape, parts))})") if parts else None
        factors: dict[str, dict[str, str]] = {}
        replaced: dict[str, str] = {}
        for key in [key for key in self.stored if key not in shared.values()]:
            name = key.removeprefix(_WRAPPER)
            if match := pattern.fullmatch(name) if pattern else None:
                factors.setdefault(f"{match['module']}.weight", dict(shared))[parts[match["part"]]] = key
            elif ".original_module." not in name:
                # With `bias: all`, PEFT also stores the originals of modules_to_save, and the new ones by a second name.
                target = _WRAPPED.sub("", name)
                if target == name or target not in replaced:
                    replaced[target] = key
        if isinstance(config, LoraConfig):
            needed = ("A", "B", "magnitude") if config.use_dora else ("A", "B")
            for have in factors.values():
                if missing := [part for part in needed if part not in have]:
                    msg = f"{self.path}: tensor `{next(iter(have.values()))}` has no {missing[0]} beside it; expected both factors of every module{', and the norms of DoRA (lora_magnitude_vector)' if config.use_dora else ''}"
                    raise CheckpointError(msg)
                if more := [part for part in have if part not in needed]:
                    msg = f"{self.path}: tensor `{have[more[0]]}` is of DoRA, but `use_dora` is not set in {CONFIG}"
                    raise CheckpointError(msg)
        return factors, replaced
