"""Pipeline: one merge, run one tensor at a time.

fp32 arithmetic whatever the storage, one cast at the end, and no temporary of a tensor's full size.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch

from evomerge.merging.composition import Composition, Uncompilable, compiled
from evomerge.merging.methods import spell_out
from evomerge.merging.parameters import at, resolve
from evomerge.merging.prepared import Store
from evomerge.merging.stage import Block, Bound, Piece, Prepared, Rows, Scope, Site, moved, part
from evomerge.merging.stages import STAGES
from evomerge.recipe import Merge, MergeNode, Place, Recipe, Tiled, canonical_json

BLOCK = 1 << 16
"""Elements of one block where a composition runs as written: a few such rows fit into a processor's cache."""

COMPILED = 1 << 14
"""Elements of a tensor from which on the compiled form is the faster one."""

PATIENCE = 15.0
"""Seconds that a composition runs as written before it is compiled all the same, which takes about as long."""

_spent: defaultdict[Composition, float] = defaultdict(float)
"""Seconds that each composition has run as written, on tensors that would have been worth compiling for."""

_LONGEST = 1 << 30
"""Elements that one call of the compiled form gets at most."""

_INDICES = 1 << 32
"""An element's index has 32 bits, and begins anew after that many."""

_FORMAT = 2
"""Part of the keys of what is kept on disk: to be raised whenever anything prepared changes."""

CPU = torch.device("cpu")

T = TypeVar("T")


class Inputs(Protocol):
    """What a merge reads: the base and the inputs, tensor by tensor."""

    @property
    def names(self) -> Iterable[str]:
        """The floating-point tensors to merge, in the order of the base."""

    @property
    def ids(self) -> Sequence[str]:
        """What the base and the inputs are, by content `(1 + K,)`: what has been prepared for them may be used again."""

    @property
    def nested(self) -> Collection[int]:
        """Which of the inputs, counted from 1, are not the pool's own models: what is prepared for them lasts for one merge."""

    def place(self, name: str) -> Place:
        """Where the tensor is in the model."""

    def load(self, name: str, device: torch.device = CPU) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The base's tensor and the inputs' `(K,)` on `device`, in the dtype they are stored in."""


class Pipeline:
    """One merge over given inputs. Not to be confused with its `Merge`, the words that describe it."""

    def __init__(self, merge: Merge, inputs: Inputs, store: Store, *, compile: bool = False) -> None:  # noqa: A002  # torch's word
        """Read `merge`, and check that its tables fit the inputs' model; no tensor is read.

        `store` is kept by the caller and shared by all merges of a pool. `compile` says whether compositions are
        compiled at once, or only when they have run for a while; the bytes are the same. Raises `RecipeError`.
        """
        spelled = spell_out(merge)
        self._labels = merge.labels
        self.seed = merge.seed
        self._inputs = inputs
        self._compile = compile
        places = {inputs.place(name) for name in inputs.names}
        self._numbers = {place: _numbers(spelled, place, merge.labels) for place in places}
        self._compositions = {
            place: Composition(
                spelled["origin"],
                tuple((name, _words(name, numbers)) for name, numbers in self._numbers[place]),
                at(spelled["reduce"], place),
            )
            for place in places
        }
        self._shared, self._store = store, Store() if inputs.nested else store
        self._stages = [STAGES[name] for name, _ in spelled["steps"]]
        self._adds = any(stage.adds for stage in self._stages)
        self._about = (spelled["origin"], *inputs.ids, *merge.labels, merge.seed)
        self._sites: dict[str, Site] = {}
        self._spelled = spelled

    @cached_property
    def _texts(self) -> tuple[str, ...]:
        """The steps and the reduction, with their tables, as text: what a measure over the model may depend on."""
        reduction = ("reduce", {"reduce": self._spelled["reduce"]})
        return tuple(canonical_json(_plain(step)) for step in (*self._spelled["steps"], reduction))

    def write(self, name: str, out: torch.Tensor) -> None:
        """Merge the tensor `name` into `out`, which has its shape and any floating-point dtype."""
        self._write(name, [self], [out])

    def write_together(self, name: str, others: Sequence["Pipeline"], outs: Sequence[torch.Tensor]) -> None:
        """Merge the tensor `name` by this merge and by `others` of the same inputs, into `outs`, reading these once."""
        place = self._inputs.place(name)
        groups: dict[Composition, list[int]] = {}
        merges = [self, *others]
        for i, merge in enumerate(merges):
            groups.setdefault(merge._compositions[place], []).append(i)  # noqa: SLF001  # of its own class
        for group in groups.values():
            merges[group[0]]._write(  # noqa: SLF001  # of its own class
                name, [merges[i] for i in group], [outs[i] for i in group]
            )

    def _write(self, name: str, merges: Sequence["Pipeline"], outs: Sequence[torch.Tensor]) -> None:
        """Merge a tensor by `merges` of one composition."""
        device = outs[0].device
        site, base, tensors = self._load(name, device)
        composition = self._compositions[site.place]
        flat = [_flat(out) for out in outs]
        if composition.origin == "base" and not self._adds and self._unchanged(name, base, tensors):
            for out in flat:
                out.copy_(base)
            return
        bounds = []
        for merge in merges if base.numel() else ():
            own = replace(site, seed=merge.seed)
            bounds.append([moved(merge.bound(step, own), device) for step in range(len(self._stages))])
        if base.numel() >= COMPILED and (self._compile or _spent[composition] > PATIENCE):
            dtypes = (tuple(tensor.dtype for tensor in (base, *tensors)), tuple(out.dtype for out in outs))
            with contextlib.suppress(Uncompilable):
                _run(compiled(composition, *dtypes), _LONGEST, base, tensors, flat, bounds)
                return
        before = time.perf_counter()
        _run(composition.run, BLOCK, base, tensors, flat, bounds)
        if base.numel() >= COMPILED:
            _spent[composition] += time.perf_counter() - before

    def blocks(self, step: int, tensor: str, within: slice | None = None) -> Iterator[Block]:
        """Yield a tensor, or some of its elements, block by block, as the stage number `step` finds it."""
        site, base, tensors = self._load(tensor)
        composition = self._compositions[site.place]
        bound = [self.bound(i, site) for i in range(step)]
        for span in _spans(within or slice(0, base.numel()), BLOCK) if base.numel() else [slice(0, 0)]:
            origin, raw = composition.rows(base[span], [row[span] for row in tensors])
            piece = Piece(raw, _start(span))
            rows = composition.upto(step, piece, [part(values, span) for values in bound])
            yield Block(site, span, piece, rows, base[span], origin)

    def prepared(self, step: int, tensor: str) -> Prepared:
        """Return what the stage number `step` prepares of a tensor."""
        site = self._site(tensor)
        name, numbers = self._numbers[site.place][step]
        stage = self._stages[step]
        assert stage.prepare is not None
        prepare = stage.prepare

        def make() -> Prepared:
            return prepare(site, lambda: self.blocks(step, tensor), numbers)

        if not self.lasting(step):
            return make()
        origin = self._compositions[site.place].origin
        what = stage.prepared_as or name
        read = [0, *(1 + i for i in stage.reads)] if stage.reads is not None else range(len(self._inputs.ids))
        ids = [self._inputs.ids[i] for i in read]
        key = (_FORMAT, what, *stage.prepared_for(site, numbers), origin, *ids, tensor)
        store = self._store if any(i in self._inputs.nested for i in read) else self._shared
        return store.prepared(key, site.numel, make)

    def lasting(self, step: int) -> bool:
        """Return whether what a stage finds depends on the pool alone: no edit comes before it, nor a reduction."""
        return self._stages[step].role != "post" and all(stage.role != "edit" for stage in self._stages[:step])

    def key(self, step: int, tensor: str | None, *what: Hashable) -> Hashable:
        """Return a key of all that a stage finds, in one tensor or in the model, and of `what`."""
        if self.lasting(step):
            before: tuple[Hashable, ...] = ()
        elif tensor is None:
            before = (*self._texts[:step], self._texts[-1])
        else:
            place = self._inputs.place(tensor)
            steps = ((name, *numbers.items()) for name, numbers in self._numbers[place][:step])
            before = (*steps, self._compositions[place].reduce)
        return (self._about, tensor, before, *what)

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` makes, made once for the whole search."""
        return self._store.measure(key, make)

    @cached_property
    def names(self) -> Mapping[str | None, Sequence[str]]:
        """The tensors of each kind, and under None those of the model, in its order."""
        found: defaultdict[str | None, list[str]] = defaultdict(list)
        for name in self._inputs.names:
            found[None].append(name)
            found[self._inputs.place(name).kind].append(name)
        return found

    def bound(self, step: int, site: Site) -> Bound:
        """Return what a stage's `apply` reads for one tensor."""
        name, numbers = self._numbers[site.place][step]
        stage = self._stages[step]
        scope = stage.scope(numbers)
        if scope == "block":
            return stage.bind(site, numbers, None)
        region = _Region(self, step, site, scope)
        if stage.gives_fields:  # as large as the tensor: what was prepared is kept, the rest is not
            return stage.bind(site, numbers, stage.measure(region, numbers))
        key = region.key(name, *numbers.items())
        return stage.bind(site, numbers, self._store.measure(key, lambda: stage.measure(region, numbers)))

    def _unchanged(self, name: str, base: torch.Tensor, tensors: Rows) -> bool:
        """Return whether every task vector of the tensor is zero, as of frozen embeddings: so is their merge then."""

        def compare() -> bool:
            return all(tensor.dtype == base.dtype and torch.equal(tensor, base) for tensor in tensors)

        return self._store.measure(("unchanged", name, *self._inputs.ids), compare)

    def _site(self, tensor: str) -> Site:
        """Return a tensor's site; what makes the inputs' tensors may take long, and is not asked for it twice."""
        if tensor not in self._sites:
            self._load(tensor)
        return self._sites[tensor]

    def _load(self, name: str, device: torch.device = CPU) -> tuple[Site, torch.Tensor, Rows]:
        """Return a tensor's site, and the base's and the inputs' numbers `(n,)`, on `device`."""
        base, tensors = self._inputs.load(name, device)
        site = Site(name, tuple(base.shape), self._inputs.place(name), self._labels, self.seed)
        self._sites[name] = site
        return site, _flat(base.contiguous()), [_flat(tensor.contiguous()) for tensor in tensors]


class _Region:
    """The tensors over which one stage of a pipeline measures: one, those of its kind, or all."""

    def __init__(self, pipeline: Pipeline, step: int, site: Site, scope: Scope) -> None:
        self._pipeline = pipeline
        self._step = step
        self.site = site
        self._tensor = site.tensor if scope == "tensor" else None
        self._kind = site.place.kind if scope == "kind" else None
        self.tensors: Sequence[str] = [site.tensor] if scope == "tensor" else pipeline.names[self._kind]

    @property
    def lasting(self) -> bool:
        return self._pipeline.lasting(self._step)

    def prepared(self) -> Sequence[Prepared]:
        return [self._pipeline.prepared(self._step, tensor) for tensor in self.tensors]

    def key(self, *what: Hashable) -> Hashable:
        """Return a key of all that the stage finds here, and of `what`."""
        return self._pipeline.key(self._step, self._tensor, self._kind, *what)

    def remember(self, make: Callable[[], T]) -> T:
        return self._pipeline.remember(self.key(make.__qualname__), make)

    def blocks(self) -> Iterator[Block]:
        for tensor in self.tensors:
            yield from self._pipeline.blocks(self._step, tensor)

    def within(self, tensor: str, span: slice) -> Iterator[Block]:
        return self._pipeline.blocks(self._step, tensor, span)


def _run(
    run: Callable[..., None], length: int, base: torch.Tensor, tensors: Rows, outs: Rows, bounds: list[list[Bound]]
) -> None:
    for span in _spans(slice(0, base.numel()), length):
        parts = [[part(values, span) for values in bound] for bound in bounds]
        run(base[span], [row[span] for row in tensors], [out[span] for out in outs], _start(span), parts)


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """Return the numbers `(n,)` of a contiguous tensor."""
    # No view of it as autograd sees it: for each number of dimensions of what is viewed, torch would compile anew.
    return tensor.view(-1).data


def _start(span: slice) -> torch.Tensor:
    return torch.tensor(span.start % _INDICES - _INDICES // 2, dtype=torch.int32)


def _spans(span: slice, length: int) -> Iterator[slice]:
    for start in range(span.start, span.stop, length):
        yield slice(start, min(start + length, span.stop))


def _numbers(spelled: Mapping[str, Any], place: Place, labels: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return each step's parameters for a tensor at `place`. Raises `RecipeError` where a table has no such entry."""
    return [
        (name, {key: resolve(STAGES[name].parameters[key], value, place, labels) for key, value in parameters.items()})
        for name, parameters in spelled["steps"]
    ]


def _words(name: str, numbers: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((key, numbers[key]) for key, parameter in STAGES[name].parameters.items() if parameter.is_word)


def _plain(step: tuple[str, Mapping[str, Any]]) -> Any:
    name, parameters = step
    return [name, {key: value.model_dump() if isinstance(value, Tiled) else value for key, value in parameters.items()}]


def check(recipe: Recipe, places: Sequence[Place] = ()) -> None:
    """Raise `RecipeError` unless every merge in `recipe` names known stages and valid parameters.

    With `places`, those of a model's tensors, its tables must also have an entry for each of them.
    """
    if isinstance(recipe.root, MergeNode):
        merge = recipe.root.merge
        spelled = spell_out(merge)
        for place in places:
            _numbers(spelled, place, merge.labels)
            at(spelled["reduce"], place)
    for child in dict.fromkeys(recipe.children):
        check(child, places)
