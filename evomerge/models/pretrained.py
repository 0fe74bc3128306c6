"""Loads and saves complete models with transformers: local folders, safetensors, no code from the folder.

Not to be confused with `evomerge.checkpoints`, which reads single tensors of the same folders without transformers.
"""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from evomerge.checkpoints.folder import read_object
from evomerge.errors import ModelError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@cache
def library() -> Any:
    """Return the package transformers, imported at the first call, since that takes seconds."""
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the library has no types here
    return transformers


@cache  # transformers takes a tenth of a second to list its names
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
    wrong = f"{auto} could not load a model from `{folder}` (config.json and *.safetensors expected)"
    dtype_or_stored = "auto" if dtype is None else dtype
    model = from_pretrained(auto_class(auto), folder, wrong, dtype=dtype_or_stored, use_safetensors=True, **options)
    return cast("PreTrainedModel", model.eval())


def load_tokenizer(folder: str | os.PathLike[str], **options: object) -> "PreTrainedTokenizerBase":
    """Return the tokenizer in `folder`. `options` are passed to transformers, such as `gguf_file="model.gguf"`.

    Raises `ModelError` where the folder has none.
    """
    wrong = f"no tokenizer could be loaded from `{folder}` (tokenizer.json expected)"
    return cast("PreTrainedTokenizerBase", from_pretrained(library().AutoTokenizer, folder, wrong, **options))


def load_padding_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Return the tokenizer in `folder`; without a padding token, it pads with its end token. Raises `ModelError`."""
    tokenizer = load_tokenizer(folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def end_tokens(tokenizer: "PreTrainedTokenizerBase", config: Any, folder: Path, text: Path) -> tuple[int, ...]:
    """Return the tokens that end a text of the model in `folder`, whose `tokenizer` is that in the folder `text`.

    They are the tokenizer's, those of the model's `config`, of `config.json` in another folder of the text, and of `generation_config.json`.
    """
    path = text / "generation_config.json"
    saved = read_object(path).get("eos_token_id") if path.is_file() else None
    configured = getattr(config, "eos_token_id", None)
    if text != folder and (own := text / "config.json").is_file():
        configured = read_object(own).get("eos_token_id")
    ends: set[int] = set()
    for tokens in (tokenizer.eos_token_id, configured, saved):
        ends.update(tokens if isinstance(tokens, list) else [] if tokens is None else [tokens])
    return tuple(sorted(ends))


def load_config(folder: Path) -> Any:
    """Return the configuration in `folder`, an object of transformers. Raises `ModelError`."""
    return from_pretrained(
        library().AutoConfig, folder, f"no configuration could be loaded from `{folder}` (config.json expected)"
    )


def load_image_processor(folder: str | os.PathLike[str]) -> Any:
    """Return what turns images into pixel values as the model in `folder` takes them; the same without torchvision as with it.

    Raises `ModelError` where the folder has none.
    """
    wrong = f"no image processor could be loaded from `{folder}` (preprocessor_config.json expected)"
    return from_pretrained(library().AutoImageProcessor, folder, wrong, backend="pil")


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
        raise ModelError(f"`model_type` must name an architecture of transformers, got `{model_type}`") from error
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


def from_pretrained(kind: Any, folder: str | os.PathLike[str], wrong: str, **options: object) -> Any:
    """Return an object of a class `kind` of transformers, loaded from a local folder without running its code.

    Raises `ModelError`, which says `wrong`. A missing folder raises, too: transformers takes it for a name on the hub.
    """
    if not Path(folder).is_dir():
        raise ModelError(f"expected a folder with a checkpoint, but there is none at `{folder}`")
    try:
        return kind.from_pretrained(Path(folder), local_files_only=True, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{wrong}: {error}") from error


def keeps_all(cache: object) -> bool:
    """Return whether what a model keeps of the tokens that it has read is keys and values of all of them, layer by layer, and nothing else."""
    from transformers import cache_utils

    layers = getattr(cache, "layers", [None])
    return type(cache) is cache_utils.DynamicCache and all(type(layer) is cache_utils.DynamicLayer for layer in layers)
