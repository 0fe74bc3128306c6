"""Rules: how the axes of an operation's inputs pass to its outputs, one for each kind of operation of torch.

An operation without a rule pins the axes of all that it reads: models with it have fewer symmetries, not wrong ones.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from evomerge.alignment.axes import Axis, concatenated, cut, fixed, pin, product, regroup, unify

Axes: TypeAlias = "list[Axis]"
Read: TypeAlias = Callable[[Tensor], Axes]
"""Returns the axes of a tensor's dimensions."""
Rule: TypeAlias = Callable[..., Any]
"""Takes `read`, the result, and the operation's arguments; returns the axes of the result, or a list of them for several."""

SELECTED = "selection"
"""Pins an axis from which positions are chosen by number, such as the experts of a mixture."""

RULES: dict[str, Rule] = {}
"""By the operation's name, without a trailing underscore."""


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return add


def elementwise(read: Read, result: Tensor, *args: Any, **more: Any) -> Axes:
    """Dimensions that are broadcast against each other are in one order."""
    return _broadcast(result, [read(arg) for arg in (*args, *more.values()) if isinstance(arg, Tensor)])


@_rule(
    "to",
    "dropout",
    "feature_dropout",
    "contiguous",
    "clone",
    "type_as",
    "detach",
    "lift_fresh",
    "alias",
    "softmax",
    "log_softmax",
)
def _same(read: Read, result: Tensor, given: Tensor, *args: Any, **more: Any) -> Axes:
    return read(given)


@_rule("zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty", "scalar_tensor")  # fmt: skip
def _uniform(read: Read, result: Tensor, *args: Any, **more: Any) -> Axes:
    return [Axis(size) for size in result.shape]


@_rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze")
def _reshape(read: Read, result: Tensor, given: Tensor, *args: Any, **more: Any) -> Axes:
    return regroup(read(given), result.shape)


@_rule("transpose", "swapaxes", "swapdims")
def _transpose(read: Read, result: Tensor, given: Tensor, one: int, other: int) -> Axes:
    axes = list(read(given))
    axes[one], axes[other] = axes[other], axes[one]
    return axes


@_rule("t", "numpy_T", "mT")
def _turned(read: Read, result: Tensor, given: Tensor) -> Axes:
    return [*read(given)[:-2], *reversed(read(given)[-2:])]


@_rule("permute")
def _permute(read: Read, result: Tensor, given: Tensor, order: Sequence[int]) -> Axes:
    return [read(given)[axis] for axis in order]


@_rule("expand", "expand_as", "broadcast_to")
def _expand(read: Read, result: Tensor, given: Tensor, *args: Any, **more: Any) -> Axes:
    axes = read(given)
    added = [Axis(1)] * (result.ndim - len(axes))
    return [axis if axis.size == size else Axis(size) for axis, size in zip([*added, *axes], result.shape, strict=True)]


@_rule("pad", "constant_pad_nd", "repeat")
def _enlarged(read: Read, result: Tensor, given: Tensor, *args: Any, **more: Any) -> Axes:
    """Dimensions of another size are in a fixed order."""
    if result.ndim != given.ndim:
        raise NotImplementedError
    axes = list(read(given))
    for dim, size in enumerate(result.shape):
        if size != given.shape[dim]:
            pin(axes[dim], "pad")
            axes[dim] = fixed(size, "pad")
    return axes


@_rule("slice", "narrow")
def _slice(read: Read, result: Tensor, given: Tensor, dim: int = 0, *args: Any, **more: Any) -> Axes:
    axes = list(read(given))
    stride = given.stride(dim)
    if result.shape[dim] == given.shape[dim]:
        return axes
    start = (result.storage_offset() - given.storage_offset()) // max(stride, 1)
    step = result.stride(dim) // max(stride, 1)
    size = result.shape[dim]
    if not stride or step < 1 or not size:
        pin(axes[dim], "slice")
        axes[dim] = fixed(size, "slice")
    elif step == 1:
        points = [point for point in (start, start + size) if 0 < point < given.shape[dim]]
        axes[dim] = cut(axes[dim], points)[1 if start else 0]
    elif given.shape[dim] == size * step:  # every n-th: units of n
        outer, inner = regroup([axes[dim]], [size, step])
        pin(inner, "slice")
        axes[dim] = outer
    else:
        pin(axes[dim], "slice")
        axes[dim] = fixed(size, "slice")
    return axes


@_rule("split", "chunk", "split_with_sizes", "tensor_split")
def _split(read: Read, result: Sequence[Tensor], given: Tensor, *args: Any, **more: Any) -> list[Axes]:
    dim = more.get("dim", args[1] if len(args) > 1 else 0)
    axes = read(given)
    points = list(itertools.accumulate(part.shape[dim] for part in result[:-1]))
    parts = []
    for piece in cut(axes[dim], points):
        one = list(axes)
        one[dim] = piece
        parts.append(one)
    return parts


@_rule("select", "unbind")
def _select(read: Read, result: Any, given: Tensor, dim: int = 0, *args: Any) -> Any:
    axes = list(read(given))
    pin(axes.pop(dim), SELECTED)
    return axes if isinstance(result, Tensor) else [axes for _ in result]


@_rule("cat", "concat", "concatenate")
def _cat(read: Read, result: Tensor, given: Sequence[Tensor], dim: int = 0) -> Axes:
    given = [tensor for tensor in given if tensor.ndim == result.ndim]
    every = [read(tensor) for tensor in given]
    axes = []
    for place in range(result.ndim):
        met = [one[place] for one in every]
        if place == dim % result.ndim:
            axes.append(concatenated(met))
            continue
        for other in met[1:]:
            unify(met[0], other)
        axes.append(met[0])
    return axes


@_rule("stack")
def _stack(read: Read, result: Tensor, given: Sequence[Tensor], dim: int = 0) -> Axes:
    axes = elementwise(read, given[0], *given)
    axes.insert(dim % result.ndim, fixed(len(given), "stack"))
    return axes


@_rule("linear")
def _linear(read: Read, result: Tensor, given: Tensor, weight: Tensor, bias: Tensor | None = None) -> Axes:
    out, inside = read(weight)
    unify(inside, read(given)[-1])
    if bias is not None:
        unify(out, read(bias)[0])
    return [*read(given)[:-1], out]


@_rule("matmul", "mm", "bmm")
def _matmul(read: Read, result: Tensor, one: Tensor, other: Tensor) -> Axes:
    left, right = read(one), read(other)
    unify(left[-1], right[max(-2, -len(right))])
    axes = _broadcast(result[..., 0, 0], [left[:-2], right[:-2]]) if result.ndim > 2 else []
    return [*axes, *left[-2:-1], *(right[-1:] if len(right) > 1 else [])]


def _broadcast(result: Tensor, given: Sequence[Axes]) -> Axes:
    axes: Axes = []
    for place in range(-result.ndim, 0):
        met = [one[place] for one in given if len(one) >= -place and one[place].size == result.shape[place]]
        for other in met[1:]:
            unify(met[0], other)
        axes.append(met[0] if met else Axis(result.shape[place]))
    return axes


@_rule("addmm", "baddbmm")
def _addmm(read: Read, result: Tensor, bias: Tensor, one: Tensor, other: Tensor, **more: Any) -> Axes:
    axes = _matmul(read, result, one, other)
    return _broadcast(result, [axes, read(bias)])


@_rule("_grouped_mm")
def _grouped(read: Read, result: Tensor, given: Tensor, weight: Tensor, *args: Any, **more: Any) -> Axes:
    if weight.ndim != 3 or given.ndim != 2:
        raise NotImplementedError
    experts, inside, out = read(weight)
    pin(experts, SELECTED)
    unify(read(given)[1], inside)
    return [read(given)[0], out]


@_rule("conv1d", "conv2d", "conv3d", "convolution")
def _convolution(read: Read, result: Tensor, given: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **more: Any) -> Axes:  # fmt: skip
    out, inside, *kernel = read(weight)
    channels = read(given)[-len(kernel) - 1]
    for axis in (*kernel, *read(given)[-len(kernel) :]):
        pin(axis, "convolution")
    if bias is not None:
        unify(out, read(bias)[0])
    if weight.shape[1] == channels.size:
        unify(channels, inside)
    elif weight.shape[0] == channels.size and weight.shape[1] == 1:  # depthwise
        unify(channels, out)
    else:
        pin(channels, "grouped convolution")
        pin(out, "grouped convolution")
        pin(inside, "grouped convolution")
    batch = read(given)[: -len(kernel) - 1]
    return [*batch, out, *(fixed(size, "convolution") for size in result.shape[-len(kernel) :])]


@_rule("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d")  # fmt: skip
def _pool(read: Read, result: Tensor, given: Tensor, *args: Any, **more: Any) -> Axes:
    for axis in read(given)[2:]:
        pin(axis, "pooling")
    return [*read(given)[:2], *(fixed(size, "pooling") for size in result.shape[2:])]


@_rule("layer_norm", "rms_norm")
def _norm(read: Read, result: Tensor, given: Tensor, shape: Sequence[int], *tables: Any, **more: Any) -> Axes:
    for table in tables:
        if isinstance(table, Tensor):
            for one, other in zip(read(table), read(given)[-len(shape) :], strict=True):
                unify(one, other)
    return read(given)


@_rule("batch_norm")
def _batch_norm(read: Read, result: Tensor, given: Tensor, *tables: Any, **more: Any) -> Axes:
    for table in tables:
        if isinstance(table, Tensor):
            unify(read(table)[0], read(given)[1])
    return read(given)


@_rule("group_norm")
def _group_norm(read: Read, result: Tensor, given: Tensor, groups: int, *tables: Any, **more: Any) -> Axes:
    axes = list(read(given))
    axes[1] = product(regroup([axes[1]], [groups, given.shape[1] // groups]))
    for table in tables:
        if isinstance(table, Tensor):
            unify(read(table)[0], axes[1])
    return axes


@_rule("sum", "mean", "amax", "amin", "var", "std", "norm", "linalg_vector_norm", "logsumexp")
def _reduce(read: Read, result: Tensor, given: Tensor, *args: Any, **more: Any) -> Axes:
    lists = [arg for arg in (*args, more.get("dim")) if isinstance(arg, Sequence)]
    numbers = [arg for arg in args if isinstance(arg, int) and not isinstance(arg, bool)]
    dims = {dim % given.ndim for dim in (lists[0] if lists else numbers[-1:])} or set(range(given.ndim))
    kept = [axis for dim, axis in enumerate(read(given)) if dim not in dims]
    if result.ndim == len(kept):
        return kept
    return [Axis(1) if dim in dims else axis for dim, axis in enumerate(read(given))]


@_rule("scaled_dot_product_attention")
def _attention(read: Read, result: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *args: Any, **more: Any) -> Axes:  # fmt: skip
    queries, keys, values = read(query), read(key), read(value)
    unify(queries[-1], keys[-1])
    unify(keys[-2], values[-2])
    pin(keys[-2], "attention")
    outside = []
    for place in range(result.ndim - 2):
        one = queries[place]
        for other in (keys[place], values[place]):
            if other.size == one.size:
                unify(one, other)
            elif other.size != 1:
                unify(regroup([one], [other.size, one.size // other.size])[0], other)
        outside.append(one)
    if mask is not None:
        for place, axis in enumerate(reversed(read(mask)[:-2]), 1):
            if axis.size != 1:
                unify(axis, outside[-place])
    return [*outside, queries[-2], values[-1]]


@_rule("embedding")
def _embedding(read: Read, result: Tensor, weight: Tensor, ids: Tensor, *args: Any, **more: Any) -> Axes:
    rows, width = read(weight)
    pin(rows, SELECTED)
    return [*read(ids), width]


@_rule("index")
def _index(read: Read, result: Tensor, given: Tensor, indices: Sequence[Tensor | None]) -> Axes:
    axes = read(given)
    at = [place for place, index in enumerate(indices) if index is not None]
    if not at or at != list(range(at[0], at[-1] + 1)) or any(i is not None and i.dtype == torch.bool for i in indices):
        raise NotImplementedError
    for place in at:
        pin(axes[place], SELECTED)
    added = result.ndim - (len(axes) - len(at))
    new = [fixed(size, SELECTED) for size in result.shape[at[0] : at[0] + added]]
    return [*axes[: at[0]], *new, *axes[at[-1] + 1 :]]


@_rule("index_select")
def _index_select(read: Read, result: Tensor, given: Tensor, dim: int, index: Tensor) -> Axes:
    axes = list(read(given))
    pin(axes[dim], SELECTED)
    axes[dim] = fixed(result.shape[dim], SELECTED)
    return axes


@_rule("index_put")
def _index_put(read: Read, result: Tensor, given: Tensor, indices: Sequence[Tensor | None], values: Tensor, *args: Any) -> Axes:  # fmt: skip
    axes = read(given)
    if any(index is None for index in indices):
        raise NotImplementedError
    for axis in axes[: len(indices)]:
        pin(axis, SELECTED)
    for one, other in zip(reversed(axes[len(indices) :]), reversed(read(values)), strict=False):
        if one.size == other.size:
            unify(one, other)
    return axes


@_rule("index_add", "index_copy")
def _index_add(read: Read, result: Tensor, given: Tensor, dim: int, index: Tensor, values: Tensor, **more: Any) -> Axes:
    axes = read(given)
    for place, (one, other) in enumerate(zip(axes, read(values), strict=True)):
        if place == dim % len(axes):
            pin(one, SELECTED)
        else:
            unify(one, other)
    return axes


@_rule("topk", "sort")
def _ranked(read: Read, result: Any, given: Tensor, *args: Any, **more: Any) -> list[Axes]:
    dim = more.get("dim", -1)
    axes = list(read(given))
    pin(axes[dim], SELECTED)
    axes[dim] = fixed(result[0].shape[dim], SELECTED)
    return [axes, axes]
