"""Names: what a model's class makes of the names in a folder, and the names that all models of a pool get from it.

Two files hold one model where the class loads both alike: with a prefix or without, with a tied head stored or not, with
buffers that the class ignores. The class is asked only where names differ, or where equal tensors may be tied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch

from evomerge.checkpoints.folder import Folder
from evomerge.errors import PoolError


class Reading(Protocol):
    """What the class named in a folder's `config.json` makes of the tensors in the folder's files."""

    @property
    def fills(self) -> Mapping[str, Sequence[tuple[str, object]]]:
        """By stored name, the module's tensors that it fills, each with the box; none for a tensor that the class ignores."""

    @property
    def ties(self) -> Mapping[str, frozenset[str]]:
        """By name in the module, the names of the parameters that share its memory, its own among them."""

    @property
    def encoder_decoder(self) -> bool:
        """Whether the model is an encoder-decoder."""

    @property
    def prefix(self) -> str:
        """What the class puts before the names of its backbone, without a dot; empty for a class that is the backbone."""

    @property
    def missing(self) -> Sequence[str]:
        """The module's parameters that no stored tensor fills."""

    @property
    def transposed(self) -> frozenset[str]:
        """The module's weights that are (in, out), those of GPT-2's `Conv1D`."""

    @property
    def linear(self) -> frozenset[str]:
        """The module's weights of linear layers, (out, in)."""

    @property
    def embeddings(self) -> frozenset[str]:
        """The module's weights of embeddings, (entries, features)."""

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """The module's tensors that grow with the number of tokens, by name: the axis that does."""

    def land(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return the module's names of `names` from another file, as the class translates them; unknown ones are left out."""


def read(folder: Folder, auto: str | None = None) -> Reading | None:
    """Return what transformers makes of `folder`, None for an architecture that it does not load by moving tensors.

    `auto` names the class that chooses the model's class, None takes the one that `config.json` names.
    """
    from evomerge.models import reading  # knows transformers, whose import takes seconds: most pools do not need it

    return reading.read(folder, auto)


def read_shapes(folder: Folder, auto: str | None = None) -> tuple[str, Mapping[str, tuple[int, ...]]] | None:
    """Return the name of the class, chosen as in `read`, and the shapes of its module's tensors; None for an unknown one."""
    from evomerge.models import reading

    return reading.shapes(folder, auto)


def read_settings(folder: Folder) -> dict[str, Any] | None:
    """Return the configuration with the defaults of its class, by transformers' present names, None for an unknown one."""
    from evomerge.models import reading

    return reading.settings(folder)


@dataclass
class Names:
    """The names of a pool's tensors: those in the base's files, and one for each tied tensor that some model has apart."""

    base: Folder
    experts: Mapping[str, Folder]
    ignored: set[str] = field(default_factory=set)
    """Tensors of the base that its class ignores, and that some expert lacks. They are copied from the base."""
    untied: dict[str, str] = field(default_factory=dict)
    """Names that the base's files lack, of tensors that the base's class ties: by name in the module, that of the stored one."""
    auto: str | None = None
    """The class that chooses the base's class, None for the one in its `config.json`."""

    @cached_property
    def reading(self) -> Reading | None:
        """What the base's class makes of the base's files."""
        return read(self.base, self.auto)

    @property
    def encoder_decoder(self) -> bool:
        """Whether the base is an encoder-decoder, as far as is known."""
        return self.reading is not None and self.reading.encoder_decoder

    @cached_property
    def _readings(self) -> Mapping[str, Reading | None]:
        same = self.base.stored.keys()
        return {
            name: self.reading if expert.stored.keys() == same else read(expert)
            for name, expert in self.experts.items()
        }

    def align(self) -> None:
        """Give every expert whose files have other names the base's. An expert that lacks a tensor is left with less."""
        if all(expert.stored.keys() == self.base.stored.keys() for expert in self.experts.values()):
            return
        if self.reading is None:
            return
        for name, expert in self.experts.items():
            reading = self._readings[name]
            if reading is not None:
                for stored, places in self.reading.fills.items():
                    sources = {target: _source(reading, target, box) for target, box in places}
                    apart = {source for source in sources.values() if source is not None}
                    if len(apart) > 1 and not _all_equal(expert, sorted(apart)):
                        self._add(stored, [target for target, _ in places], f"expert `{name}` ({expert.path})")
        self._rename()

    def untie(self, ties: frozenset[str], who: str) -> None:
        """Give each of the tied parameters `ties` a name of its own, since `who` changes one without the other."""
        assert self.reading is not None
        for stored, places in self.reading.fills.items():
            targets = [target for target, _ in places if target in ties]
            if len(targets) > 1:
                self._add(stored, targets, who)
        self._rename()

    def owner(self, target: str) -> str | None:
        """Return the name of the complete tensor that fills the module's `target`, None where there is no such tensor."""
        if target in self.untied:
            return target
        reading = self.reading
        for stored, places in reading.fills.items() if reading is not None else ():
            if any(place == target and box is None for place, box in places):
                return stored
        return None

    def targets(self, stored: str) -> list[str] | None:
        """Return the module's names of the complete tensor `stored`, several for a tied one; None where it fills a part of one.

        Where the class is not known, it is the name in the files.
        """
        if self.reading is None or stored in self.untied:
            return [stored]
        places = [place for place in self.reading.fills.get(stored, ()) if place[0] not in self.untied]
        if any(box is not None for _, box in places):
            return None
        return [target for target, _ in places]

    def vocabulary(self) -> frozenset[str]:
        """Return the names of the tensors that have a row for each token: embeddings, heads and their biases.

        Raises `PoolError` where the base's class, which says so, is not known, or has no rows of complete tensors for tokens.
        """
        axes = {} if self.reading is None else self.reading.vocabulary
        if self.reading is None or not axes:
            msg = f"{self.base.path}: which tensors have a row for each token is not known; `tokenizer` needs a language model of an architecture of transformers"
            raise PoolError(msg)
        names = {target for target in self.untied if target in axes}
        for stored, places in self.reading.fills.items():
            for target, box in [place for place in places if place[0] in axes and place[0] not in self.untied]:
                if box is not None or axes[target] != 0:
                    msg = f"{self.base.path}: the tokens of `{stored}` are not its rows; `tokenizer` cannot match them"
                    raise PoolError(msg)
                names.add(stored)
        rows = {self.base.info[name].shape[:1] for name in names if name in self.base.info}
        unused = {name for name, places in self.reading.fills.items() if not places}  # as a stored copy of a tied head
        return frozenset(names | {name for name in unused if self.base.stored[name].info.shape[:1] in rows})

    def tied(self, names: Sequence[str]) -> list[list[str]]:
        """Return the sets of two or more of `names` whose tensors the base's class keeps in the same memory."""
        sets: dict[frozenset[str], list[str]] = {}
        reading = self.reading
        for name in names if reading is not None else ():
            assert reading is not None
            places = () if name in self.untied else reading.fills.get(name, ())
            for target in [target for target, _ in places][:1] or [name]:
                if target in reading.ties:
                    sets.setdefault(reading.ties[target], []).append(name)
        return [members for members in sets.values() if len(members) > 1]

    def _add(self, stored: str, targets: Sequence[str], who: str) -> None:
        assert self.reading is not None
        if self.reading.encoder_decoder:
            msg = f"{who} has weights of its own for {' and '.join(f'`{target}`' for target in targets)}, which the base ({self.base.path}) ties; an encoder-decoder cannot be written untied. Expected an expert with tied weights"
            raise PoolError(msg)
        kept = max(targets, key=lambda target: (target == stored, target.endswith(stored), stored.endswith(target)))
        self.untied |= {target: stored for target in targets if target != kept}

    def _rename(self) -> None:
        assert self.reading is not None
        for name, expert in self.experts.items():
            reading = self._readings[name]
            if reading is not None:
                expert.read_as(self._of(expert, reading))
        base = {name: (self.base, name) for name in self.base.stored}
        self.base.read_as(base | {name: (self.base, stored) for name, stored in self.untied.items()})

    def _of(self, expert: Folder, reading: Reading) -> dict[str, tuple[Folder, str]]:
        assert self.reading is not None
        names: dict[str, tuple[Folder, str]] = {}
        known: set[str] = set()
        for name in self.base.stored:
            places = [place for place in self.reading.fills.get(name, ()) if place[0] not in self.untied]
            known |= {target for target, _ in places}
            if name in expert.stored and not (places and reading.fills.get(name)):
                names[name] = (expert, name)
            elif not places:
                self.ignored.add(name)
                names[name] = (self.base, name)
            elif (source := _source(reading, *places[0])) is not None:
                names[name] = (expert, source)
        for target in self.untied:
            if (source := _source(reading, target, None)) is not None:
                names[target] = (expert, source)
        used = {stored for _, stored in names.values()}
        for stored, more in reading.fills.items():  # what the expert has more is refused, unless its class ignores it
            if stored not in used and any(target not in known and target not in self.untied for target, _ in more):
                names[stored] = (expert, stored)
        return names


def _source(reading: Reading, target: str, box: object) -> str | None:
    """Return the stored tensor that fills the box of the module's `target`."""
    return next((name for name, places in reading.fills.items() if (target, box) in places), None)


def _all_equal(folder: Folder, stored: Sequence[str]) -> bool:
    as_stored = Folder(folder.path)
    first = as_stored.tensor(stored[0])
    return all(torch.equal(first, as_stored.tensor(name)) for name in stored[1:])
