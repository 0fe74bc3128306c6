"""Heads that stay outside of a merge: what each model of a pool has for itself, and the backbone that all of them share.

The backbone is what `AutoModel` loads: it decides, not the names, what belongs to a head. A prefix such as `bert.` on the
backbone's names makes no difference.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.folder import Checkpoint, Computed, Folder, all_finite, differences
from evomerge.checkpoints.layout import is_head
from evomerge.checkpoints.lora import AdapterFiles
from evomerge.checkpoints.naming import Names, Reading, read, read_shapes
from evomerge.checkpoints.trained_heads import complete
from evomerge.errors import CheckpointError, PoolError


@dataclass(frozen=True)
class Head:
    """The head of one model, and what the model's files name the backbone.

    `model` is the folder of its files and settings. `shared` are the names in the files by those of the pool. `own` are the names
    of the tensors of the head; empty for a model without one. The head of an `adapter` is in the adapter's file, where `trained`
    are the names of its tensors, and `model` is the base with it.
    """

    model: Folder
    shared: Mapping[str, str]
    own: frozenset[str]
    adapter: Adapter | None = None
    trained: frozenset[str] = frozenset()
    settings: Mapping[str, Any] | None = None
    """The configuration of the complete model by the tokens of merges, where `tokenizer` chose them."""

    def check_finite(self) -> None:
        """Raise `CheckpointError` for a tensor of the head that holds NaN or infinity."""
        for name in sorted(self.own):
            if not all_finite(self.complete.tensor(name)):
                msg = f"{(self.adapter or self.model).path}: tensor `{name}` of its head holds NaN or infinity; expected finite numbers"
                raise CheckpointError(msg)

    def on(self, backbone: Checkpoint) -> Checkpoint:
        """Return the complete checkpoint of `backbone`, which has the pool's names, with this head, in the names of its model."""
        pooled = {**{stored: name for name, stored in self.shared.items()}, **self._copies()}
        stored = self.model.stored

        def tensor(name: str) -> torch.Tensor:
            return backbone.tensor(pooled[name]) if name in pooled else self.complete.tensor(name)

        info = {name: (backbone.info[pooled[name]] if name in pooled else self.complete.info[name]) for name in stored}
        return Computed(info, tensor, (backbone, self.complete))

    @cached_property
    def token_rows(self) -> list[str]:
        """The tensors of the head that have a row for each token of its own model, such as those of `lm_head`."""
        reading = read(self.model) if self.own else None
        fills = {} if reading is None else reading.fills
        rows = () if reading is None else reading.vocabulary.keys()
        return sorted(name for name in self.own if any(target in rows for target, _ in fills.get(name, ())))

    @cached_property
    def complete(self) -> Folder | Adapter:
        """The complete model by the names in its files; the pool's folder names the backbone alone."""
        return Folder(self.model.path) if self.adapter is None else self.adapter

    def _copies(self) -> dict[str, str]:
        """Return the tensors of the head that its class ties to the backbone, and that equal it, with the pool's names."""
        reading = read(self.model) if self.own else None
        if reading is None:
            return {}
        targets = {target: name for name, stored in self.shared.items() for target, _ in reading.fills.get(stored, ())}
        copies = {}
        for name in self.own:
            tied = [tie for target, _ in reading.fills.get(name, ()) for tie in reading.ties.get(target, ())]
            pooled = next((targets[target] for target in tied if target in targets), None)
            if pooled is not None and torch.equal(
                self.complete.tensor(name), self.complete.tensor(self.shared[pooled])
            ):
                copies[name] = pooled
        return copies


def split(names: Names, adapters: Mapping[str, AdapterFiles], *, asked: bool, matched: bool = False) -> dict[str, Head]:
    """Return the heads of the models by name, `base` among them, and leave in their folders the backbone, in the base's names.

    The models are those of `names`, and `adapters`, of which those with a tensor outside of the backbone have a head. A tensor
    of the backbone that is outside of blocks and that some model lacks, such as a pooler, belongs to the heads. If
    this is not `asked` for, nothing is done and no head returned where the models differ in more than heads. Otherwise such
    differences are left in the folders. Where rows are `matched` by token, their numbers are no difference. No tensor is read. Raises `PoolError` where transformers has no class for the backbone,
    and where an adapter and its base do not make a complete model.
    """
    base, experts = names.base, names.experts
    models = {"base": base, **experts}
    unlike = any(is_head(name) for expert in experts.values() for name, _, _ in differences(expert.info, base.info))
    trained = any(_other_head(files, names) for files in adapters.values())
    if not asked and not (unlike or trained):
        return {}
    if matched and not asked and not trained and _alike_but_for_rows(names, models):
        return {}
    readings = {name: read(model, "AutoModel") for name, model in models.items()}
    known = {name: reading for name, reading in readings.items() if reading is not None}
    if len(known) < len(models):
        if not asked:
            return {}
        msg = f"{base.path}: `heads: own` needs an architecture of transformers whose class without a head (`AutoModel`) can be loaded; leave it out, and give models without heads"
        raise PoolError(msg)
    sources = {name: _sources(known["base"], reading) for name, reading in known.items()}
    rows = {
        stored
        for stored, places in known["base"].fills.items()
        if matched and any(target in known["base"].vocabulary for target, _ in places)
    }
    shapes = {
        name: {pooled: models[name].stored[stored].info.shape[pooled in rows :] for pooled, stored in found.items()}
        for name, found in sources.items()
    }
    apart = {
        pooled
        for pooled, shape in shapes["base"].items()
        if any(found.get(pooled) != shape for found in shapes.values())
    }
    more = {name: _more(reading, sources[name]) for name, reading in known.items()}
    if not asked and (any(more.values()) or not all(map(is_head, apart))):
        return {}
    heads = {}
    for name, model in models.items():
        shared = {
            pooled: stored for pooled, stored in sources[name].items() if not (pooled in apart and is_head(pooled))
        }
        own = frozenset(model.stored.keys() - shared.values() - more[name])
        heads[name] = Head(model, shared, own)
        left = {**shared, **{stored: stored for stored in more[name]}}
        model.read_as({pooled: (model, stored) for pooled, stored in left.items()})
    backbone = [target for stored in heads["base"].shared.values() for target, _ in known["base"].fills[stored]]
    for name, files in adapters.items():
        landed = known["base"].land([*files.factors, *files.replaced])
        own = frozenset(name for name in (*files.factors, *files.replaced) if landed.get(name) not in backbone)
        head = _trained(base, files, heads["base"].shared, own) if own else None
        if head is not None:
            heads[name] = head
    return heads


def by_tokens(
    heads: Mapping[str, Head],
    models: Mapping[str, Folder | Adapter],
    settings: Callable[[str, Mapping[str, Any], str], dict[str, Any]],
) -> dict[str, Head]:
    """Return heads for a backbone whose rows are those of other tokens; the base's own is left out.

    `settings(label, config, where)` is a configuration by the new numbers of the tokens of the model `label`. Raises `PoolError`
    for a head with a row for each token.
    """
    settled = {}
    for name, head in heads.items():
        if name == "base":
            settled[name] = replace(head, own=frozenset())
            continue
        who = f"expert `{name}` ({models[name].path})"
        if head.token_rows:
            msg = f"{who}: its head stays outside of merges, and `{head.token_rows[0]}` there has a row for each of its own tokens, whose numbers `tokenizer` changes. Expected heads without such rows, as classifiers have, or language models alone, whose heads are merged"
            raise PoolError(msg)
        label = name if head.adapter is None else "base"
        settled[name] = replace(head, settings=settings(label, head.model.config, who))
    return settled


def _alike_but_for_rows(names: Names, models: Mapping[str, Folder]) -> bool:
    """Return whether all models are of one class, and of equal shapes but for the number of tokens."""
    rows = () if names.reading is None else names.reading.vocabulary.keys()

    def without_rows(model: Folder) -> object:
        if (known := read_shapes(model)) is None:
            return None
        name, shapes = known
        return name, {target: shape[1:] if target in rows else shape for target, shape in shapes.items()}

    first, *others = map(without_rows, models.values())
    return first is not None and all(other == first for other in others)


def _other_head(files: AdapterFiles, names: Names) -> bool:
    """Return whether an adapter replaces a tensor that the base's class has no place for, or of another shape than the base's.

    Another number of tokens is no other head.
    """
    stored = {name: entry.info.shape for name, entry in names.base.stored.items()}
    replaced = {target: files.stored[key].shape for target, key in files.replaced.items()}
    known = [(f".{name}", shape) for name, shape in stored.items()]
    unknown = [
        target
        for target, shape in replaced.items()
        if not any(
            shape == other and (f".{target}".endswith(name) or name.endswith(f".{target}")) for name, other in known
        )
    ]
    if not unknown or names.reading is None:
        return False
    reading = names.reading
    landed = reading.land(unknown)
    filled = {target: stored[name] for name, places in reading.fills.items() for target, box in places if box is None}
    return any(
        landed.get(target) is None
        or (
            filled.get(landed[target], replaced[target]) != replaced[target]
            and landed[target] not in reading.vocabulary
        )
        for target in unknown
    )


def _trained(base: Folder, files: AdapterFiles, shared: Mapping[str, str], own: frozenset[str]) -> Head | None:
    """Return the head of an adapter, None without one. `own` are its tensors with no place in the base's backbone, `shared` the base's."""
    view, adapter, reading, prefix = complete(base, files, own)
    kept = {pooled: f"{prefix}{stored}" for pooled, stored in shared.items() if f"{prefix}{stored}" in view.stored}
    backbone = {target for stored in kept.values() for target, _ in reading.fills[stored]}
    landed = reading.land(sorted(own))
    trained = frozenset(name for name in own if landed.get(name) not in backbone)  # the class may have another prefix
    return Head(view, kept, frozenset(view.stored.keys() - kept.values()), adapter, trained) if trained else None


def _sources(base: Reading, reading: Reading) -> dict[str, str]:
    """Return the stored tensors of a model that fill what tensors of the base fill in the backbone, by the base's names."""
    by_place = {(target, str(box)): stored for stored, places in reading.fills.items() for target, box in places}
    wanted = {stored: (places[0][0], str(places[0][1])) for stored, places in base.fills.items() if places}
    return {stored: by_place[place] for stored, place in wanted.items() if place in by_place}


def _more(reading: Reading, sources: Mapping[str, str]) -> set[str]:
    """Return the tensors of a model that the backbone has a place for, though the base fills none, and that are in no head."""
    used = set(sources.values())
    return {stored for stored, places in reading.fills.items() if places and stored not in used and not is_head(stored)}
