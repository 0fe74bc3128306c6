"""Pipeline: one merge, run one tensor at a time. Not to be confused with its `Merge`, the recipe node that describes it.

fp32 arithmetic whatever the storage, one cast at the end, and no temporary of a tensor's full size.
"""

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeAlias

import torch

from evomerge.merging.composition import Composition, Uncompilable, compiled
from evomerge.merging.methods import spell_out
from evomerge.merging.parameters import at
from evomerge.merging.prepared import Store
from evomerge.merging.site import (
    INDICES,
    Bound,
    Chunk,
    Piece,
    Prepared,
    Region,
    Rows,
    Scope,
    Site,
    Statistics,
    T,
    Watch,
    part,
    unwatched,
)
from evomerge.merging.stages import STAGES
from evomerge.merging.steps import values_at, words_of
from evomerge.placement import Placement
from evomerge.recipe import Merge, Place

CHUNK = 1 << 16
"""Elements of one chunk where a composition runs as written: a few such rows fit into a processor's cache."""

PASS = 1 << 17
"""Elements that are merged as written at a time: each operation has a price of its own, and larger parts leave the cache."""

WIDE = 1 << 24
"""Elements of one chunk on an accelerator, where a composition runs as written: many enough to keep it busy."""

COMPILED = 1 << 14
"""Minimum number of elements of a tensor for which the compiled form is faster."""

PATIENCE = 15.0
"""Seconds that a composition runs as written before it is compiled, which takes about as long. The bytes are the same."""

_spent: defaultdict[Composition, float] = defaultdict(float)
"""Seconds that each composition has run as written, on tensors of at least `COMPILED` elements."""

_FIRST = 1 << 24
"""Elements of a merge that is made once, after whose merging as written the seconds for the rest are known."""

_FEW = 2
"""Maximum number of choices of a stage's parameters in one recipe for which cheap tables are not worth storing."""

_SMALL = 1 << 14
"""Bytes of tables that are always kept in memory."""

_LONGEST = 1 << 30
"""Maximum number of elements for one call of the compiled form."""

_FORMAT = 3
"""Part of the keys of the tables kept on disk; to be raised whenever the content of a table changes."""

Read: TypeAlias = Callable[[str], Sequence[torch.Tensor]]


@dataclass
class Inputs:
    """What a merge reads: the base and the inputs, tensor by tensor."""

    names: Collection[str]
    """The floating-point tensors to merge, in the order of the base."""
    ids: Callable[[], Sequence[str]]
    """Returns content ids of the base and of the inputs, `(1 + K,)`: part of the keys of prepared tables."""
    size: Callable[[str], int]
    """(name) → the tensor's number of elements."""
    place: Callable[[str], Place]
    """(name) → the tensor's place in the model, with its name in tables: of several matrices of one tensor, that tensor's."""
    load: Read
    """(name) → the base's tensor and the inputs', `(1 + K,)`, in the dtype they are stored in, on the host."""
    watch: Watch = unwatched
    """Receives the progress of `measuring` several tensors, in elements; and `compiling`, 0 of 1, before code is compiled."""
    nested: Collection[int] = ()
    """Numbers, from 1, of the inputs that are not models of the pool: tables prepared of them last for one merge."""
    placement: Placement = field(default_factory=Placement)
    """Where merges run; stages prepare and measure on the host."""
    statistics: Statistics = field(default_factory=Statistics)
    """What data say of the inputs, where a stage needs it."""
    fetch: Read | None = None
    """(name) → the same as `load`, on the device of `placement`; None: merges run on the host."""


class Pipeline:
    """One merge of given inputs."""

    def __init__(
        self,
        merge: Merge,
        inputs: Inputs,
        store: Store,
        *,
        compile: bool = False,  # noqa: A002  # torch's word
        once: bool = False,
    ) -> None:
        """Read `merge`, and check that its tables fit the inputs' model; no tensor is read.

        The caller keeps `store` and shares it among all merges of a pool. With `compile`, compositions are compiled at
        once, else only when they have run for a while. A merge that is made `once` is compiled, and its tables are stored,
        only where that pays off in itself. The bytes are the same. Raises `RecipeError`.
        """
        spelled = spell_out(merge)
        self._once = once
        self._labels = merge.labels
        self._seed = merge.seed
        self._inputs = inputs
        self._compile = compile
        named = merge.by_tensor(dict.fromkeys(inputs.place(name).tensor or name for name in inputs.names))
        self._places = {  # without names, unless a table has them: tensors of one place share their values
            name: inputs.place(name) if named else inputs.place(name).unnamed for name in inputs.names
        }
        places = dict.fromkeys(self._places.values())
        self.values = {place: values_at(spelled, place, merge.labels) for place in places}
        self.compositions = {
            place: Composition(
                spelled["origin"],
                tuple((name, words_of(name, values)) for name, values in self.values[place]),
                at(spelled["reduce"], place),
            )
            for place in places
        }
        self._shared, self.store = store, Store() if inputs.nested or once else store
        self.stages = [STAGES[name] for name, _ in spelled["steps"]]
        self._adds = any(stage.adds for stage in self.stages)
        self._ids = () if once else tuple(inputs.ids())
        kinds = {
            kind for steps in self.values.values() for name, values in steps for kind in STAGES[name].needs(values)
        }
        self._evidence = {kind: tuple(inputs.statistics.digests(kind)) for kind in sorted(kinds)}
        self._about = (spelled["origin"], *self._ids, *merge.labels, merge.seed, *self._evidence.values())
        self._sites: dict[str, Site] = {}
        self._left: dict[str, torch.Tensor] = {}  # by tensor: elements of each input that its edits left, int64 (K,)
        self._compiled: set[tuple[Any, ...]] = set()
        self._written: defaultdict[Composition, tuple[float, int]] = defaultdict(lambda: (0.0, 0))  # seconds, elements

    def write(self, name: str, out: torch.Tensor) -> None:
        """Merge the tensor `name` into `out`, which has its shape, is contiguous, and has any floating-point dtype.

        Where `out` is on the device of the inputs' placement, the merge runs there, else on the host.
        """
        if (fetch := self.reader(out.device)) is not None:
            self._write_placed(name, out, fetch)
            return
        site, base, tensors = self.load(name)
        composition = self.compositions[site.place]
        flat = flattened(out)
        left = self._left[name] = torch.zeros(len(self._labels), dtype=torch.int64)
        if self.is_base(site, base, tensors):
            flat.copy_(base)
            return
        bound = [self.bound(step, site) for step in range(len(self.stages))] if base.numel() else []
        counts = left if self._once and self._edits else None
        if base.numel() >= COMPILED and self._pays_off(composition):
            dtypes = [tensor.dtype for tensor in (base, *tensors, out)]
            if (composition, *dtypes) not in self._compiled:
                self._compiled.add((composition, *dtypes))
                self._inputs.watch("compiling", 0, 1)
            with contextlib.suppress(Uncompilable):
                _run(compiled(composition, *dtypes), _LONGEST, base, tensors, flat, bound, counts)
                return
        before = time.thread_time()
        _run(composition.run, PASS, base, tensors, flat, bound, counts)
        if base.numel() >= COMPILED:
            took = time.thread_time() - before
            _spent[composition] += took
            seconds, elements = self._written[composition]
            self._written[composition] = seconds + took, elements + base.numel()

    def _write_placed(self, name: str, out: torch.Tensor, fetch: Read) -> None:
        """Merge on an accelerator, as written: each operation is rounded as on the host, and the bytes are the same."""
        site, base, tensors = self.load(name, fetch)
        flat = flattened(out)
        left = self._left[name] = torch.zeros(len(self._labels), dtype=torch.int64)
        if self.is_base(site, base, tensors):
            flat.copy_(base)
        elif base.numel():
            bound = [self.send(self.bound(step, site)) for step in range(len(self.stages))]
            counts = self.send(left) if self._once and self._edits else None
            _run(self.compositions[site.place].run, WIDE, base, tensors, flat, bound, counts)
            if counts is not None:
                left.copy_(counts)

    def reader(self, device: torch.device) -> Read | None:
        """Return what reads tensors where merges run, if that is `device`, and not the host."""
        return self._inputs.fetch if device == self._inputs.placement.device else None

    def send(self, bound: T) -> T:
        """Return what was bound where merges run."""
        return self._inputs.placement.send(bound)

    def _pays_off(self, composition: Composition) -> bool:
        """Return whether to run the compiled form: for a merge that is made once, if the rest would take twice as long as compiling."""
        if not self._once:
            return self._compile or _spent[composition] > PATIENCE
        seconds, done = self._written[composition]
        return done >= _FIRST and seconds / done * (self._elements[composition] - done) > 2 * PATIENCE

    @cached_property
    def _elements(self) -> Mapping[Composition, int]:
        """Number of elements to which each composition applies."""
        elements: Counter[Composition] = Counter()
        for name, place in self._places.items():
            elements[self.compositions[place]] += self._inputs.size(name)
        return elements

    @cached_property
    def _edits(self) -> int:
        """Number of the last edit, from 1; 0 without edits of each input."""
        edits = [step for step, stage in enumerate(self.stages, 1) if stage.role == "edit"]
        return edits[-1] if edits and not any(stage.joins for stage in self.stages) else 0

    def depends(self, name: str) -> bool:
        """Return whether the merged tensor depends on the parameters at all: not if all task vectors are zero."""
        return not self.is_base(*self.load(name))

    def densities(self) -> dict[str, float]:
        """Return the share of merged elements that are not zero after the edits, by input; {} without edits of each input.

        It may differ from a `density` asked for: all equals of the smallest kept are kept, and some task vectors have more
        zeros. Known of a merge that is made once, after all its tensors were written.
        """
        if not self._edits or not self._once or len(self._left) < len(self._places):
            return {}
        count = max(sum(map(self._inputs.size, self._places)), 1)
        left = sum(self._left.values(), start=torch.zeros(len(self._labels), dtype=torch.int64))
        return {label: number / count for label, number in zip(self._labels, left.tolist(), strict=True)}

    def chunks(self, step: int, tensor: str, within: slice | None = None) -> Iterator[Chunk]:
        """Yield a tensor, or some of its elements, chunk by chunk, as stage number `step` reads it."""
        site, base, tensors = self.load(tensor)
        composition = self.compositions[site.place]
        bound = [self.bound(i, site) for i in range(step)]
        for span in spans(within or slice(0, base.numel()), CHUNK) if base.numel() else [slice(0, 0)]:
            origin, raw = composition.rows(base[span], [row[span] for row in tensors])
            piece = Piece(raw, start(span))
            rows = composition.upto(step, piece, [part(values, span) for values in bound])
            yield Chunk(site, span, piece, rows, base[span], origin)

    def prepared(self, step: int, tensor: str) -> Prepared:
        """Return the tables that stage number `step` prepares of a tensor."""
        site = self.site(tensor)
        name, values = self.values[site.place][step]
        prepare = self.stages[step].prepare
        assert prepare is not None

        def make() -> Prepared:
            return prepare.make(site, lambda: self.chunks(step, tensor), values)

        if not self.lasting(step):
            return make()
        if not self._stored(step):
            return self.store.small((step, tensor, prepare.key(site, values)), _SMALL, make)
        origin = self.compositions[site.place].origin
        known = self._ids or self._inputs.ids()
        read = [0, *(1 + i for i in prepare.reads)] if prepare.reads is not None else range(len(known))
        ids = [known[i] for i in read]
        evidence = [digest for kind in self.stages[step].needs(values) for digest in self._evidence[kind]]
        key = (_FORMAT, prepare.shared_as or name, *prepare.key(site, values), origin, *ids, *evidence, tensor)
        store = self.store if any(i in self._inputs.nested for i in read) else self._shared
        return store.prepared(key, site.numel, make)

    def lasting(self, step: int) -> bool:
        """Return whether a stage's input depends on the pool alone: no edit and no reduction comes before it."""
        return self.stages[step].role != "post" and all(stage.role != "edit" for stage in self.stages[:step])

    def _stored(self, step: int) -> bool:
        """Return whether a stage's tables are stored: others read them, or they take long to make."""
        prepare = self.stages[step].prepare
        cheap = self._once and prepare is not None and prepare.cheap
        choices = {tuple(steps[step][1].items()) for steps in self.values.values()} if cheap else ()
        return self.lasting(step) and not (cheap and len(choices) <= _FEW)

    def _key(self, step: int, tensor: str | None, kind: str | None) -> Hashable:
        """Return a key of a stage's input: in one tensor, else in those of a kind, else in the model."""
        places = () if self.lasting(step) else self.values if tensor is None else [self._places[tensor]]
        before = tuple(
            (
                *((name, *values.items()) for name, values in self.values[place][:step]),
                self.compositions[place].reduce,
            )
            for place in places
        )
        return (self._about, tensor, kind, before)

    @cached_property
    def names(self) -> Mapping[str | None, Sequence[str]]:
        """The tensors of each kind, and under None all of them, in the order of the model."""
        names: defaultdict[str | None, list[str]] = defaultdict(list)
        for name in self._inputs.names:
            names[None].append(name)
            names[self._places[name].kind].append(name)
        return names

    def bound(self, step: int, site: Site) -> Bound:
        """Return what a stage's `apply` reads for one tensor."""
        name, values = self.values[site.place][step]
        stage = self.stages[step]
        measure = stage.measure
        scope = measure.over(values) if measure is not None else None
        if measure is None or scope is None:
            return stage.bind(site, values, None)
        region = self.region(step, site, scope)
        if measure.fields:
            return stage.bind(site, values, measure.make(region, values))
        full_key = (self._region_key(step, site, scope), name, *values.items())
        return stage.bind(site, values, self.store.measure(full_key, lambda: measure.make(region, values)))

    def region(self, step: int, site: Site, scope: Scope | None) -> Region:
        """Return the tensors that stage number `step` measures over for one of them."""
        key = self._region_key(step, site, scope)
        return Region(
            site,
            [site.tensor] if scope == "tensor" else self.names[site.place.kind if scope == "kind" else None],
            self._inputs.size,
            self._stored(step),
            not self._inputs.nested,
            partial(self.prepared, step),
            partial(self.chunks, step),
            lambda what, make: self.store.measure((key, what), make),
            self._inputs.watch,
        )

    def _region_key(self, step: int, site: Site, scope: Scope | None) -> Hashable:
        tensor = site.tensor if scope == "tensor" else None
        return self._key(step, tensor, site.place.kind if scope == "kind" else None)

    def is_base(self, site: Site, base: torch.Tensor, tensors: Rows) -> bool:
        """Return whether a loaded tensor's merge is the base's, whatever the parameters: all task vectors of frozen embeddings are 0."""
        if self.compositions[site.place].origin != "base" or self._adds:
            return False

        def compare() -> bool:
            return all(tensor.dtype == base.dtype and torch.equal(tensor, base) for tensor in tensors)

        return self.store.measure(("unchanged", site.tensor, *self._ids), compare)

    def site(self, tensor: str) -> Site:
        """Return a tensor's site; cached, as loading the tensors of a nested merge takes long."""
        return self._sites[tensor] if tensor in self._sites else self.load(tensor)[0]

    def load(self, name: str, read: Read | None = None) -> tuple[Site, torch.Tensor, Rows]:
        """Return a tensor's site, and the elements `(n,)` of the base and of the inputs, by default on the host."""
        base, *tensors = (read or self._inputs.load)(name)
        site = Site(name, tuple(base.shape), self._places[name], self._labels, self._seed, self._inputs.statistics)
        self._sites[name] = site
        return site, flattened(base.contiguous()), [flattened(tensor.contiguous()) for tensor in tensors]


def _run(
    run: Callable[..., None],
    length: int,
    base: torch.Tensor,
    tensors: Rows,
    out: torch.Tensor,
    bound: list[Bound],
    left: torch.Tensor | None,
) -> None:
    for span in spans(slice(0, base.numel()), length):
        parts = [part(values, span) for values in bound]
        run(base[span], [row[span] for row in tensors], out[span], start(span), parts, left)


def flattened(tensor: torch.Tensor) -> torch.Tensor:
    """Return the elements `(n,)` of a contiguous tensor."""
    # Detached from its view: torch would compile again for each number of dimensions of the tensor that is viewed.
    return tensor.view(-1).data


def start(span: slice) -> torch.Tensor:
    """Return the index of the first element, as `Piece.start` counts it."""
    return torch.tensor(span.start % INDICES - INDICES // 2, dtype=torch.int32)


def spans(span: slice, length: int) -> Iterator[slice]:
    """Yield the parts of a span, of up to `length` elements each."""
    for first in range(span.start, span.stop, length):
        yield slice(first, min(first + length, span.stop))
