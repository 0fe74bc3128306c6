"""LiveModel: a module in memory that takes one candidate after the other, in place.

It is made once, from the base's folder. Not to be confused with `evomerge.models.pretrained`, which loads
whole models and saves them.
"""

import inspect
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from evomerge.checkpoint import Checkpoint, Folder, first_difference
from evomerge.errors import ModelError
from evomerge.models.assembly import Assembly
from evomerge.models.blocks import find_blocks, stacks
from evomerge.models.landing import Landing, find_landings
from evomerge.models.prefixes import Prefixes
from evomerge.models.pretrained import auto_class, library, load_tokenizer
from evomerge.stack import Stacked

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class LiveModel:
    """A runnable model whose weights are those of the candidate written last, at first the base's.

    `module` is in evaluation mode and its parameters need no gradients. `unused` names the checkpoint's
    tensors that the model's class has no place for, such as another head. Integer tensors stay the base's.
    """

    def __init__(
        self,
        folder: str | Path,
        auto: str | None = None,
        precision: Literal["float32", "bfloat16"] = "float32",
        device: str = "cpu",
        shared: int = 0,
    ) -> None:
        """Make the model of the checkpoint in `folder`, to compute in `precision` on `device`.

        `shared` is how many bytes of hidden states may be kept for stacks that begin alike.

        `auto` names the transformers class that chooses the model's class, such as `AutoModelForCausalLM`;
        None takes the class that `config.json` names under `architectures`, and `AutoModel` where it names
        none. Raises `ModelError` where the folder is no model of transformers, or where any parameter would
        not be filled from the checkpoint, and `CheckpointError` where the folder cannot be read.
        """
        self.folder = Path(folder)
        self.precision = precision
        if precision not in PRECISIONS:
            msg = f"`precision` must be one of {', '.join(PRECISIONS)}, got `{precision}`"
            raise ModelError(msg)
        base = Folder(self.folder)
        loader = _Loader(base, auto)
        module = loader.load_base({name: base.tensor(name) for name in base.info}, PRECISIONS[precision])
        for held in chain(module.parameters(), module.buffers()):
            held.data = held.data.clone()  # what was loaded may be a view of the file
        self.module: PreTrainedModel = module.to(device).requires_grad_(requires_grad=False)  # type: ignore[arg-type]  # its stub takes no name
        self._info = {name: entry for name, entry in base.info.items() if entry.dtype.is_floating_point}
        self.landings = find_landings({name: entry.shape for name, entry in self._info.items()}, loader.load)
        self._views, self._twins = self._bind(self.landings)
        self._stacked = False
        self.prefixes = Prefixes(shared)
        self._prove(base)
        self.unused = tuple(name for name in self._info if name not in self._views.keys() | self._twins.keys())
        base.forget()

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.module.device

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The stack of repeated blocks. Raises `ModelError` where the module does not have exactly one."""
        return find_blocks(self.module)

    @cached_property
    def _assembly(self) -> Assembly:
        return Assembly(self.module, self.landings, self.prefixes)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of the base's folder; it pads with its end token where it has no padding token of its own."""
        tokenizer = load_tokenizer(self.folder)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        if getattr(self.module.config, "pad_token_id", None) is None:
            self.module.config.pad_token_id = tokenizer.pad_token_id  # classifiers on decoders look for it there
        return tokenizer

    @cached_property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end a written text: the tokenizer's, the configuration's, and those in `generation_config.json`."""
        path = self.folder / "generation_config.json"
        try:
            saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            msg = f"{path}: not valid JSON ({error})"
            raise ModelError(msg) from None
        found: set[int] = set()
        for tokens in (
            self.tokenizer.eos_token_id,
            getattr(self.module.config, "eos_token_id", None),
            saved.get("eos_token_id"),
        ):
            found.update(tokens if isinstance(tokens, list) else [] if tokens is None else [tokens])
        return tuple(sorted(found))

    @torch.inference_mode()
    def generate(self, ids: Tensor, mask: Tensor, new_tokens: int) -> Tensor:
        """Return the up to `new_tokens` likeliest next tokens, chosen one by one, `(prompts, new)`, padded after an end token.

        `ids` and `mask` are `(prompts, tokens)`, padded on the left.
        """
        module: Any = self.module
        written: Tensor = module.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            num_beams=1,
            max_new_tokens=new_tokens,
            eos_token_id=list(self.end_tokens) or None,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return written[:, ids.shape[1] :]

    @torch.no_grad()
    def write(self, checkpoint: Checkpoint) -> None:
        """Make this the model of `checkpoint`, by writing its tensors over those in memory; a stack's are put in their place.

        A tensor is rounded to the checkpoint's storage dtype before it is cast to the precision of the model,
        so that the candidate in memory is the one that would be saved. Raises `ModelError` naming the first
        tensor that differs from the base in name or shape, or is no longer tied; nothing is written then.
        """
        if isinstance(checkpoint, Stacked):
            self._check_ties(checkpoint)
            self._stacked = True
            self._assembly.show(checkpoint)
            return
        if self._stacked:
            self._stacked = False
            self._assembly.put_back()
        given = {name: entry for name, entry in checkpoint.info.items() if entry.dtype.is_floating_point}
        for name in first_difference(self._info, given):
            came, wanted = (
                str(list(side[name].shape)) if name in side else "no such tensor" for side in (given, self._info)
            )
            msg = f"tensor `{name}` of the candidate: expected {wanted} as in the base `{self.folder}`, got {came}"
            raise ModelError(msg)
        self._check_ties(checkpoint)
        for name, places in self._views.items():
            landing, view = places[0]
            if len(places) == 1 and landing.whole(self._info[name].shape, view.shape):
                checkpoint.write(name, view)
                continue
            tensor = checkpoint.tensor(name)
            for landing, view in places:
                view.copy_(landing.cut(tensor, view.shape))

    def _check_ties(self, checkpoint: Checkpoint) -> None:
        for name, other in self._twins.items():
            if not torch.equal(checkpoint.tensor(name), checkpoint.tensor(other)):
                msg = (
                    f"tensors `{name}` and `{other}` are tied in the base `{self.folder}`, and differ in the candidate"
                )
                raise ModelError(msg)

    def _bind(self, landings: list[Landing]) -> tuple[dict[str, list[tuple[Landing, Tensor]]], dict[str, str]]:
        """Return the landings of each tensor with the memory that they fill, each piece of memory once.

        The second mapping is from a tensor to the one that has its memory already, as in a checkpoint that holds
        both of a tied pair. Raises `ModelError` naming the first parameter that is not filled.
        """
        held = self.module.state_dict()
        filled = dict.fromkeys(held, 0)
        views: dict[str, list[tuple[Landing, Tensor]]] = {}
        twins: dict[str, str] = {}
        owners: dict[tuple[object, ...], str] = {}
        for landing in landings:
            view = held[landing.target][landing.filled]
            filled[landing.target] += view.numel()
            memory = (view.data_ptr(), view.shape, view.stride())
            if memory not in owners:
                owners[memory] = landing.source
                views.setdefault(landing.source, []).append((landing, view))
            elif owners[memory] != landing.source:
                twins[landing.source] = owners[memory]
        for target, parameter in self.module.named_parameters(remove_duplicate=False):
            if filled.get(target) != parameter.numel():
                msg = f"parameter `{target}` of {type(self.module).__name__} is not filled from `{self.folder}`"
                raise ModelError(msg)
        return views, twins

    def _prove(self, base: Folder) -> None:
        """Raise `ModelError` unless writing the base would change nothing: loading might calculate, too."""
        for source, places in self._views.items():
            tensor = base.tensor(source)
            for landing, view in places:
                expected = landing.cut(tensor, view.shape).to(view)
                if not torch.allclose(view, expected, rtol=0, atol=0, equal_nan=True):
                    msg = f"tensor `{source}` is changed by loading it into `{landing.target}`; it cannot be merged"
                    raise ModelError(msg)


class _Loader:
    """Makes modules of one class from tensors. Of the folder, only `config.json` is read, and none of its code is run."""

    def __init__(self, base: Folder, auto: str | None) -> None:
        self._path = base.path / "config.json"
        for key, why in (("auto_map", "needs code of its own"), ("quantization_config", "is quantised")):
            if key in base.config:
                msg = f"{self._path}: the model {why} (`{key}`); expected a plain architecture of transformers"
                raise ModelError(msg)
        try:
            self._config = library().AutoConfig.from_pretrained(
                base.path, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            msg = f"{self._path}: not the configuration of an architecture that transformers knows: {error}"
            raise ModelError(msg) from error
        self._class = self._named_class(base) if auto is None else self._chosen_class(auto)
        self._options: dict[str, Any] = {}

    def load_base(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> "PreTrainedModel":
        """Return a new module whose parameters are all among `tensors`; a pooler without weights is left out.

        Raises `ModelError` naming the first tensor that is missing, has another shape, or has no place in a
        block.
        """
        module, report = self._load(tensors, dtype)
        if report["missing_keys"] and "add_pooling_layer" in inspect.signature(self._class.__init__).parameters:
            self._options = {"add_pooling_layer": False}
            module, report = self._load(tensors, dtype)
        lists = [name.removeprefix(f"{module.base_model_prefix}.") for name in stacks(module)]
        for name in sorted(report["missing_keys"]):
            msg = f"the model needs a tensor `{name}`, which the checkpoint does not have; it would be random"
            raise ModelError(self._about(msg))
        for name, came, expected in sorted(report["mismatched_keys"]):
            msg = f"expected shape {list(expected)} for `{name}`, got {list(came)}"
            raise ModelError(self._about(msg))
        for name in sorted(report["unexpected_keys"]):
            if any(f".{stack}." in f".{name}" for stack in lists):
                msg = f"the checkpoint has a tensor `{name}` in a block, for which the model has no place"
                raise ModelError(self._about(msg))
        return module

    def load(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the tensors of a new module with these `tensors`, in fp32, by their names in the module."""
        return self._load(tensors, torch.float32)[0].state_dict()

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
                # The exception names no tensor, the report of a failed fusion does.
                name = next(iter(re.findall(r"destined for ([\w.]+\w)", "".join(reports))), None)
                what = f"parameter `{name}` cannot be made from the checkpoint's tensors; is one missing?"
                raise ModelError(self._about(str(error) if name is None else what)) from error
        return module, report

    def _named_class(self, base: Folder) -> Any:
        named = base.config.get("architectures")
        if not named:
            return self._chosen_class("AutoModel")
        found = getattr(library(), str(named[0]), None)
        if not (isinstance(found, type) and issubclass(found, library().PreTrainedModel)):
            msg = f"{self._path}: `architectures` names `{named[0]}`, which is no model of transformers {library().__version__}; "
            msg += "mend it, or give `auto`, such as AutoModelForCausalLM"
            raise ModelError(msg)
        return found

    def _chosen_class(self, auto: str) -> Any:
        chooser = auto_class(auto)
        try:
            with torch.device("meta"):
                return type(chooser.from_config(self._config, trust_remote_code=False))
        except ValueError as error:
            msg = f"{self._path}: {auto} has no class for a model of type `{self._config.model_type}`"
            raise ModelError(msg) from error

    def _about(self, what: str) -> str:
        return f"{self._path.parent}: {what}; expected a checkpoint of {self._class.__name__}, or another `auto`"


@contextmanager
def _reports() -> Iterator[list[str]]:
    """Collect what transformers reports on loading, instead of printing it: it is raised here, or meant so."""
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
