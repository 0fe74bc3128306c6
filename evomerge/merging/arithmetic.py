"""Elementary functions, the same to the bit in torch, in compiled code and in numpy, on any processor.

They are made of integers and of the operations that IEEE 754 rounds correctly. A library's exp, log or tanh is not: torch's
own differ between compiled code and code as written.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

Array: TypeAlias = Any
"""A tensor or a numpy array, float32 unless stated."""

_LN2_HIGH = 0.693359375  # 9 bits: its products with integers are exact
_LN2_LOW = math.log(2) - _LN2_HIGH
_EXP = tuple(1 / math.factorial(k) for k in range(7, 0, -1))  # (eʳ - 1) / r, to 2e-8 of 1 for |r| ≤ ln 2 / 2
_ATANH = (2 / 9, 2 / 7, 2 / 5, 2 / 3, 2.0)
_ROOT_HALF = 0x3F3504F3  # the bits of the float32 √½


def exp(number: torch.Tensor) -> torch.Tensor:
    """Return eˣ of x in [0, 88], within 2e-7 of its size; e⁸⁸ above."""
    power, rest = _parts(number)
    return power + power * rest


def tanh(number: torch.Tensor) -> torch.Tensor:
    """Return tanh x = (e²ˣ - 1) / (e²ˣ + 1), within 3e-7 of its size."""
    power, rest = _parts(2.0 * number.abs())
    above = power * rest + (power - 1.0)  # e²ˣ - 1, without cancellation near 0
    return torch.copysign(above / (above + 2.0), number)


def _parts(number: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 2ⁿ and eʳ - 1, where x = n·ln 2 + r with |r| ≤ ln 2 / 2, of x ≥ 0."""
    small = number.clamp(max=88.0)
    n = torch.floor(small * (1 / math.log(2)) + 0.5)
    r = (small - n * _LN2_HIGH) - n * _LN2_LOW
    return ((n.to(torch.int32) + 127) << 23).view(torch.float32), r * polynomial(_EXP, r)


def log(number: Array) -> Array:
    """Return ln x of normal x > 0: that of the power of two, and 2 artanh (m-1)/(m+1) of the mantissa m."""
    parts = _bits_as(number, "int32") - _ROOT_HALF
    m = _bits_as((parts & 0x7FFFFF) + _ROOT_HALF, "float32")  # in [√½, √2)
    ratio = (m - 1.0) / (m + 1.0)
    return ratio * polynomial(_ATANH, ratio * ratio) + as_float32(parts >> 23) * math.log(2)


def polynomial(factors: Sequence[float], number: Array) -> Array:
    """Return a polynomial by Horner's rule; `factors` from the highest power down."""
    result = factors[0] * number
    for factor in factors[1:-1]:
        result += factor
        result *= number
    result += factors[-1]
    return result


def plain(*tensors: torch.Tensor) -> bool:
    """Return whether tensors are computed as written, on the host and without slopes: there numpy gives the same bits, often sooner."""
    return not torch.compiler.is_compiling() and not any(one.requires_grad or not one.is_cpu for one in tensors)


def compared(how: Callable[[Any, Any], Any], one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return where a comparison of the module `operator` holds between numbers `(n,)` and others, or one number; bool `(n,)`."""
    if not plain(one, other):
        return how(one, other)  # type: ignore[no-any-return]  # a comparison of tensors
    return torch.from_numpy(how(one.numpy(), other.numpy()))  # torch takes ten times as long


def keep(mask: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """Return float32 numbers, or one number, where `mask` `(n,)` holds, and +0 elsewhere."""
    if not plain(mask, number):
        return torch.where(mask, number, 0.0)
    # The same bits; `torch.where` as written takes five times as long.
    if not number.dim() and number.numpy() == 1:
        return torch.from_numpy(mask.numpy().view(np.int8).astype(np.float32))
    bits = mask.numpy().view(np.int8).astype(np.int32)
    bits *= number.contiguous().numpy().view(np.int32)
    return torch.from_numpy(bits.view(np.float32))


def divided(number: torch.Tensor, count: int) -> torch.Tensor:
    """Return a tensor divided by a number. On a GPU, torch multiplies by the reciprocal of a number that is no tensor there."""
    if number.is_cpu or torch.compiler.is_compiling():
        return number / count
    return number / torch.full((), count, dtype=number.dtype, device=number.device)


def as_float32(integers: Array) -> Array:
    """Return integers as float32."""
    return integers.astype(np.float32) if isinstance(integers, np.ndarray) else integers.float()


def _bits_as(numbers: Array, dtype: str) -> Array:
    """Return the same bits read as another dtype."""
    return numbers.view(getattr(np if isinstance(numbers, np.ndarray) else torch, dtype))
