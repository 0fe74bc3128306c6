"""Adapter: a LoRA adapter, or one of `tuners`, together with its base, read as the complete model that the two make.

A weight W that the adapter changes is W + s·B·A with s = lora_alpha / r (LoRA, https://arxiv.org/abs/2106.09685,
section 4.1) or, with `use_rslora`, lora_alpha / √r (https://arxiv.org/abs/2312.03732). The product is computed before
anything is merged: factors merged separately would multiply into cross terms Bᵢ·Aⱼ that no expert has.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints.factors import Factors
from evomerge.checkpoints.folder import Checkpoint, Folder, open_weights
from evomerge.checkpoints.header import TensorInfo
from evomerge.checkpoints.layout import Layout, is_head
from evomerge.checkpoints.lora import ADAPTER_WEIGHTS, CONFIG, INSTEAD, AdapterFiles, LoraConfig, Product
from evomerge.checkpoints.naming import Names
from evomerge.checkpoints.tuners import Change, Settings, Tuner
from evomerge.errors import CheckpointError

UNION = "`tokenizer: union` under `pool`, or `--tokenizer union`: rows are then matched by token"
"""What to type where models have tokens of their own."""


class LooseTieError(CheckpointError):
    """An adapter changes some of the parameters that the base's class ties, and leaves the others as they are."""

    def __init__(self, path: Path, ties: frozenset[str]) -> None:
        """Name the parameters that are tied, `ties`."""
        super().__init__(
            f"{path}: changes one of {', '.join(f'`{name}`' for name in sorted(ties))} alone, which the base ties and stores once; {INSTEAD}"
        )
        self.ties = ties


class Adapter(Checkpoint):
    """The checkpoint of a base with a LoRA adapter on it. Not to be confused with the adapter's file of factors.

    A weight with a product is in fp32 (fp64 where the base is), so that nothing is rounded before it is merged. A tensor
    that the adapter replaces (`modules_to_save`, biases) is a view of the adapter's file, any other the base's tensor.
    """

    def __init__(
        self,
        path: str | Path | AdapterFiles,
        base: Folder,
        names: Names | None = None,
        *,
        resized: frozenset[str] = frozenset(),
        apart: frozenset[str] = frozenset(),
    ) -> None:
        """Read and check the configuration and the header in the folder at `path`; no tensor is read.

        The adapter is applied to `base`, whatever its `base_model_name_or_path`, which is never fetched. `names` translates
        the names of modules that the base's files do not use. `resized` are the base's tensors of which the adapter may have
        more or fewer rows, those of tokens. `apart` are tensors that it trained, by their names in the trained model, and
        that are left out: those of a head outside of merges. Raises `CheckpointError` for what is not plain LoRA, and for
        what does not fit the base, `LooseTieError` where it changes only some of the tensors that the base ties and stores once.
        """
        held = path if isinstance(path, AdapterFiles) else AdapterFiles(path)
        self.path, self.base = held.path, base
        config, tuner = held.config, held.tuner
        self.trained_on = str((config.model_extra or {}).get("base_model_name_or_path") or "")
        """The base that the adapter's configuration names: an `org/name` of the hub, or a path of another machine; may be empty."""
        self._stored = held.stored
        factors = {target: keys for target, keys in held.factors.items() if target not in apart}
        replaced = {target: key for target, key in held.replaced.items() if target not in apart}
        rename = self._names_in_base([*factors, *replaced], names)
        changed = self._with_ties(rename, names, together=config.ensure_weight_tying)
        self._replaced = {name: key for target, key in replaced.items() for name in changed[target]}
        info = dict(base.info)
        for name, key in self._replaced.items():
            info[name] = self._stored[key]
            came, wanted = info[name].shape, base.info[name].shape
            if came != wanted and not (name in resized and came[1:] == wanted[1:]):
                more = f". If tokens were added to it, type {UNION}" if came[1:] == wanted[1:] and not resized else ""
                msg = f"{self.path}: tensor `{key}` has shape {list(came)}, `{name}` of the base ({base.path}) {list(wanted)}; expected an adapter trained on this base{more}"
                raise CheckpointError(msg)
        turned = self._turned(names, [*factors], said=config.fan_in_fan_out)
        self._products: dict[str, Product] = {}
        self._changes: dict[str, Change] = {}
        for target, name in [(product, name) for product in factors for name in changed[product]]:
            if isinstance(config, Settings) and tuner is not None:
                self._change(tuner, factors[target], target, name, config, turned=turned.get(target))
                continue
            assert isinstance(config, LoraConfig)
            try:
                product = Product.of(factors[target], target, len(info[name].shape), config, turned=turned.get(target))
            except ValueError as error:
                raise CheckpointError(f"{self.path / CONFIG}: `rank_pattern` or `alpha_pattern`: {error}") from None
            self._products[name] = product
            self._check_fits(product, name, info[name])
        for name in (*self._products, *self._changes):
            info[name] = TensorInfo(info[name].shape, torch.promote_types(info[name].dtype, torch.float32))
        self.info: Mapping[str, TensorInfo] = info

    @property
    def config(self) -> dict[str, Any]:
        """The content of the base's `config.json`."""
        return self.base.config

    @property
    def files(self) -> tuple[Path, ...]:
        """The adapter's files: configuration and weights."""
        return (self.path / CONFIG, self.path / ADAPTER_WEIGHTS)

    @property
    def changed(self) -> tuple[str, ...]:
        """The names of the tensors that differ from the base's, in order."""
        return tuple(sorted({*self._products, *self._changes, *self._replaced}))

    def makes(self, name: str) -> bool:
        """Return whether the tensor is computed, which costs more than reading it."""
        return name in self._products or name in self._changes

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor: W + s·B·A, or its change by another formula, computed at each call, where it has one, else a view of a file."""
        origin: torch.Tensor
        origin = self._open.get_tensor(self._replaced[name]) if name in self._replaced else self.base.tensor(name)
        if name in self._changes:
            return self._changed_by_formula(name, origin)
        if name not in self._products:
            return origin
        product = self._products[name]
        a, b = (self._open.get_tensor(key).to(self.info[name].dtype).flatten(1) for key in (product.a, product.b))
        change = (a.T @ b.T if product.transposed else b @ a).view(origin.shape)
        # W - (0 - s·B·A), not W + s·B·A: where the product is zero of either sign, W's own zero keeps its sign.
        result = torch.sub(origin, change.mul_(-product.scale).add_(0.0), out=change)
        if product.magnitude is not None:
            rows = result.T if product.transposed else result
            rows.mul_((self._open.get_tensor(product.magnitude) / torch.linalg.vector_norm(rows, dim=1))[:, None])
        return result

    def factors(self, name: str) -> Factors | None:
        """Return the factors of the change of a matrix, scaled; None where it is no product of two, or replaces the tensor."""
        product = self._products.get(name)
        if (
            product is None
            or product.magnitude is not None
            or name in self._replaced
            or len(self.info[name].shape) != 2
        ):
            return None
        a, b = (self._open.get_tensor(key).float() for key in (product.a, product.b))
        return Factors(product.scale * a.T, b.T) if product.transposed else Factors(product.scale * b, a)

    def forget(self) -> None:
        """Close the adapter's file, and those of its base."""
        self.__dict__.pop("_open", None)
        self.base.forget()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_open"}

    @cached_property
    def _open(self) -> Any:
        return open_weights(self.path / ADAPTER_WEIGHTS)

    def _changed_by_formula(self, name: str, origin: torch.Tensor) -> torch.Tensor:
        change, dtype = self._changes[name], self.info[name].dtype
        try:
            return change.apply(origin.to(dtype), change.read(self._open.get_tensor, dtype)).contiguous()
        except (ValueError, IndexError) as error:
            raise CheckpointError(f"{self.path}: the change of `{name}`: {error}") from None

    def _change(
        self, tuner: Tuner, keys: Mapping[str, str], target: str, name: str, config: Settings, *, turned: bool | None
    ) -> None:
        """Note the changes of a weight and its bias, having checked on tensors without content that they fit."""
        module = target.removesuffix(".weight")
        transposed = config.fan_in_fan_out if turned is None else turned
        changes = {name: Change(tuner.merged, keys, config, module, transposed)}
        bias = f"{name.removesuffix('.weight')}.bias"
        if tuner.bias is not None and bias in self.base.info:
            changes[bias] = Change(tuner.bias, keys, config, module)
        for changed, change in changes.items():
            shape = self.base.info[changed].shape
            try:
                change.check(shape, self._stored)
            except ValueError as error:
                shapes = ", ".join(f"{part} {list(self._stored[key].shape)}" for part, key in keys.items())
                msg = f"{self.path}: {shapes} do not fit `{changed}`, {list(shape)} in the base ({self.base.path}), as a {config.peft_type} adapter ({error}); expected an adapter trained on this base"
                raise CheckpointError(msg) from None
        self._changes |= changes

    def _names_in_base(self, targets: list[str], translation: Names | None) -> dict[str, str]:
        """Return the base's name of each target, which may have one prefix more or less, the same for all targets.

        Where that is not enough, the base's class translates the names.
        """
        names = self.base.info
        if not targets:
            return {}
        edits = [("", ""), *sorted({edit for name in names for edit in _prefixes(targets[0], name)})]
        edits = [edit for edit in edits if all(target.startswith(edit[0]) for target in targets)]
        renamed = {(drop, add): [f"{add}{target.removeprefix(drop)}" for target in targets] for drop, add in edits}
        fitting = [edit for edit in edits if all(name in names for name in renamed[edit])]
        if len(fitting) > 1 and fitting[0] != ("", ""):
            ways = " or ".join(f"`{renamed[edit][0]}`" for edit in fitting)
            msg = f"{self.path}: `{targets[0]}` could be {ways} of the base ({self.base.path}); expected the base's own names"
            raise CheckpointError(msg)
        if not fitting and translation is not None and translation.reading is not None:
            landed = translation.reading.land(targets)
            owners = {target: translation.owner(landed.get(target, "")) for target in targets}
            known = {target: owner for target, owner in owners.items() if owner is not None}
            if len(known) == len(owners):
                return known
        if not fitting:
            best = max(edits, key=lambda edit: sum(name in names for name in renamed[edit]))
            missing = [target for target, name in zip(targets, renamed[best], strict=True) if name not in names]
            more = f" ({len(missing) - 1} more tensors likewise)" if len(missing) > 1 else ""
            msg = f"{self.path}: changes `{missing[0]}`, which the base ({self.base.path}) does not have{more}; expected LoRA factors and complete tensors of this base's modules"
            if all(map(is_head, missing)):
                msg += f". {'They are' if more else 'It is'} a head's, as of a classifier: give a base with this head, saved by the class that the adapter was trained on, such as AutoModelForSequenceClassification"
            raise CheckpointError(msg)
        return dict(zip(targets, renamed[fitting[0]], strict=True))

    def _with_ties(
        self, rename: Mapping[str, str], names: Names | None, *, together: bool
    ) -> dict[str, tuple[str, ...]]:
        """Return the base's tensors that each target changes: with `together`, all that are tied, by the first target alone.

        Raises `LooseTieError` where a target changes one of several that the base stores once.
        """
        changed: dict[str, tuple[str, ...]] = {target: (name,) for target, name in rename.items()}
        if names is None or self.base.config.get("tie_word_embeddings", True) is False:
            return changed
        layout = Layout(self.base.info)
        kinds = {target: layout.place(name).kind for target, name in rename.items()}
        outside = {
            kind: [target for target in rename if kinds[target] == kind] for kind in ("embedding", "other", "head")
        }
        outside["other"] = [target for target in outside["other"] if not layout.place(rename[target]).inside]
        targets = [target for group in outside.values() for target in group]
        if not targets or names.reading is None:
            return changed
        reading, done = names.reading, set()
        landed = reading.land(targets)
        for target in targets:
            ties = reading.ties.get(landed.get(target, ""))
            if ties is None:
                continue
            owners = dict.fromkeys(owner for owner in map(names.owner, sorted(ties)) if owner is not None)
            if together:
                changed[target] = () if ties in done else tuple(owners)
                done.add(ties)
            elif len(owners) < len(ties):
                raise LooseTieError(self.path, ties)
        return changed

    def _turned(self, names: Names | None, targets: list[str], *, said: bool) -> dict[str, bool]:
        """Return whether the weight of each target is (in, out), where the class of the base knows it.

        PEFT saves one word for all modules, that of the last one, and decides by module when it loads. The class is asked
        where that word, or a bias as long as its weight is wide, says that the base has such weights.
        """
        info = self.base.info
        biases = {name: info.get(f"{name.removesuffix('.weight')}.bias") for name in info if name.endswith(".weight")}
        wide = [
            name
            for name, bias in biases.items()
            if bias is not None
            and len(info[name].shape) == 2
            and bias.shape == info[name].shape[1:] != info[name].shape[:1]
        ]
        if names is None or not (said or wide) or names.reading is None:
            return {}
        landed = names.reading.land(targets)
        return {target: place in names.reading.transposed for target, place in landed.items()}

    def _check_fits(self, product: Product, name: str, entry: TensorInfo) -> None:
        a, b = self._stored[product.a], self._stored[product.b]
        shape, rank = entry.shape, product.rank
        expected: list[tuple[int, ...]] = []
        if product.transposed and len(shape) == 2:
            expected = [(rank, shape[0]), (shape[1], rank)]
        elif not product.transposed and len(shape) > 1:  # a convolution's A has its kernel, and B one of size 1
            expected = [(rank, *shape[1:]), (shape[0], rank, *(1 for _ in shape[2:]))]
        if [a.shape, b.shape] != expected:
            wanted = " and ".join(f"{letter} {list(s)}" for letter, s in zip("AB", expected, strict=False))
            transposed = " (its weights are (in, out), says the adapter)" if product.transposed else ""
            msg = f"{self.path}: factors A {list(a.shape)} and B {list(b.shape)} of rank r = {rank} do not fit `{name}`, {list(shape)} in the base ({self.base.path}){transposed}; expected {wanted or 'a matrix or a convolution'}"
            raise CheckpointError(msg)
        if product.magnitude is not None:
            norms = self._stored[product.magnitude].shape
            if product.a.endswith("lora_embedding_A") or len(shape) != 2 or norms != (b.shape[0],):
                msg = f"{self.path}: norms {list(norms)} of DoRA for `{name}`, {list(shape)}; expected {[b.shape[0]]}, of a linear layer. For other layers, {INSTEAD}"
                raise CheckpointError(msg)
        for what, dtype in ((f"`{name}`", entry.dtype), ("A", a.dtype), ("B", b.dtype)):
            if not dtype.is_floating_point:
                msg = f"{self.path}: {what} of the product for `{name}` is {dtype}; expected floating point"
                raise CheckpointError(msg)


def _prefixes(target: str, name: str) -> Iterator[tuple[str, str]]:
    """Yield the prefix (to drop, to add) that turns `target` into the base's `name`, if there is one without a number.

    Modules that wrap a model have no number, and another block's tensor is another tensor.
    """
    longer, shorter = (target, name) if len(target) > len(name) else (name, target)
    prefix = longer.removesuffix(f".{shorter}")
    if prefix != longer and not any(part.isdecimal() for part in prefix.split(".")):
        yield (f"{prefix}.", "") if longer == target else ("", f"{prefix}.")
