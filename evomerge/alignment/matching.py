"""match(source, to, symmetry): the order of one model's units that is nearest to another's weights, or activations.

Weight matching of Git Re-Basin (https://arxiv.org/abs/2209.04836): minimise |to - P(source)|², which is to maximise their inner
product, by coordinate descent over units, each an assignment problem. Units within others, such as the dims of each head, are
assigned for every pair of the outer ones, so that heads are compared in the best order of their dims. The sum of squares is not
convex in the orders: what is found is a local optimum. It starts from the order of the files, and from one found by what no
order changes (sorted weights), by which a permuted copy is recovered exactly; the better end counts.

Activation matching of the same paper is the same problem: what stands in place of weights is the activations of units on examples,
each with mean 0 and norm 1, whose inner products are correlations.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from evomerge.alignment.activations import Activations, observed
from evomerge.alignment.axes import Positions
from evomerge.alignment.boxes import Box
from evomerge.alignment.permuted import Permuted
from evomerge.alignment.symmetries import Permutations, Symmetry
from evomerge.checkpoints.folder import Checkpoint, Computed
from evomerge.errors import ModelError

SWEEPS = 100
"""Passes over all units after which the descent ends; it mostly ends after a few, where nothing improves."""

_GAIN = 1e-8
"""Smallest improvement, relative to the norms, that counts."""
_RANKS = 64
_FEATURES = 4096
_KEPT = 1 << 27
"""Number of elements of a model up to which the mean of several is kept in memory, in fp64, and not made at each read."""

_Orders: TypeAlias = dict[int, Positions]


def match(
    source: Checkpoint,
    to: Checkpoint,
    symmetry: Symmetry,
    activations: Activations | None = None,
    *,
    start: dict[int, Positions] | None = None,
) -> dict[int, Positions]:
    """Return the permutations of the units of `source` with which its weights are nearest to those of `to`.

    With `activations`, of `source` and of `to` on the same tokens, the sum of the correlations of units is largest; units that are
    the input of no matrix, such as the dims of queries and keys, are then matched by weights, in the order found for the others.
    With `start`, a descent begins there and not at the order of the files, and `start` itself is returned where nothing nearer is found.
    In fp64; nothing is drawn but the order of the units in each sweep, which is the same in every run. Raises `ModelError` for
    two models whose tensors differ in shape, and for activations that say nothing of any unit.
    """
    for name in sorted(symmetry.pieces):
        for mapping in symmetry.mappings.get(name, ()):
            shapes = [
                list(model.info[mapping.source].shape) if mapping.source in model.info else "missing"
                for model in (source, to)
            ]
            if shapes[0] != shapes[1]:
                raise ModelError(
                    f"tensor `{mapping.source}` has shape {shapes[0]} in the model that is aligned and {shapes[1]} in the one that "
                    "it is aligned to; expected equal widths: alignment reorders units and makes none"
                )
    free = [number for number, unit in enumerate(symmetry.units) if unit.free]
    weights = [
        Box(piece, _reader(symmetry, name, to), _reader(symmetry, name, source))
        for name, pieces in symmetry.pieces.items()
        for piece in pieces
    ]
    if activations is None:
        return _fitted(_Matcher(weights, symmetry, free), start)
    boxes = observed(symmetry, *activations)
    seen = {number for box in boxes for number in box.piece.flat}
    chosen = [number for number in free if number in seen]
    if not chosen:
        raise ModelError(
            "the activations say nothing of any unit of the model that can be reordered; match its weights: type `by: weights`"
        )
    orders = _fitted(_Matcher(boxes, symmetry, chosen))
    return _Matcher(weights, symmetry, [number for number in free if number not in seen]).descend(orders)


def match_many(models: Sequence[Checkpoint], symmetry: Symmetry) -> list[dict[int, Positions]]:
    """Return permutations of the units of each model with which all weights are near to each other (MergeMany of Git Re-Basin).

    Each is aligned to the first, and then, in turn, to the mean of the others, until no turn brings them nearer: the norm of their sum grows
    with each turn, or stays. The paper begins with the mean of models as they are, which hardly tells the order of any; so, permuted
    copies of one model are recovered exactly. Raises `ModelError` as `match`.
    """
    orders = [symmetry.identity(), *(match(model, models[0], symmetry) for model in models[1:])]
    kept = sum(entry.numel for entry in models[0].info.values()) <= _KEPT
    for _ in range(SWEEPS):
        improved = False
        for number, model in enumerate(models):
            others = [
                Permuted(other, symmetry, partial(orders.__getitem__, i))
                for i, other in enumerate(models)
                if i != number
            ]
            mean = partial(_mean, others)
            to = Computed(model.info, cache(mean) if kept else mean)
            nearer = match(model, to, symmetry, start=orders[number])
            improved |= nearer is not orders[number]
            orders[number] = nearer
        if not improved:
            break
    return orders


def _mean(models: Sequence[Checkpoint], name: str) -> Tensor:
    return torch.stack([model.tensor(name).double() for model in models]).mean(0)


def _reader(symmetry: Symmetry, name: str, model: Checkpoint) -> Callable[[], Tensor]:
    return lambda: symmetry.assembled(name, model.tensor)


def _fitted(matcher: "_Matcher", start: _Orders | None = None) -> _Orders:
    """Return the better end of the descents from the two starts."""
    fitted = matcher.descend(matcher.by_sorted_values())
    if start is None and matcher.is_exact(fitted):
        return fitted
    plain = matcher.descend(matcher.identity if start is None else start)
    best = max((plain, fitted), key=matcher.product)  # the first of equal ones
    if start is not None and matcher.product(best) - matcher.product(start) <= _GAIN * matcher.scale():
        return start
    return best


class _Matcher:
    """Two models, compared box by box, by the units that are `free`."""

    def __init__(self, boxes: Sequence[Box], symmetry: Symmetry, free: Sequence[int]) -> None:
        self._boxes, self._symmetry, self._free = boxes, symmetry, list(free)
        self.identity = symmetry.identity()
        self._within = symmetry.within
        self._having: dict[int, list[int]] = {number: [] for number in self._within}
        for place, box in enumerate(boxes):
            for number in dict.fromkeys(box.piece.flat):
                if number in self._having:
                    self._having[number].append(place)
        self._inner = {
            number: [other for other in self._free if number in self._within[other] and not self._within[number]]
            for number in self._free
        }

    def product(self, orders: Permutations, places: Sequence[int] | None = None) -> float:
        """Return the inner product of the model `to` and the permuted source, over the boxes at `places` or all."""
        chosen = range(len(self._boxes)) if places is None else places
        return sum(float((self._target(place) * self._permuted(place, orders)).sum()) for place in chosen)

    def is_exact(self, orders: Permutations) -> bool:
        """Return whether the permuted source is the model `to`, element by element."""
        return all(torch.equal(self._target(place), self._permuted(place, orders)) for place in range(len(self._boxes)))

    def descend(self, orders: _Orders) -> _Orders:
        """Return the orders at which no unit's assignment improves the product any more."""
        scale = self.scale()
        for sweep in range(SWEEPS):
            improved = False
            for number in np.random.default_rng(sweep).permutation(self._free).tolist():
                found, gain = self._best(number, orders)
                if gain > _GAIN * scale:
                    orders, improved = {**orders, **found}, True
            if not improved:
                break
        return orders

    def scale(self) -> float:
        """Return the squared norm of the model `to`; 1 where that is 0."""
        return sum(float(self._target(place).square().sum()) for place in range(len(self._boxes))) or 1.0

    def _gain(self, number: int, orders: _Orders, found: _Orders) -> float:
        """Return by how much the product grows with the orders found of a unit and of those within it."""
        touched = sorted({place for one in (number, *self._inner[number]) for place in self._having[one]})
        return self.product({**orders, **found}, touched) - self.product(orders, touched)

    def by_sorted_values(self) -> _Orders:
        """Return the orders that fit what no order changes: the sorted values of each unit, outer units first."""
        orders = dict(self.identity)
        for number in sorted(self._free, key=lambda number: len(self._within[number])):
            outer = self._within[number]
            features: list[tuple[Tensor, Tensor]] = []
            for place in self._having[number]:
                piece = self._boxes[place].piece
                own = piece.flat.index(number)
                front = [*(piece.flat.index(one) for one in outer), own]
                rest = [axis for axis in range(len(piece.flat)) if axis not in front]
                fixed = [axis for axis in rest if not self._is_free(piece.flat[axis])]
                moved = [axis for axis in rest if axis not in fixed]
                only = {one: orders[one] for one in outer}
                pair = []
                for tensor in (self._target(place), self._permuted(place, {**self.identity, **only})):
                    sizes = [tensor.shape[axis] for axis in front]
                    table = tensor.permute(*front, *fixed, *moved).reshape(
                        *sizes, int(np.prod([tensor.shape[axis] for axis in fixed])), -1
                    )
                    table = _thinned(table.sort(dim=-1).values, _RANKS).flatten(-2)
                    pair.append(
                        _thinned(table, _FEATURES).flatten(0, -3) if outer else _thinned(table, _FEATURES)[None]
                    )
                features.append((pair[0], pair[1]))
            wanted, given = (torch.cat(side, -1) for side in zip(*features, strict=True))
            costs = torch.stack([torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist") for one, other in zip(wanted, given, strict=True)])  # fmt: skip
            orders[number] = _assigned(-costs.square(), orders[number].shape)
        return orders

    def _best(self, number: int, orders: _Orders) -> tuple[_Orders, float]:
        """Return the best order of a unit, and of those within it, all others being as in `orders`; and what it gains."""
        inner = self._inner[number]
        if inner:
            found = self._best_with_inner(number, inner, orders)
            return found, self._gain(number, orders, found)
        outer = self._within[number]
        count = self._symmetry.units[number].size
        blocks = int(np.prod([self._symmetry.units[one].size for one in outer]))
        gains = torch.zeros(blocks, count, count, dtype=torch.float64)
        identity = {**orders, number: self.identity[number]}
        for place in self._having[number]:
            piece = self._boxes[place].piece
            for own in [axis for axis, one in enumerate(piece.flat) if one == number][:1]:
                front = [*(piece.flat.index(one) for one in outer), own]
                rest = [axis for axis in range(len(piece.flat)) if axis not in front]
                wanted, given = (
                    tensor.permute(*front, *rest).reshape(blocks, count, -1)
                    for tensor in (self._target(place), self._permuted(place, identity))
                )
                gains += wanted @ given.mT
        order = _assigned(gains, orders[number].shape)
        if any(self._boxes[place].piece.flat.count(number) > 1 for place in self._having[number]):
            return {number: order}, self._gain(number, orders, {number: order})
        pair = (torch.from_numpy(one.reshape(blocks, count, 1)) for one in (order, orders[number]))
        new, old = (float(gains.gather(2, one).sum()) for one in pair)
        return {number: order}, new - old

    def _best_with_inner(self, number: int, inner: Sequence[int], orders: _Orders) -> _Orders:
        """Return the best order of a unit, each pair being compared in the best order of the units within it."""
        units = self._symmetry.units
        start = self.identity
        plain = {**orders, **{one: start[one] for one in (number, *inner)}}
        count = units[number].size
        gains = torch.zeros(count, count, dtype=torch.float64)
        parts: list[tuple[tuple[int, ...], Tensor, Tensor]] = []
        for place in sorted({place for one in (number, *inner) for place in self._having[one]}):
            piece = self._boxes[place].piece
            inside = tuple(one for one in inner if one in piece.flat)
            front = [piece.flat.index(one) for one in (number, *inside)]
            rest = [axis for axis in range(len(piece.flat)) if axis not in front]
            sizes = [units[one].size for one in (number, *inside)]
            wanted, given = (
                tensor.permute(*front, *rest).reshape(*sizes, -1)
                for tensor in (self._target(place), self._permuted(place, plain))
            )
            if inside:
                parts.append((inside, wanted, given))
            else:
                gains += wanted @ given.T
        best: dict[tuple[int, int], dict[int, Positions]] = {}
        for i, j in itertools.product(range(count), repeat=2):
            some = [(inside, wanted[i], given[j]) for inside, wanted, given in parts]
            best[i, j], gain = _inside(some, {one: units[one].size for one in inner})
            gains[i, j] += gain
        order = _assigned(gains[None], (count,))
        found: _Orders = {number: order}
        for one in inner:
            found[one] = np.stack([best[i, int(order[i])][one] for i in range(count)]).reshape(orders[one].shape)
        return found

    def _is_free(self, number: int) -> bool:
        return number >= 0 and self._symmetry.units[number].free

    def _target(self, place: int) -> Tensor:
        return self._boxes[place].target()

    def _permuted(self, place: int, orders: Permutations) -> Tensor:
        return self._boxes[place].permuted(orders, self._within)


def _inside(
    parts: Sequence[tuple[tuple[int, ...], Tensor, Tensor]], sizes: Mapping[int, int]
) -> tuple[dict[int, Positions], float]:
    """Return the best order of units within one pair of outer ones, and the inner product that they have then.

    A part has a dimension for each of its units, and one for the rest.
    """
    orders = {one: np.arange(size) for one, size in sizes.items()}

    def ordered(inside: Sequence[int], given: Tensor, leave: int | None) -> Tensor:
        for axis, one in enumerate(inside):
            if one != leave:
                given = given.index_select(axis, torch.from_numpy(orders[one]))
        return given

    for alone in (True, False) if any(len(inside) > 1 for inside, _, _ in parts) else (True,):
        for one, size in sizes.items():
            gains = torch.zeros(size, size, dtype=torch.float64)
            for inside, wanted, given in parts:
                if one in inside and not (alone and len(inside) > 1):
                    axis = inside.index(one)
                    left, right = (
                        tensor.movedim(axis, 0).reshape(size, -1) for tensor in (wanted, ordered(inside, given, one))
                    )
                    gains += left @ right.T
            orders[one] = _assigned(gains[None], (size,))
    return orders, sum(float((wanted * ordered(inside, given, None)).sum()) for inside, wanted, given in parts)


def _assigned(gains: Tensor, shape: Sequence[int]) -> Positions:
    """Return the assignment of largest total gain in each block; gains are `(blocks, targets, sources)`."""
    from scipy.optimize import linear_sum_assignment  # a merge without alignment does not wait for scipy

    found = [linear_sum_assignment(block, maximize=True)[1] for block in gains.numpy()]
    return np.stack(found).astype(np.int64).reshape(tuple(shape))


def _thinned(table: Tensor, most: int) -> Tensor:
    """Return at most so many of the last dimension's entries, evenly spaced."""
    count = table.shape[-1]
    return table if count <= most else table[..., torch.linspace(0, count - 1, most).round().long()]
