"""LiveModel: a module in memory that takes one candidate after the other, in place.

It is made once, from the base's folder. Not to be confused with `evomerge.models.pretrained`, which loads
whole models and saves them.
"""

import json
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from evomerge.checkpoints.folder import Checkpoint, Folder, first_difference
from evomerge.checkpoints.stack import Stacked
from evomerge.errors import ModelError
from evomerge.models.assembly import Assembly
from evomerge.models.blocks import find_blocks
from evomerge.models.loaders import Loader, Own, Pretrained
from evomerge.models.prefixes import Prefixes
from evomerge.models.pretrained import load_tokenizer
from evomerge.models.tensor_mapping import TensorMapping, find_mappings

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
        module: str | None = None,
    ) -> None:
        """Make the model of the checkpoint in `folder`, to compute in `precision` on `device`.

        `shared` is how many bytes of hidden states may be kept for stacks that begin alike.

        `auto` names the transformers class that chooses the model's class, such as `AutoModelForCausalLM`;
        None takes the class that `config.json` names under `architectures`, and `AutoModel` where it names
        none. `module` names a function of the user's to make it instead, `FILE.py:FUNCTION`: called with the folder, it
        returns a torch module whose state has the checkpoint's names. Raises `ModelError` where the folder is no
        model of transformers, or where any parameter would not be filled from the checkpoint, and `CheckpointError`
        where the folder cannot be read.
        """
        self.folder = Path(folder)
        self.precision = precision
        if precision not in PRECISIONS:
            msg = f"`precision` must be one of {', '.join(PRECISIONS)}, got `{precision}`"
            raise ModelError(msg)
        base = Folder(self.folder)
        loader: Loader = Pretrained(base, auto) if module is None else Own(base, module)
        made = loader.load_base({name: base.tensor(name) for name in base.info}, PRECISIONS[precision])
        for held in chain(made.parameters(), made.buffers()):
            held.data = held.data.clone()  # what was loaded may be a view of the file
        self.module = cast("PreTrainedModel", made.to(device).requires_grad_(requires_grad=False))
        self._info = {name: entry for name, entry in base.info.items() if entry.dtype.is_floating_point}
        self.mappings = find_mappings({name: entry.shape for name, entry in self._info.items()}, loader.load)
        self._views, self._twins = self._bind(self.mappings)
        self._stacked = False
        self.prefixes = Prefixes(shared)
        self._prove(base)
        self.unused = tuple(name for name in self._info if name not in self._views.keys() | self._twins.keys())
        base.forget()

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.module.parameters()).device

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The stack of repeated blocks. Raises `ModelError` where the module does not have exactly one."""
        return find_blocks(self.module)

    @cached_property
    def _assembly(self) -> Assembly:
        return Assembly(self.module, self.mappings, self.prefixes)

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
            mapping, view = places[0]
            if len(places) == 1 and mapping.whole(self._info[name].shape, view.shape):
                checkpoint.write(name, view)
                continue
            tensor = checkpoint.tensor(name)
            for mapping, view in places:
                view.copy_(mapping.cut(tensor, view.shape))

    def _check_ties(self, checkpoint: Checkpoint) -> None:
        for name, other in self._twins.items():
            if not torch.equal(checkpoint.tensor(name), checkpoint.tensor(other)):
                msg = (
                    f"tensors `{name}` and `{other}` are tied in the base `{self.folder}`, and differ in the candidate"
                )
                raise ModelError(msg)

    def _bind(
        self, mappings: list[TensorMapping]
    ) -> tuple[dict[str, list[tuple[TensorMapping, Tensor]]], dict[str, str]]:
        """Return the mappings of each tensor with the memory that they fill, each piece of memory once.

        The second mapping is from a tensor to the one that has its memory already, as in a checkpoint that holds
        both of a tied pair. Raises `ModelError` naming the first parameter that is not filled.
        """
        held = self.module.state_dict()
        filled = dict.fromkeys(held, 0)
        views: dict[str, list[tuple[TensorMapping, Tensor]]] = {}
        twins: dict[str, str] = {}
        owners: dict[tuple[object, ...], str] = {}
        for mapping in mappings:
            view = held[mapping.target][mapping.filled]
            filled[mapping.target] += view.numel()
            memory = (view.data_ptr(), view.shape, view.stride())
            if memory not in owners:
                owners[memory] = mapping.source
                views.setdefault(mapping.source, []).append((mapping, view))
            elif owners[memory] != mapping.source:
                twins[mapping.source] = owners[memory]
        for target, parameter in self.module.named_parameters(remove_duplicate=False):
            if filled.get(target) != parameter.numel():
                msg = f"parameter `{target}` of {type(self.module).__name__} is not filled from `{self.folder}`"
                raise ModelError(msg)
        return views, twins

    def _prove(self, base: Folder) -> None:
        """Raise `ModelError` unless writing the base would change nothing: loading might calculate, too."""
        for source, places in self._views.items():
            tensor = base.tensor(source)
            for mapping, view in places:
                expected = mapping.cut(tensor, view.shape).to(view)
                if not torch.allclose(view, expected, rtol=0, atol=0, equal_nan=True):
                    msg = f"tensor `{source}` is changed by loading it into `{mapping.target}`; it cannot be merged"
                    raise ModelError(msg)
