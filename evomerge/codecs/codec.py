"""Codec: how the experts' task vectors of one tensor become a few smaller tensors, and come back.

A codec knows arithmetic only. Files, storage dtypes and the tensors that it does not handle are `artefact`'s business.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

Constants = Mapping[str, Sequence[float]]
"""What a codec keeps once for the whole model: by name, a number for each expert."""

Read = Callable[[str], torch.Tensor]
"""Reads one part of a coded tensor by name, in storage dtype."""


@dataclass(frozen=True, slots=True)
class Coded:
    """One tensor of all experts, coded.

    `parts` hold everything that `decode` needs; one that belongs to expert number k alone is named `….k`. Floating-point
    parts are rounded to the base's storage dtype when they are stored. `formula` is what the paper's count gives for
    their size, in bytes. `figures` are worth reporting, such as a rank.
    """

    parts: Mapping[str, torch.Tensor]
    formula: float
    figures: Mapping[str, float] = field(default_factory=dict)


class Codec(BaseModel, ABC):
    """A way to keep K experts, with its parameters as fields. Abstract.

    Not to be confused with a merging method: it has as many outputs as inputs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    about: ClassVar[str]
    elementwise: ClassVar[bool]
    """Whether each number is coded by itself, so that a tensor may be given flat and in slices, and its parts joined."""

    def constants(self, experts: Sequence[str], vectors: Iterable[torch.Tensor]) -> Constants:
        """Return what is kept once for the model: nothing, unless the codec says otherwise.

        `vectors` gives what `encode` will be given, in turn. Raises `RecipeError` where the parameters do not suit these
        experts.
        """
        return {}

    @abstractmethod
    def encode(self, base: torch.Tensor, vectors: torch.Tensor, constants: Constants) -> Coded | None:
        """Return a tensor's task vectors coded, or None where each expert's own tensor had better be kept.

        `base` has any shape and its storage dtype; `vectors` is `(experts, *shape)`, expert - base, float64.
        """

    @abstractmethod
    def decode(self, part: Read, expert: int, constants: Constants) -> torch.Tensor:
        """Return the task vector of expert number `expert`, of the tensor's shape.

        In the parts' storage dtype where they are only picked from, else in float64.
        """


def pack(mask: torch.Tensor) -> torch.Tensor:
    """Return a boolean mask as bits, uint8 `(ceil(numel / 8),)`."""
    return torch.from_numpy(np.packbits(mask.numpy().reshape(-1)))


def unpack(bits: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return the mask of `shape` that `pack` made `bits` of."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=shape.numel()).view(np.bool_).reshape(shape))


def mask_bytes(vectors: torch.Tensor, base: torch.Tensor) -> float:
    """Return the bytes of one unified vector and a mask per expert: n·storage + K·n/8."""
    return base.numel() * base.element_size() + vectors.numel() / 8
