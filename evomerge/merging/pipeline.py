"""Pipeline: one merge, run one tensor at a time. Not to be confused with its `Merge`, the recipe node that describes it.

fp32 arithmetic whatever the storage, one cast at the end, and no temporary of a tensor's full size.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.merging.composition import Composition, Uncompilable, compiled
from evomerge.merging.methods import spell_out
from evomerge.merging.parameters import at, resolve
from evomerge.merging.prepared import Store
from evomerge.merging.site import INDICES, Bound, Chunk, Piece, Prepared, Region, Rows, Scope, Site, part
from evomerge.merging.slopes import sloped
from evomerge.merging.stages import STAGES
from evomerge.recipe import Merge, MergeNode, Place, Recipe, Tiled
from evomerge.recipe.form import KeyPath

CHUNK = 1 << 16
"""Elements of one chunk where a composition runs as written: a few such rows fit into a processor's cache."""

COMPILED = 1 << 14
"""Minimum number of elements of a tensor for which the compiled form is faster."""

PATIENCE = 15.0
"""Seconds that a composition runs as written before it is compiled, which takes about as long. The bytes are the same."""

_spent: defaultdict[Composition, float] = defaultdict(float)
"""Seconds that each composition has run as written, on tensors of at least `COMPILED` elements."""

_LONGEST = 1 << 30
"""Maximum number of elements for one call of the compiled form."""

_FORMAT = 3
"""Part of the keys of the tables kept on disk; to be raised whenever the content of a table changes."""


@dataclass
class Inputs:
    """What a merge reads: the base and the inputs, tensor by tensor."""

    names: Collection[str]
    """The floating-point tensors to merge, in the order of the base."""
    ids: Sequence[str]
    """Content ids of the base and of the inputs, `(1 + K,)`: part of the keys of prepared tables."""
    place: Callable[[str], Place]
    """(name) → the tensor's place in the model."""
    load: Callable[[str], Sequence[torch.Tensor]]
    """(name) → the base's tensor and the inputs', `(1 + K,)`, in the dtype they are stored in."""
    nested: Collection[int] = ()
    """Numbers, from 1, of the inputs that are not models of the pool: tables prepared of them last for one merge."""


@dataclass(frozen=True)
class Pulled:
    """Derivatives of <gradient, merged tensor>."""

    parameters: Sequence[Mapping[str, NDArray[np.float64]]]
    """For each step, those of its parameters that have slopes: `(K,)` where per input, else `()`."""
    inputs: Mapping[int, torch.Tensor]
    """By the number of an input, those with respect to the elements of its tensor, float32 `(n,)`."""


class Pipeline:
    """One merge of given inputs."""

    def __init__(self, merge: Merge, inputs: Inputs, store: Store, *, compile: bool = False) -> None:  # noqa: A002  # torch's word
        """Read `merge`, and check that its tables fit the inputs' model; no tensor is read.

        The caller keeps `store` and shares it among all merges of a pool. With `compile`, compositions are compiled at
        once, else only when they have run for a while; the bytes are the same. Raises `RecipeError`.
        """
        spelled = spell_out(merge)
        self._labels = merge.labels
        self._seed = merge.seed
        self._inputs = inputs
        self._compile = compile
        named = merge.by_tensor(inputs.names)
        self._places = {  # without names, unless a table has them: tensors of one place share their values
            name: inputs.place(name) if named else inputs.place(name).unnamed for name in inputs.names
        }
        places = dict.fromkeys(self._places.values())
        self._values = {place: _values(spelled, place, merge.labels) for place in places}
        self._compositions = {
            place: Composition(
                spelled["origin"],
                tuple((name, _words(name, values)) for name, values in self._values[place]),
                at(spelled["reduce"], place),
            )
            for place in places
        }
        self._given = list(zip(spelled["steps"], spelled["paths"], strict=True))
        self._sloped = sloped(merge)
        self._shared, self.store = store, Store() if inputs.nested else store
        self._stages = [STAGES[name] for name, _ in spelled["steps"]]
        self._adds = any(stage.adds for stage in self._stages)
        self._about = (spelled["origin"], *inputs.ids, *merge.labels, merge.seed)
        self._sites: dict[str, Site] = {}

    def write(self, name: str, out: torch.Tensor) -> None:
        """Merge the tensor `name` into `out`, which has its shape, is contiguous, and has any floating-point dtype."""
        site, base, tensors = self._load(name)
        composition = self._compositions[site.place]
        flat = _flat(out)
        if composition.origin == "base" and not self._adds and self._unchanged(name, base, tensors):
            flat.copy_(base)
            return
        bound = [self.bound(step, site) for step in range(len(self._stages))] if base.numel() else []
        if base.numel() >= COMPILED and (self._compile or _spent[composition] > PATIENCE):
            dtypes = [tensor.dtype for tensor in (base, *tensors, out)]
            with contextlib.suppress(Uncompilable):
                _run(compiled(composition, *dtypes), _LONGEST, base, tensors, flat, bound)
                return
        before = time.perf_counter()
        _run(composition.run, CHUNK, base, tensors, flat, bound)
        if base.numel() >= COMPILED:
            _spent[composition] += time.perf_counter() - before

    def pull(self, name: str, gradient: torch.Tensor, inner: Collection[int] = ()) -> "Pulled":
        """Return the derivatives of <gradient, merged tensor> with respect to the parameters that have slopes.

        `gradient` is float32, of the tensor's shape. Masks, signs and thresholds are held fixed. `inner` are the numbers,
        from 0, of the inputs whose own derivatives are wanted too.
        """
        site, base, tensors = self._load(name)
        composition, stages = self._compositions[site.place], self._stages
        if not base.numel() or not self.depends(name):
            return Pulled([{} for _ in stages], {})
        flat = _flat(gradient.contiguous())
        bound: list[Bound] = []
        for step, stage in enumerate(stages):
            constants = self.bound(step, site)
            bound.append({key: _leaf(value) for key, value in constants.items()} if stage.slopes else constants)
        leaves = [value for values in bound for value in values.values() if _is_leaf(value)]
        sums = [np.zeros(leaf.shape) for leaf in leaves]
        inputs = {i: torch.empty_like(flat) for i in inner}
        linear = composition.linear and not inner
        dots: torch.Tensor | float = 0.0  # of the rows after the edits with the gradient, float64 `(rows,)`
        for span in _spans(slice(0, base.numel()), CHUNK):
            parts = [part(values, span) for values in bound]
            rows = [tensor[span] for tensor in tensors]
            if linear:
                origin, raw = composition.rows(base[span], rows)
                edited, *_ = composition.through(composition.edits, Piece(raw, _start(span)), parts)
                dots = dots + torch.stack([row @ flat[span] for row in edited]).double()
                continue
            with torch.enable_grad():
                rows = [row.float().requires_grad_() if i in inputs else row for i, row in enumerate(rows)]
                origin, raw = composition.rows(base[span], rows)
                (delta,) = composition.upto(len(stages), Piece(raw, _start(span)), parts)
                wanted = [*leaves, *(rows[i] for i in inputs)]
                grads = torch.autograd.grad(origin + delta, wanted, flat[span], allow_unused=True)
            added = [0.0 if grad is None else grad.double().numpy() for grad in grads[: len(leaves)]]
            sums = [total + new for total, new in zip(sums, added, strict=True)]
            for i, grad in zip(inputs, grads[len(leaves) :], strict=True):
                inputs[i][span] = 0.0 if grad is None else grad
        if isinstance(dots, torch.Tensor) and leaves:
            with torch.enable_grad():
                delta = composition.after_edits([dot.view(1) for dot in dots], bound)
                grads = torch.autograd.grad(delta, leaves, torch.ones_like(delta), allow_unused=True)
            sums = [
                np.zeros(leaf.shape) if g is None else g.double().numpy() for leaf, g in zip(leaves, grads, strict=True)
            ]
        by_leaf = {id(leaf): total for leaf, total in zip(leaves, sums, strict=True)}
        return Pulled([self._slopes(step, site, bound[step], by_leaf) for step in range(len(stages))], inputs)

    def _slopes(
        self, step: int, site: Site, bound: Bound, by_leaf: Mapping[int, NDArray[np.float64]]
    ) -> dict[str, NDArray[np.float64]]:
        """Return the derivatives with respect to a stage's parameters, from those with respect to what was bound."""
        stage, (_, values) = self._stages[step], self._values[site.place][step]
        derivatives = {key: by_leaf[id(value)] for key, value in bound.items() if id(value) in by_leaf}
        if not derivatives:
            return {}

        def measure(changed: Mapping[str, Any]) -> Any:
            assert stage.measure is not None
            return stage.measure.make(self._region(step, site, stage.measure.over(changed)), changed)

        return {name: slope(site, values, measure, derivatives) for name, slope in stage.slopes.items()}

    def numbers(self, name: str, pulled: Pulled) -> Iterator[tuple[KeyPath, float]]:
        """Yield key paths in the merge's JSON data, each with a derivative by the number there; a path may come several times."""
        place = self._inputs.place(name)
        for ((stage, values), path), derivatives in zip(self._given, pulled.parameters, strict=True):
            for key, derivative in derivatives.items():
                where = (*path, key)
                if where not in self._sloped:
                    continue
                per_input = STAGES[stage].parameters[key].per_input
                for label, number in zip(self._labels if per_input else [None], np.atleast_1d(derivative), strict=True):
                    if not isinstance(values[key], Tiled):
                        yield where, float(number)
                        continue
                    for entry, share in values[key].shares(place, label).items():
                        yield (*where, "values", *entry), share * float(number)

    def depends(self, name: str) -> bool:
        """Return whether the merged tensor depends on the parameters at all: not if all task vectors are zero."""
        site, base, tensors = self._load(name)
        fixed = self._compositions[site.place].origin == "base" and not self._adds
        return not (fixed and self._unchanged(name, base, tensors))

    def densities(self) -> dict[str, float]:
        """Return the share of merged elements that are not zero after the edits, by input; {} without edits of each input.

        It may differ from a `density` asked for: all equals of the smallest kept are kept, and some task vectors have more
        zeros. Reads the model once.
        """
        edits = [step for step, stage in enumerate(self._stages, 1) if stage.role == "edit"]
        if not edits or any(stage.joins for stage in self._stages):
            return {}
        kept, count = [0] * len(self._labels), 0
        for tensor in self.names[None]:
            site = self._site(tensor)
            bound = [self.bound(step, site) for step in range(edits[-1])] if site.numel else []
            for chunk in self.chunks(0, tensor):
                parts = [part(values, chunk.span) for values in bound]
                rows, *_ = self._compositions[site.place].through(len(parts), chunk.piece, parts)
                kept = [so_far + int(row.count_nonzero()) for so_far, row in zip(kept, rows, strict=True)]
            count += site.numel
        return {label: number / max(count, 1) for label, number in zip(self._labels, kept, strict=True)}

    def chunks(self, step: int, tensor: str, within: slice | None = None) -> Iterator[Chunk]:
        """Yield a tensor, or some of its elements, chunk by chunk, as stage number `step` reads it."""
        site, base, tensors = self._load(tensor)
        composition = self._compositions[site.place]
        bound = [self.bound(i, site) for i in range(step)]
        for span in _spans(within or slice(0, base.numel()), CHUNK) if base.numel() else [slice(0, 0)]:
            origin, raw = composition.rows(base[span], [row[span] for row in tensors])
            piece = Piece(raw, _start(span))
            rows = composition.upto(step, piece, [part(values, span) for values in bound])
            yield Chunk(site, span, piece, rows, base[span], origin)

    def prepared(self, step: int, tensor: str) -> Prepared:
        """Return the tables that stage number `step` prepares of a tensor."""
        site = self._site(tensor)
        name, values = self._values[site.place][step]
        prepare = self._stages[step].prepare
        assert prepare is not None

        def make() -> Prepared:
            return prepare.make(site, lambda: self.chunks(step, tensor), values)

        if not self.lasting(step):
            return make()
        origin = self._compositions[site.place].origin
        read = [0, *(1 + i for i in prepare.reads)] if prepare.reads is not None else range(len(self._inputs.ids))
        ids = [self._inputs.ids[i] for i in read]
        key = (_FORMAT, prepare.shared_as or name, *prepare.key(site, values), origin, *ids, tensor)
        store = self.store if any(i in self._inputs.nested for i in read) else self._shared
        return store.prepared(key, site.numel, make)

    def lasting(self, step: int) -> bool:
        """Return whether a stage's input depends on the pool alone: no edit and no reduction comes before it."""
        return self._stages[step].role != "post" and all(stage.role != "edit" for stage in self._stages[:step])

    def _key(self, step: int, tensor: str | None, kind: str | None) -> Hashable:
        """Return a key of a stage's input: in one tensor, else in those of a kind, else in the model."""
        places = () if self.lasting(step) else self._values if tensor is None else [self._places[tensor]]
        before = tuple(
            (
                *((name, *values.items()) for name, values in self._values[place][:step]),
                self._compositions[place].reduce,
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
        name, values = self._values[site.place][step]
        stage = self._stages[step]
        measure = stage.measure
        scope = measure.over(values) if measure is not None else None
        if measure is None or scope is None:
            return stage.bind(site, values, None)
        region = self._region(step, site, scope)
        if measure.fields:
            return stage.bind(site, values, measure.make(region, values))
        full_key = (self._region_key(step, site, scope), name, *values.items())
        return stage.bind(site, values, self.store.measure(full_key, lambda: measure.make(region, values)))

    def _region(self, step: int, site: Site, scope: Scope | None) -> Region:
        """Return the tensors that stage number `step` measures over for one of them."""
        key = self._region_key(step, site, scope)
        return Region(
            site,
            [site.tensor] if scope == "tensor" else self.names[site.place.kind if scope == "kind" else None],
            self.lasting(step),
            partial(self.prepared, step),
            partial(self.chunks, step),
            lambda what, make: self.store.measure((key, what), make),
        )

    def _region_key(self, step: int, site: Site, scope: Scope | None) -> Hashable:
        tensor = site.tensor if scope == "tensor" else None
        return self._key(step, tensor, site.place.kind if scope == "kind" else None)

    def _unchanged(self, name: str, base: torch.Tensor, tensors: Rows) -> bool:
        """Return whether every task vector of the tensor is zero, as of frozen embeddings: the merge is then the base."""

        def compare() -> bool:
            return all(tensor.dtype == base.dtype and torch.equal(tensor, base) for tensor in tensors)

        return self.store.measure(("unchanged", name, *self._inputs.ids), compare)

    def _site(self, tensor: str) -> Site:
        """Return a tensor's site; cached, as loading the tensors of a nested merge takes long."""
        return self._sites[tensor] if tensor in self._sites else self._load(tensor)[0]

    def _load(self, name: str) -> tuple[Site, torch.Tensor, Rows]:
        """Return a tensor's site, and the elements `(n,)` of the base and of the inputs."""
        base, *tensors = self._inputs.load(name)
        site = Site(name, tuple(base.shape), self._places[name], self._labels, self._seed)
        self._sites[name] = site
        return site, _flat(base.contiguous()), [_flat(tensor.contiguous()) for tensor in tensors]


def _run(
    run: Callable[..., None], length: int, base: torch.Tensor, tensors: Rows, out: torch.Tensor, bound: list[Bound]
) -> None:
    for span in _spans(slice(0, base.numel()), length):
        parts = [part(values, span) for values in bound]
        run(base[span], [row[span] for row in tensors], out[span], _start(span), parts)


def _leaf(value: Any) -> Any:
    """Return a bound constant as a leaf of a graph; fields and integers as they are."""
    return (
        value.detach().clone().requires_grad_()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
    )


def _is_leaf(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """Return the elements `(n,)` of a contiguous tensor."""
    # Detached from its view: torch would compile again for each number of dimensions of the tensor that is viewed.
    return tensor.view(-1).data


def _start(span: slice) -> torch.Tensor:
    return torch.tensor(span.start % INDICES - INDICES // 2, dtype=torch.int32)


def _spans(span: slice, length: int) -> Iterator[slice]:
    for start in range(span.start, span.stop, length):
        yield slice(start, min(start + length, span.stop))


def _values(spelled: Mapping[str, Any], place: Place, labels: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return each step's parameters for a tensor at `place`. Raises `RecipeError` where a table has no such entry."""
    return [
        (name, {key: resolve(STAGES[name].parameters[key], value, place, labels) for key, value in parameters.items()})
        for name, parameters in spelled["steps"]
    ]


def _words(name: str, values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((key, values[key]) for key, parameter in STAGES[name].parameters.items() if parameter.is_word)


def check(recipe: Recipe, places: Sequence[Place] = ()) -> None:
    """Raise `RecipeError` unless every merge in `recipe` names known stages and valid parameters.

    With `places`, those of a model's tensors, the recipe's tables must have an entry for each of them.
    """
    if isinstance(recipe.root, MergeNode):
        merge = recipe.root.merge
        spelled = spell_out(merge)
        if places:
            merge.by_tensor(dict.fromkeys(place.tensor for place in places))
        for place in places:
            _values(spelled, place, merge.labels)
            at(spelled["reduce"], place)
    for child in dict.fromkeys(recipe.children):
        check(child, places)
