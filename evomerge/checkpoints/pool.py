"""Pool: a base and the experts fine-tuned from it, checked once to be mergeable with each other.

Opening a pool raises an error, naming both sides, for models that cannot be merged: another architecture, vocabulary or
shape, a missing tensor, an element that is not finite. The result of reading all weights is cached.
"""

import hashlib
import itertools
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from evomerge.checkpoints import hub
from evomerge.checkpoints.adapter import UNION, Adapter, LooseTieError
from evomerge.checkpoints.aligned import Aligned
from evomerge.checkpoints.beside import differences_in_text, files_beside
from evomerge.checkpoints.configurations import added_tokens, compare_labels, compare_settings, compare_tokens
from evomerge.checkpoints.fingerprints import check_finite, fingerprint, nearly_same_weights, same_weights, stamp
from evomerge.checkpoints.folder import Checkpoint, Folder, differences
from evomerge.checkpoints.header import TensorInfo
from evomerge.checkpoints.heads import Head, by_tokens, split
from evomerge.checkpoints.layout import Layout
from evomerge.checkpoints.lora import AdapterFiles, is_adapter
from evomerge.checkpoints.naming import Names
from evomerge.checkpoints.quantised import check_not_quantised, check_not_wrapped, check_same_integers
from evomerge.checkpoints.save import SCALES, STITCHES
from evomerge.checkpoints.shuffled import Shuffled
from evomerge.checkpoints.ties import find_copies, untied
from evomerge.checkpoints.vocabulary import TokenizerChoice, Vocabulary
from evomerge.errors import CheckpointError, PoolError, nearest
from evomerge.merging import Evidence

_SAME_CONFIG = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")

_COUNTS = ("position_ids", "num_batches_tracked")
"""Integers that no output depends on: 0, 1, 2, ..., which classes make anew, and the number of batches in training."""


class Pool:
    """A base and its experts, by name. Not to be confused with a population, the candidates of a search."""

    def __init__(
        self,
        base: str | Path,
        experts: Mapping[str, str | Path],
        *,
        like: str | None = None,
        tokenizer: TokenizerChoice | None = None,
        weights: bool = True,
        heads: Literal["own"] | None = None,
        shuffled: int | None = None,
        progress: Callable[[str], None] = lambda what: None,
    ) -> None:
        """Open the checkpoints and check that they can be merged. `progress` receives the name of each step.

        A model is a folder, or `org/name` or `org/name@revision` on the Hugging Face hub: see `checkpoints.hub`.
        `like` names the expert whose tokenizer, chat template and generation settings merged models have; None is the base.
        With `heads="own"`, heads stay outside of merges; by default only where they differ in names or shapes.
        `tokenizer` says which tokens they have where the models have tokens of their own; None expects one vocabulary.
        An expert may be a folder with a LoRA adapter: it is the base with that adapter. Without `weights` only headers and
        configurations are compared, and the pool has no digests: nothing can be merged from it. With `shuffled`, a seed, experts
        are `Shuffled` once they have been checked. Raises `PoolError` or
        `CheckpointError`.
        """
        if not experts:
            raise PoolError("the pool has no experts; expected at least one, such as `experts: {maths: path/to/maths}`")
        if "base" in experts:
            msg = "the pool has an expert named `base`, the name of the base model in recipes; give it another name"
            raise PoolError(msg)
        base = hub.resolve(hub.locate(base), progress)
        experts = {name: hub.resolve(hub.locate(path), progress) for name, path in experts.items()}
        stored = Folder(base)
        whole = {name: Folder(path) for name, path in experts.items() if not is_adapter(path)}
        for model in (stored, *whole.values()):
            check_not_quantised(model)
            check_not_wrapped(model)
            for file, what in ((SCALES, "scales"), (STITCHES, "stitches")):
                if (model.path / file).exists():
                    msg = f"{model.path}: a stack with {what} that are not in its weights (`{file}`); such a model cannot be merged: merge the models that it was made of, or stack layers without {what}; its `recipe.yaml` can be scored"
                    raise PoolError(msg)
        self.names = Names(stored, whole)
        """What the base's class makes of the names in the files."""
        if heads is None:
            self.names.align()
        held = {name: AdapterFiles(path) for name, path in experts.items() if name not in whole}
        parts = split(self.names, held, asked=heads == "own", matched=tokenizer is not None)
        self.heads = {name: parts[name] for name in ("base", *experts) if name in parts}
        """The heads of base and experts by name, where they stay outside of merges; else empty."""
        if self.heads:
            self.names = Names(stored, whole)
        adapters = self._open_adapters(held, resizable=tokenizer is not None)
        opened = {name: whole[name] if name in whole else adapters[name] for name in experts}
        self._stored: dict[str, Folder | Adapter] = {"base": stored, **opened}
        self.like = like
        self.base: Folder | Aligned = stored
        self.experts: dict[str, Folder | Adapter | Aligned | Shuffled] = {**opened}
        self.tokenizer = None if like is None else self._folder_like(like)
        self.notes: list[str] = []
        self.evidence: Evidence | None = None
        """What data say of the experts, for merges that need it."""
        self.vocabulary: Vocabulary | None = None
        """The tokens of merges, where `tokenizer` chose them."""
        if tokenizer is not None:
            self._align(tokenizer, self._stored)
        self.models: tuple[Folder | Adapter | Aligned | Shuffled, ...] = (self.base, *self.experts.values())
        for name, expert in opened.items():
            self._check_alike(name, self.experts[name])
            if isinstance(expert, Folder):
                if weights:
                    check_same_integers(name, stored, expert)
                self._compare(name, stored, expert, weights=weights)
            else:
                self._compare_base(name, expert, weights=weights)
        self._compare_meanings(opened)
        if self.heads:
            self.notes.append(_about(self.heads))
            for head in self.heads.values() if weights else ():
                head.check_finite()
        self._stamps = [stamp(model) for model in self._stored.values()] if weights else []
        seen: dict[str, Folder | Adapter] = {}
        for name, folder in self._stored.items() if weights else ():
            progress(f"checking {name}")
            check_finite(folder)
            twin = next((other for other, model in seen.items() if same_weights(folder, model)), None)
            if twin is None:
                seen[name] = folder
            else:
                self.notes.append(f"`{name}` has exactly the weights of `{twin}`: it adds nothing to the pool")

        self.shuffled = shuffled
        """The seed by which the experts' task vectors are permuted; None of real experts."""
        if shuffled is not None:
            keys = {name: name for name in self.merged} | self.aliases  # found in the real experts
            self.experts = {
                name: Shuffled(name, expert, self.base, shuffled, keys) for name, expert in self.experts.items()
            }
            self.models = (self.base, *self.experts.values())

    @cached_property
    def digests(self) -> dict[str, str]:
        """The sha256 of each model's weights, by name, the base's first; all files are read at the first use.

        Raises `CheckpointError` if files have changed since the pool was opened.
        """
        if not self._stamps:
            return {}
        for model, known in zip(self._stored.values(), self._stamps, strict=True):
            if stamp(model) != known:
                raise CheckpointError(f"{model.path}: its files have changed since they were checked; start again")
        digests = {name: fingerprint(model) for name, model in self._stored.items()}
        if self.shuffled is not None:
            origin = f"shuffled {self.shuffled} {digests['base']}"
            mixed = {
                name: hashlib.sha256(f"{origin} {name} {digests[name]}".encode()).hexdigest() for name in self.experts
            }
            digests |= mixed
        if self.vocabulary is None:
            return digests
        origin = f"{self.vocabulary.digest} {sorted(digests.items())}"  # rows that a model lacks come from the others
        return {name: hashlib.sha256(f"{origin} {digest}".encode()).hexdigest() for name, digest in digests.items()}

    @property
    def text(self) -> str:
        """The model whose tokenizer, chat template and generation settings merges have: `base`, or an expert."""
        return self.vocabulary.owner if self.vocabulary is not None else self.like or "base"

    def open_base(self) -> Folder | Aligned:
        """Return the base by the names in its files, as a live model is made of it."""
        stored = Folder(self.base.path)
        if isinstance(self.base, Aligned) and self.heads:  # its own head may have rows of its own tokens
            stored.read_as({name: (stored, name) for name in self.base.info})
        return self.base.again(stored) if isinstance(self.base, Aligned) else stored

    @property
    def differences_in_text(self) -> list[str]:
        """How the experts' chat templates, end tokens and vocabularies differ from those of merged models, in words."""
        experts = {name: expert.path for name, expert in self.experts.items()}
        like = None if self.text == "base" else self.text
        return differences_in_text(self.base.path, experts, like, vocabularies=self.vocabulary is None)

    def _align(self, choice: TokenizerChoice, models: Mapping[str, Folder | Adapter]) -> None:
        """Give all models the rows of one vocabulary, whose tokenizer merges then have."""
        names = self._backbone_names
        ignored = frozenset(names.ignored)
        vocabulary = Vocabulary(choice, models, names.vocabulary(), ignored=ignored, like=self.like)
        base = self.base = Aligned("base", models["base"], vocabulary, models)
        for name in self.experts:
            self.experts[name] = Aligned(name, models[name], vocabulary, models, base)
        self.vocabulary, self.tokenizer = vocabulary, vocabulary.folder
        self.notes += vocabulary.notes
        self.heads = by_tokens(self.heads, models, vocabulary.settings)

    def _folder_like(self, like: str) -> Path:
        if like not in self.experts:
            raise PoolError(f"`like` is `{like}`, which is no expert of the pool; {nearest(like, self.experts)}")
        folder = self.experts[like].path
        files_beside(self.base.path, folder)
        return folder

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of a merge's `config.json`: the base's, but untied where a model of the pool has a head of its own."""
        config = self.base.config
        loose = self.names.untied or self._loose_heads()
        return untied(config) if loose else config

    def _loose_heads(self) -> bool:
        """Return whether the base's class ties a head and an embedding that are both stored, and differ in some model."""
        if self.base.config.get("tie_word_embeddings", True) is False:
            return False
        names: dict[tuple[int, ...], dict[str, list[str]]] = {}
        for name, entry in self.merged.items():
            kind = self.layout.place(name).kind
            if kind in ("embedding", "head") and len(entry.shape) == 2:
                names.setdefault(entry.shape, {}).setdefault(kind, []).append(name)
        loose = [name for kinds in names.values() if len(kinds) == 2 for part in kinds.values() for name in part]
        return bool(loose) and bool(self.names.tied(loose)) and not self.names.encoder_decoder

    @cached_property
    def layout(self) -> Layout:
        """Where each of the base's tensors is in the model."""
        return Layout(self.base.info, self.base.config)

    @cached_property
    def merged(self) -> Mapping[str, TensorInfo]:
        """The tensors that are merged: floating point, tied ones once. All others are copied from the base."""
        return {
            name: entry
            for name, entry in self.base.info.items()
            if entry.dtype.is_floating_point and name not in self.aliases and name not in self.names.ignored
        }

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Tied tensors: the name of each that equals another in every model, and shares its memory in the module → that name."""
        aliases: dict[str, str] = {}
        for names in find_copies(self.models):
            kinds = {name: self.layout.place(name).kind for name in names}
            tied = self._tied(names, kinds)
            for members in tied:
                kept = min(members, key=lambda name: kinds[name] != "embedding")  # the first of them
                aliases |= {name: kept for name in members if name != kept}
        return aliases

    def _tied(self, names: list[str], kinds: Mapping[str, str]) -> list[list[str]]:
        """Return the sets of tied tensors among `names`, which are equal in every model."""
        word = self.base.config.get("tie_word_embeddings", True)  # left out of config.json where it is the default
        ends = [name for name in names if kinds[name] in ("embedding", "head") and len(self.base.info[name].shape) == 2]
        pair = [ends] if word and sorted({kinds[name] for name in ends}) == ["embedding", "head"] else []
        if pair and len(names) == 2:  # the most common tie, for which no class needs to be imported
            return pair
        return self.names.tied(names) if self.names.reading is not None else pair

    @property
    def parameters(self) -> int:
        """Number of elements that are merged."""
        return sum(entry.numel for entry in self.merged.values())

    @property
    def nbytes(self) -> int:
        """Bytes of one checkpoint in storage."""
        return sum(entry.nbytes for entry in self.base.info.values())

    def forget(self) -> None:
        """Close the files of all models."""
        for model in self.models:
            model.forget()

    @cached_property
    def _backbone_names(self) -> Names:
        """What the class of what is merged makes of the names in the base's files."""
        return Names(self.names.base, {}, auto="AutoModel") if self.heads else self.names

    def _open_adapters(self, held: Mapping[str, AdapterFiles], *, resizable: bool) -> dict[str, Adapter]:
        """Return the adapters, after each tie that one of them breaks is broken in all models."""
        names = self._backbone_names
        apart = {name: head.trained for name, head in self.heads.items()}
        while True:
            resized = names.vocabulary() if held and resizable else frozenset[str]()
            try:
                return {
                    name: Adapter(files, names.base, names, resized=resized, apart=apart.get(name, frozenset()))
                    for name, files in held.items()
                }
            except LooseTieError as loose:
                if self.heads:
                    raise
                self.names.untie(loose.ties, str(loose).partition(":")[0])

    def _check_alike(self, name: str, expert: Folder | Adapter | Aligned | Shuffled) -> None:
        unlike = [
            f"tensor `{tensor}`: {came} in the expert, {wanted} in the base"
            for tensor, came, wanted in differences(expert.info, self.base.info)
        ]
        if len(unlike) > 1:
            unlike[1:] = [f"{len(unlike) - 1} more tensors"]
        for key in _SAME_CONFIG:
            if key == "vocab_size" and self.vocabulary is not None:
                continue
            wanted, came = self.base.config.get(key), expert.config.get(key)
            if wanted != came:
                unlike.append(f"{key}: {came!r} in the expert, {wanted!r} in the base")
        if unlike:
            msg = f"expert `{name}` ({expert.path}) differs from the base ({self.base.path}) in {'; '.join(unlike)}. Expected fine-tunes of the same base"
            differ = [key for key in _SAME_CONFIG if self.base.config.get(key) != expert.config.get(key)]
            if self.vocabulary is None and (differ == ["vocab_size"] or _only_rows_differ(expert, self.base)):
                msg += f". Their vocabularies differ: type {UNION}"
            raise PoolError(msg)
        for tensor, entry in self.base.info.items():
            if entry.dtype.is_floating_point != expert.info[tensor].dtype.is_floating_point:
                msg = f"expert `{name}`: tensor `{tensor}` is {expert.info[tensor].dtype}, in the base {entry.dtype}"
                raise PoolError(msg)

    def _compare_base(self, name: str, adapter: Adapter, *, weights: bool) -> None:
        """Note where an adapter names another model than the base as the one that it was trained on: one of the hub, or one that is here."""
        base, _, _ = (hub.name_of(self.base.path.absolute()) or "").partition("@")
        if base and adapter.trained_on != base and hub.hub_id(f"hf://{adapter.trained_on}") is not None:
            self.notes.append(
                f"the adapter `{name}` says that it was trained on {adapter.trained_on}, and the base is {base}"
            )
        elif weights and adapter.trained_on and Path(adapter.trained_on).is_dir():
            other = Path(adapter.trained_on).resolve()
            if other != self.base.path.resolve() and not nearly_same_weights(adapter.base, other):
                self.notes.append(
                    f"the adapter `{name}` says that it was trained on {adapter.trained_on}, whose weights are not those of the base, {self.base.path}"
                )

    def _compare(self, name: str, base: Folder, expert: Folder, *, weights: bool) -> None:
        """Note in what an expert differs from the base beside its weights. Raises `PoolError` where weights cannot make up for it."""
        aligned = self.vocabulary is not None
        fatal, notes = compare_settings(base, expert, labels=not self.heads, tokens=not aligned)
        if fatal:
            msg = f"expert `{name}` ({expert.path}) differs from the base ({base.path}) in {'; '.join(fatal)}. With equal weights it is another model, so a merge would mean nothing. Expected fine-tunes of the same base"
            raise PoolError(msg)
        integers = [
            tensor
            for tensor, entry in base.info.items()
            if weights
            and not entry.dtype.is_floating_point
            and not tensor.endswith(_COUNTS)
            and not torch.equal(base.tensor(tensor), expert.tensor(tensor))
        ]
        if integers:
            more = f" and {len(integers) - 1} more" if len(integers) > 1 else ""
            notes.append(f"the integers in `{integers[0]}`{more}, which are not merged")
        if notes:
            self.notes.append(f"`{name}` differs from the base in {'; '.join(notes)}. A merge has what the base has")

    def _compare_meanings(self, experts: Mapping[str, Folder | Adapter]) -> None:
        """Compare, in base and experts two by two, which token an id stands for, and which label a number.

        Raises `PoolError` where one token, or one label, has two numbers: its rows would be merged with those of another.
        """
        models: dict[str, Folder | Adapter] = {"base": self._stored["base"], **experts}
        tokens = {name: added_tokens(model.path) for name, model in models.items()} if self.vocabulary is None else {}
        for left, right in itertools.combinations(models, 2):
            other = models[right]
            who = ("the base" if left == "base" else f"`{left}`", "the expert" if left == "base" else f"`{right}`")
            moved, notes = compare_tokens(tokens.get(left, {}), tokens.get(right, {}), who)
            if moved and not all(map(self._has_rows, (models[left], other))):
                moved, notes = [], moved
            labels: list[str] = []
            if left != "base" and not self.heads:
                labels, more = compare_labels(models[left].config.get("id2label"), other.config.get("id2label"), who)
                notes = [*notes, *more]
            between = f"the base ({self.base.path})" if left == "base" else f"expert `{left}` ({models[left].path})"
            if moved or labels:
                msg = f"expert `{right}` ({other.path}) differs from {between} in {'; '.join([*labels, *moved])}. With equal weights it is another model, so a merge would mean nothing. Expected fine-tunes of the same base"
                raise PoolError(msg if labels else f"{msg}. To merge them, type {UNION}")
            if notes:
                has = "A merge has what the base has" if left == "base" else "A merge mixes their rows"
                self.notes.append(f"`{right}` differs from {who[0]} in {'; '.join(notes)}. {has}")

    def _has_rows(self, model: Folder | Adapter) -> bool:
        """Return whether a model may have rows of its own for tokens: not an adapter that leaves embeddings and head alone."""
        changed = model.changed if isinstance(model, Adapter) else ()
        kinds = {self.layout.place(name).kind for name in changed if name in self.base.info}
        return isinstance(model, Folder) or not kinds.isdisjoint(("embedding", "head"))


def _about(heads: Mapping[str, Head]) -> str:
    kept = [f"{name} ({len(head.own)} tensors, such as `{min(head.own)}`)" for name, head in heads.items() if head.own]
    return (
        f"heads are not merged, only the backbone is; each model keeps its own: {', '.join(kept)}. A task is scored with the head "
        "of the expert of its name, or of its `head_of`; an export has a folder for each, or one head by `--head EXPERT`"
    )


def _only_rows_differ(expert: Checkpoint, base: Checkpoint) -> bool:
    """Return whether two models differ in the number of rows of some matrices alone, all from and to the same number."""
    if expert.info.keys() != base.info.keys():
        return False
    pairs = [(expert.info[name].shape, entry.shape) for name, entry in base.info.items()]
    pairs = [(came, wanted) for came, wanted in pairs if came != wanted]
    return all(came[1:] == wanted[1:] for came, wanted in pairs) and len({(c[0], w[0]) for c, w in pairs}) == 1
