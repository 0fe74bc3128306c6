"""Loaders: create modules of one class from tensors, a class of transformers or one of the user."""

import copy
import importlib
import importlib.util
import inspect
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evomerge.checkpoints.aligned import Aligned
from evomerge.checkpoints.folder import Folder, differences
from evomerge.errors import ModelError, nearest
from evomerge.models.blocks import stacks
from evomerge.models.pretrained import auto_class, from_pretrained, library

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class UserModule:
    """Modules from a function of the user, such as a network that transformers lacks."""

    def __init__(self, base: Folder | Aligned, where: str) -> None:
        """Import the function `where`, `FILE.py:FUNCTION`. Raises `ModelError`."""
        self._folder = base.path
        self._where = where
        self._function = _import(where)

    def load_base(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> nn.Module:
        """Return a new module in evaluation mode, whose state is exactly `tensors`. Raises `ModelError`."""
        module = self._create()
        for name, came, expected in differences(tensors, module.state_dict()):
            msg = f"{self._folder}: tensor `{name}`: {came}; expected {expected}, as in the module of {self._where}"
            raise ModelError(msg)
        module.load_state_dict(dict(tensors))
        return module.to(dtype).eval()

    def load(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the tensors in fp32 by their names in the module, which are the same; tied ones hold the last."""
        module = self._create()
        module.load_state_dict(dict(tensors), strict=False)  # only floating-point tensors are given
        return module.state_dict()

    def _create(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            module = self._function(self._folder)
        if not isinstance(module, nn.Module):
            raise ModelError(f"{self._where} returned {type(module).__name__}; expected a torch.nn.Module")
        return module


def _import(where: str) -> Callable[[Path], object]:
    file, _, name = where.rpartition(":")
    path = Path(file)
    if not name.isidentifier() or path.suffix != ".py" or not path.is_file():
        raise ModelError(f"`module` must be FILE.py:FUNCTION with an existing file, got `{where}`")
    spec = importlib.util.spec_from_file_location(f"evomerge_module_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(code)
    except Exception as error:
        raise ModelError(f"`module`: {path} cannot be imported: {type(error).__name__}: {error}") from error
    function: Callable[[Path], object] | None = getattr(code, name, None)
    if not callable(function):
        msg = f"`module`: {path} has no function `{name}`; {nearest(name, [key for key in vars(code) if not key.startswith('_')])}"
        raise ModelError(msg)
    return function


def check_plain(base: Folder | Aligned) -> None:
    """Raise `ModelError` for a model that transformers loads only with the folder's code, or that is quantised."""
    for key, why in (("auto_map", "needs the folder's code"), ("quantization_config", "is quantised")):
        if key in base.config:
            msg = f"{base.settings / 'config.json'}: the model {why} (`{key}`); expected a plain architecture of transformers"
            raise ModelError(msg)


class Pretrained:
    """Modules of transformers. Only `config.json` is read from the folder, and none of its code is run."""

    def __init__(self, base: Folder | Aligned, auto: str | None) -> None:
        """Choose the class, see `LiveModel`. Raises `ModelError` where there is none."""
        self._path = base.settings / "config.json"
        check_plain(base)
        wrong = f"{self._path}: not the configuration of an architecture of transformers"
        self._config = from_pretrained(library().AutoConfig, base.settings, wrong)
        self._class = self._named_class(base) if auto is None else self._chosen_class(auto)
        self._options: dict[str, Any] = {}
        self._renamings: list[Any] | None = None

    def load_base(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> "PreTrainedModel":
        """Return a new module in evaluation mode, whose parameters are all among `tensors`.

        A pooler without weights is left out, and so are tensors outside of blocks without a place. Raises `ModelError`
        naming the first tensor that is missing, has another shape, or is not used.
        """
        module, report = self._load(tensors, dtype)
        if report["missing_keys"] and "add_pooling_layer" in inspect.signature(self._class.__init__).parameters:
            self._options = {"add_pooling_layer": False}
            module, report = self._load(tensors, dtype)
        lists = [name.removeprefix(f"{module.base_model_prefix}.") for name in stacks(module)]
        for name in sorted(report["missing_keys"]):
            msg = f"the model needs a tensor `{name}`, which the checkpoint does not have; it would be random"
            raise self._error(msg)
        for name, came, expected in sorted(report["mismatched_keys"]):
            msg = f"expected shape {list(expected)} for `{name}`, got {list(came)}"
            raise self._error(msg)
        for name in sorted(report["unexpected_keys"]):
            if any(f".{stack}." in f".{name}" for stack in lists):
                msg = f"the checkpoint has a tensor `{name}` in a block, for which the model has no place"
                raise self._error(msg)
        return module

    def load(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the tensors of a new module with these `tensors`, in fp32, by their names in the module."""
        return self._load(tensors, torch.float32)[0].state_dict()

    def create_empty(self, more_tokens: int = 0) -> "PreTrainedModel":
        """Return a module on the device `meta`, whose parameters are tied as the configuration says.

        It has `more_tokens` tokens than the configuration says, if that gives their number.
        """
        config = self._config
        if more_tokens:
            config = copy.deepcopy(config)
            text = config.get_text_config()
            if isinstance(getattr(text, "vocab_size", None), int):
                text.vocab_size += more_tokens
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            module: PreTrainedModel = self._class._from_config(config)  # noqa: SLF001  # the constructor ties less
        return module

    def translate(self, name: str) -> str:
        """Return a tensor's name in the module, by its name in a file, where transformers only renames it on loading."""
        if self._renamings is None:
            conversions = importlib.import_module("transformers.conversion_mapping")
            found = conversions.get_model_conversion_mapping(self.create_empty())
            self._renamings = [rule for rule in found if not hasattr(rule, "operations")]
        for rule in self._renamings:
            name = rule.rename_source_key(name)[0]
        return name

    def _load(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> "tuple[PreTrainedModel, Mapping[str, Any]]":
        with _reports() as reports, torch.random.fork_rng(devices=[]):
            try:
                module, report = self._class.from_pretrained(
                    None,
                    config=self._config,
                    state_dict=dict(tensors),
                    dtype=dtype,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                    **self._options,
                )
            except RuntimeError as error:
                # The exception names no tensor, but the report of a failed fusion does.
                name = next(iter(re.findall(r"destined for ([\w.]+\w)", "".join(reports))), None)
                what = f"parameter `{name}` cannot be built from the checkpoint's tensors; is one missing?"
                raise self._error(str(error) if name is None else what) from error
        return module, report

    def _named_class(self, base: Folder | Aligned) -> Any:
        named = base.config.get("architectures")
        if not named:
            return self._chosen_class("AutoModel")
        named_class = getattr(library(), str(named[0]), None)
        if not (isinstance(named_class, type) and issubclass(named_class, library().PreTrainedModel)):
            msg = f"{self._path}: `architectures` names `{named[0]}`, which is no model of transformers {library().__version__}; correct it, or give `auto`, such as AutoModelForCausalLM"
            raise ModelError(msg)
        return named_class

    def _chosen_class(self, auto: str) -> Any:
        chooser = auto_class(auto)
        try:
            with torch.device("meta"):
                return type(chooser.from_config(self._config, trust_remote_code=False))
        except ValueError as error:
            msg = f"{self._path}: {auto} has no class for a model of type `{self._config.model_type}`"
            raise ModelError(msg) from error

    def _error(self, what: str) -> ModelError:
        msg = f"{self._path.parent}: {what}; expected a checkpoint of {self._class.__name__}, or another `auto`"
        return ModelError(msg)


@contextmanager
def _reports() -> Iterator[list[str]]:
    """Collect what transformers reports on loading instead of printing it: here it becomes an error or is intended."""
    messages: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        messages.append(record.getMessage())
        return False

    logger = logging.getLogger(library().PreTrainedModel.__module__)
    logger.addFilter(collect)
    try:
        yield messages
    finally:
        logger.removeFilter(collect)
