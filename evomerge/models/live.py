"""LiveModel: a module in memory, created from the base's folder, whose weights each candidate overwrites.

Not to be confused with `evomerge.models.pretrained`, which loads and saves complete models.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from evomerge.checkpoints import hub
from evomerge.checkpoints.aligned import Aligned
from evomerge.checkpoints.folder import Checkpoint, Folder, differences
from evomerge.checkpoints.heads import Head
from evomerge.checkpoints.stack import Stacked
from evomerge.errors import ModelError
from evomerge.models.assembly import Assembly
from evomerge.models.decoding import Done, write_greedily
from evomerge.models.heads import Heads
from evomerge.models.loaders import Pretrained, UserModule
from evomerge.models.prefixes import Prefixes
from evomerge.models.pretrained import end_tokens, load_padding_tokenizer
from evomerge.models.shared_blocks import SharedBlocks
from evomerge.models.tensor_mapping import TensorMapping, find_mappings
from evomerge.placement import PRECISIONS, Precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LiveModel:
    """A runnable model with the weights of the candidate written last, initially those of the base.

    `module` is in evaluation mode and its parameters need no gradients. `unused` names the checkpoint's tensors that the
    model's class does not use, such as another head. Integer tensors stay those of the base.
    """

    def __init__(
        self,
        folder: str | Path | Folder | Aligned,
        auto: str | None = None,
        precision: Precision = "float32",
        device: str | torch.device = "cpu",
        shared: int = 0,
        module: str | None = None,
        tokenizer: Path | None = None,
        heads: Mapping[str, Head] | None = None,
    ) -> None:
        """Load the model of the checkpoint in `folder`, of an open one, or of `org/name` on the hub, to compute in `precision` on `device`.

        `auto` names the transformers class that chooses the model's class, such as `AutoModelForCausalLM`; None takes the
        class under `architectures` in `config.json`, else `AutoModel`. `module`, `FILE.py:FUNCTION`, names a function that
        creates the module instead: called with the folder, it returns a torch module whose state has the checkpoint's
        names. `tokenizer` is the folder of another model whose tokenizer and end tokens this one has. Up to `shared` bytes of
        hidden states are kept for candidates that begin with the same layers. With `heads`, those of a pool whose models have heads
        of their own, a candidate is a backbone; see `use_head`. `auto` is then the class of the heads. Raises `ModelError` where the folder cannot be loaded
        or leaves a parameter unfilled, `CheckpointError` where it cannot be read.
        """
        if precision not in PRECISIONS:
            raise ModelError(f"`precision` must be one of {', '.join(PRECISIONS)}, got `{precision}`")
        base = Folder(hub.resolve(hub.locate(folder))) if isinstance(folder, str | Path) else folder
        self.folder, self.precision = base.path, precision
        self._text = tokenizer or self.folder
        own_head = auto if not heads else "AutoModel" if isinstance(base, Aligned) else None
        loader = Pretrained(base, own_head) if module is None else UserModule(base, module)
        loaded = loader.load_base({name: base.tensor(name) for name in base.info}, PRECISIONS[precision])
        for tensor in chain(loaded.parameters(), loaded.buffers()):
            tensor.data = tensor.data.clone()  # it may be a view of the file
        self.module = cast("PreTrainedModel", loaded.to(device).requires_grad_(requires_grad=False))
        head = getattr(self.module, "get_output_embeddings", lambda: None)()
        if isinstance(head, torch.nn.Linear):
            head.register_forward_pre_hook(_contiguous)
        self._info = {name: entry for name, entry in base.info.items() if entry.dtype.is_floating_point}
        self.mappings = find_mappings({name: entry.shape for name, entry in self._info.items()}, loader.load)
        self._loader = loader
        self._views, self._twins = self._bind(self.mappings)
        self._stacked = False
        self.prefixes = Prefixes(shared)
        self.watched = False
        """Whether statistics are collected of what its parts see: tasks then run each sequence whole."""
        self.unused = tuple(name for name in self._info if name not in self._views.keys() | self._twins.keys())
        self._whole = self.module
        self.shared_blocks = SharedBlocks(self._whole, shared, lambda: self.prefixes.nbytes)
        self._heads: Heads | None = None
        self._renumbered = bool(heads) and isinstance(base, Aligned)
        if heads:
            if module is not None:
                raise ModelError(f"`module: {module}` has one head; leave out `module`, or give models without heads")
            common = heads["base"].shared.keys()
            targets = [mapping.target for mapping in self.mappings if mapping.source in common]
            self._heads = Heads(self._whole, targets, heads, auto, PRECISIONS[precision])
            self._info = {name: entry for name, entry in self._info.items() if name in common}
            self._views = {name: places for name, places in self._views.items() if name in common}
            self._twins = {name: other for name, other in self._twins.items() if name in common}
            for headed in self._heads.modules.values():
                self.shared_blocks.watch(headed)
        base.forget()

    @property
    def device(self) -> torch.device:
        """The device that the model computes on."""
        return next(self.module.parameters()).device

    @property
    def heads(self) -> tuple[str, ...]:
        """The experts whose heads the model can have; none in a pool whose heads are merged."""
        return () if self._heads is None else tuple(self._heads.modules)

    def use_head(self, name: str | None) -> None:
        """Give `module` the head of the expert `name`, one of `heads`; None is the head of the base, if it has one."""
        if self._heads is not None:
            self.module, self.shared_blocks.variant = self._heads.put_on(name), name

    @cached_property
    def _assembly(self) -> Assembly:
        return Assembly(self.module, self.mappings, self.prefixes)

    @property
    def causal(self) -> bool:
        """Whether it is a causal language model."""
        return bool(self.module.can_generate())

    @property
    def positions(self) -> int | None:
        """The most tokens of a sequence, None where the model's class does not tell."""
        limit = getattr(getattr(self.module, "config", None), "max_position_embeddings", None)
        return limit if isinstance(limit, int) else None

    @property
    def embedded(self) -> int | None:
        """The number of rows of the embedding of tokens, None where there is none to be found."""
        embedding = self.module.get_input_embeddings() if hasattr(self.module, "get_input_embeddings") else None
        weight = getattr(embedding, "weight", None)
        return len(weight) if isinstance(weight, Tensor) else None

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer, by default that of the base's folder; without a padding token, it pads with its end token."""
        tokenizer = load_padding_tokenizer(self._text)
        for module in (self._whole, *(() if self._heads is None else self._heads.modules.values())):
            config = getattr(module, "config", None)  # None: a module of the user
            if config is not None and (self._renumbered or getattr(config, "pad_token_id", None) is None):
                config.pad_token_id = tokenizer.pad_token_id  # classifiers on decoders read it there
        return tokenizer

    @cached_property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end a generated text: the tokenizer's, the configuration's, and those in `generation_config.json`."""
        return end_tokens(self.tokenizer, self.module.config, self.folder, self._text)

    @torch.inference_mode()
    def generate(
        self,
        ids: Tensor,
        mask: Tensor,
        new_tokens: int,
        done: Done | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Return up to `new_tokens` next tokens by greedy decoding, `(prompts, new)`, padded after an end token.

        `ids` and `mask` are `(prompts, tokens)`, padded on the left. `done` takes the number of a prompt and its next tokens so far,
        and says whether it needs no more: it is then padded, too, and the pass over the batch ends with the last one that does.
        `cache` has the keys and values of the prompts but for their last token, or of fewer, and is changed.
        """
        ends, padding = self.end_tokens, self.tokenizer.pad_token_id
        return write_greedily(self.module, ids, mask, new_tokens, ends=ends, padding=padding, done=done, cache=cache)

    @torch.no_grad()
    def refit(self, checkpoint: Checkpoint) -> None:
        """Copy the tensors of `checkpoint` into the module; for a stack, exchange the module's layers.

        A tensor is rounded to the checkpoint's storage dtype before it is cast to the precision of the model, so that the
        candidate in memory is the one that would be saved. A head that is tied in the base and differs in the candidate
        gets memory of its own, once for all. Raises `ModelError` naming the first tensor that differs from the base in name
        or shape, or can only be tied; nothing is written then.
        """
        self._untie(checkpoint)
        if isinstance(checkpoint, Stacked):
            self._stacked = True
            self.shared_blocks.pause()
            self._assembly.show(checkpoint)
            return
        if self._stacked:
            self._stacked = False
            self._assembly.restore()
        info = {name: entry for name, entry in checkpoint.info.items() if entry.dtype.is_floating_point}
        for name, came, wanted in differences(info, self._info):
            msg = f"tensor `{name}` of the candidate: {came}; expected {wanted}, as in the base `{self.folder}`"
            raise ModelError(msg)
        self.shared_blocks.begin()
        try:
            for name, places in self._views.items():
                mapping, view = places[0]
                if len(places) == 1 and mapping.is_identity(self._info[name].shape, view.shape):
                    self.shared_blocks.write(view, partial(checkpoint.write, name))
                    continue
                tensor = self._whole_tensor(checkpoint, name)
                for mapping, view in places:
                    self.shared_blocks.write(view, partial(_copy_into, mapping.cut(tensor, view.shape)))
        finally:
            self.shared_blocks.end()

    def release(self) -> None:
        """Keep no hidden states any more, after the device ran out of memory."""
        self.prefixes.release()
        self.shared_blocks.release()

    def _whole_tensor(self, checkpoint: Checkpoint, name: str) -> Tensor:
        """Return a tensor in its storage dtype; on an accelerator there, where it is merged."""
        if self.device.type == "cpu":
            return checkpoint.tensor(name)
        info = checkpoint.info[name]
        tensor = torch.empty(info.shape, dtype=info.dtype, device=self.device)
        checkpoint.write(name, tensor)
        return tensor

    @contextmanager
    def gradients(self, tensors: Collection[str], take: Callable[[str, Tensor], None]) -> Iterator[None]:
        """Hand the gradients of these checkpoint tensors to `take`, by name, in every backward pass inside the block.

        A gradient is handed over as soon as it is complete, and freed, so that the model's gradients are never in memory
        together. A tensor that fills several places comes once for each; its gradient is the sum. Raises `ModelError` for a
        tensor that fills no parameter, as the running means of batch norms.
        """
        places: defaultdict[str, list[TensorMapping]] = defaultdict(list)
        for name in tensors:
            for mapping, _ in self._views.get(self._twins.get(name, name), ()):
                places[mapping.target].append(mapping)
        parameters = dict(self._whole.named_parameters(remove_duplicate=False))
        handles = []
        try:
            for target, mappings in places.items():
                if target not in parameters:
                    raise ModelError(
                        f"the merged tensor `{mappings[0].source}` fills the buffer `{target}` of {type(self.module).__name__}, which "
                        "has no gradient; search without slopes"
                    )
                parameter = parameters[target].requires_grad_()

                def hand_over(parameter: Tensor, mappings: list[TensorMapping] = mappings) -> None:
                    gradient, parameter.grad = parameter.grad, None
                    assert gradient is not None
                    for mapping in mappings:
                        take(mapping.source, mapping.spread(gradient[mapping.filled], self._info[mapping.source].shape))

                hook: Callable[..., Any] = parameter.register_post_accumulate_grad_hook
                handles.append(hook(hand_over))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for target in places:
                if target in parameters:
                    parameters[target].requires_grad_(False).grad = None  # noqa: FBT003  # torch's only name for it differs

    def has_gradient(self, tensor: str) -> bool:
        """Return whether a checkpoint's tensor fills parameters of the module alone, not buffers such as running means."""
        places = self._views.get(self._twins.get(tensor, tensor), ())
        parameters = dict(self._whole.named_parameters(remove_duplicate=False))
        return bool(places) and all(mapping.target in parameters for mapping, _ in places)

    def views(self, tensor: str) -> Iterator[Tensor]:
        """Yield views of the memory that a checkpoint's tensor fills, with its axes; several, and parts of it, where a module has it so."""
        for mapping, filled in self._views.get(self._twins.get(tensor, tensor), ()):
            view = mapping.uncut(filled, self._info[mapping.source].shape)
            if view is not None:
                yield view

    def torn(self, checkpoint: Checkpoint) -> list[tuple[str, str]]:
        """Return the pairs of tensors that are tied in the module, and differ in `checkpoint`."""
        return [
            (name, other)
            for name, other in self._twins.items()
            if not torch.equal(checkpoint.tensor(name), checkpoint.tensor(other))
        ]

    def _untie(self, checkpoint: Checkpoint) -> None:
        """Give each tied parameter memory of its own if the candidate has different tensors for them.

        Raises `ModelError` where they can only be tied: in modules of the user, and in encoder-decoders.
        """
        outside = checkpoint.rest if isinstance(checkpoint, Stacked) else checkpoint
        parameters = dict(self.module.named_parameters(remove_duplicate=False))
        more = {name: outside.info[name] for name in outside.info.keys() - self._info.keys() if name in parameters}
        apart = self.torn(checkpoint)
        if not more and not apart:
            return
        if isinstance(self._loader, UserModule) or getattr(self.module.config, "is_encoder_decoder", False):
            name, other = next(iter((*apart, *((name, "another tensor") for name in more))))
            raise ModelError(
                f"tensors `{name}` and `{other}` are tied in the base `{self.folder}`, and differ in the candidate"
            )
        if self._stacked:
            self._assembly.restore()
            self._stacked = False
        if "_assembly" in self.__dict__:
            self.__dict__.pop("_assembly").remove()
        seen: set[int] = set()
        for name, parameter in parameters.items():
            if id(parameter) in seen:
                path, _, leaf = name.rpartition(".")
                copy = torch.nn.Parameter(parameter.detach().clone(), requires_grad=False)
                self.module.get_submodule(path).register_parameter(leaf, copy)
            seen.add(id(parameter))
        self.module.config.tie_word_embeddings = False  # nothing ties them again
        self._info = dict(sorted({**self._info, **more}.items()))
        self.mappings = find_mappings({name: entry.shape for name, entry in self._info.items()}, self._loader.load)
        self._views, self._twins = self._bind(self.mappings)
        self.shared_blocks.reset()

    def _bind(
        self, mappings: list[TensorMapping]
    ) -> tuple[dict[str, list[tuple[TensorMapping, Tensor]]], dict[str, str]]:
        """Return each tensor's mappings with views of the memory that they fill, and tensors by a tied one that fills theirs.

        Raises `ModelError` naming the first parameter that is not filled.
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


def _copy_into(source: Tensor, out: Tensor) -> None:
    out.copy_(source)


def _contiguous(head: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Give a head hidden states in memory of their own: of a slice, torch multiplies each row by a copy of the weight.

    On a CPU that takes longer than all layers together, for the last tokens of prompts in bfloat16.
    """
    return tuple(hidden.contiguous() for hidden in args)
