"""Cast: a checkpoint whose floating-point numbers are stored in another dtype, each rounded once."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch

from evomerge.checkpoints.folder import Checkpoint, Computed
from evomerge.checkpoints.header import TensorInfo
from evomerge.checkpoints.stack import Stacked
from evomerge.errors import CheckpointError

_STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def cast(
    checkpoint: Checkpoint,
    dtype: str | None,
    load: Callable[[Checkpoint, str], torch.Tensor] = lambda source, name: source.tensor(name),
) -> Checkpoint:
    """Return a checkpoint stored in `dtype`: float32, bfloat16 or float16; unchanged for None. Integers stay.

    `load` gives a tensor of it before it is rounded to its own dtype, such as `Builder.load`. Raises `CheckpointError` for an
    unknown dtype; numbers too large for it are refused where the checkpoint is saved.
    """
    check_dtype(dtype)
    if dtype is None:
        return checkpoint
    stored = _STORED[dtype]

    def change(source: Checkpoint) -> Checkpoint:
        info = {
            name: TensorInfo(entry.shape, stored) if entry.dtype.is_floating_point else entry
            for name, entry in source.info.items()
        }
        return Computed(info, lambda name: load(source, name).to(info[name].dtype), (source,))

    return checkpoint.each(change) if isinstance(checkpoint, Stacked) else change(checkpoint)


def check_dtype(dtype: Any) -> None:
    """Raise `CheckpointError` unless `dtype` is the name of one that weights are written in, or None."""
    if dtype is not None and dtype not in _STORED:
        raise CheckpointError(f"dtype {dtype!r}: expected one of {', '.join(_STORED)}")


def with_dtype(config: dict[str, Any], checkpoint: Checkpoint, base: Checkpoint) -> dict[str, Any]:
    """Return the base's `config` with the dtype of `checkpoint`, where that is another one."""
    stored = _widest(checkpoint)
    return (
        config if stored == _widest(base) else {**config, "torch_dtype" if "torch_dtype" in config else "dtype": stored}
    )


def _widest(checkpoint: Checkpoint) -> str:
    """Return the name of the dtype that holds all of a checkpoint's floating-point numbers."""
    dtypes = {entry.dtype for entry in checkpoint.info.values() if entry.dtype.is_floating_point}
    return str(reduce(torch.promote_types, dtypes, next(iter(dtypes), torch.float32))).removeprefix("torch.")
