"""Loads and saves complete models with transformers: local folders, safetensors, no code from the folder.

Not to be confused with `evomerge.checkpoints`, which reads single tensors of the same folders without transformers.
"""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from evomerge.errors import ModelError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@cache
def library() -> Any:
    """Return the package transformers, imported at the first call, since that takes seconds."""
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the library has no types here
    return transformers


def auto_class(auto: str) -> Any:
    """Return the transformers class that chooses a model's class from its configuration, such as `AutoModel`.

    Raises `ModelError` where transformers has no such `Auto…` class.
    """
    classes = [name for name in dir(library()) if name.startswith("AutoModel")]
    if auto not in classes:
        msg = f"`auto` must name an AutoModel… class of transformers, got `{auto}`; {nearest(auto, classes)}"
        raise ModelError(msg)
    return getattr(library(), auto)


def load_model(
    folder: str | os.PathLike[str],
    auto: str = "AutoModel",
    dtype: torch.dtype | None = None,
    **options: object,
) -> "PreTrainedModel":
    """Return the model in `folder`, on the CPU and in evaluation mode.

    `dtype` None keeps the dtype on disk. `options` are passed to transformers, such as `attn_implementation="eager"`.
    Raises `ModelError` where transformers cannot load a model from safetensors in the folder.
    """
    folder = _local(folder)
    try:
        model = auto_class(auto).from_pretrained(
            folder,
            dtype="auto" if dtype is None else dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **options,
        )
    except (OSError, ValueError, KeyError) as error:
        msg = f"{auto} could not load a model from `{folder}` (config.json and *.safetensors expected): {error}"
        raise ModelError(msg) from error
    return cast("PreTrainedModel", model.eval())


def load_tokenizer(folder: str | os.PathLike[str], **options: object) -> "PreTrainedTokenizerBase":
    """Return the tokenizer in `folder`. `options` are passed to transformers, such as `gguf_file="model.gguf"`.

    Raises `ModelError` where the folder has none.
    """
    folder = _local(folder)
    try:
        tokenizer = library().AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        )
    except (OSError, ValueError, KeyError) as error:
        msg = f"no tokenizer could be loaded from `{folder}` (tokenizer.json expected): {error}"
        raise ModelError(msg) from error
    return cast("PreTrainedTokenizerBase", tokenizer)


def new_model(
    config: Mapping[str, Any], auto: str = "AutoModel", dtype: torch.dtype | None = None
) -> "PreTrainedModel":
    """Return a model with random weights and the configuration `config` (`model_type` and its settings).

    The weights are drawn from torch's global generator. `dtype` None is fp32. Raises `ModelError` for a `model_type` that
    transformers lacks.
    """
    settings = dict(config)
    model_type = settings.pop("model_type", None)
    try:
        model_config = library().AutoConfig.for_model(model_type, **settings)
    except ValueError as error:
        msg = f"`model_type` must name an architecture of transformers, got `{model_type}`"
        raise ModelError(msg) from error
    model = auto_class(auto).from_config(model_config, dtype=dtype or torch.float32)
    return cast("PreTrainedModel", model.eval())


def save_model(
    model: "PreTrainedModel", folder: str | os.PathLike[str], tokenizer: "PreTrainedTokenizerBase | None" = None
) -> None:
    """Write `model` to `folder` as an ordinary checkpoint, with config.json and, if given, the tokenizer."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _local(folder: str | os.PathLike[str]) -> Path:
    """Return `folder` as a path. Raises `ModelError` for a missing one, which transformers takes for a name on the hub."""
    path = Path(folder)
    if not path.is_dir():
        msg = f"expected a folder with a checkpoint, but there is none at `{path}`"
        raise ModelError(msg)
    return path
