"""Codec: encodes the experts' task vectors of one tensor as a few smaller tensors, and decodes them.

A codec is arithmetic only. `artefact` handles files, storage dtypes and the tensors that a codec declines.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

Constants = Mapping[str, Sequence[float]]
"""What a codec stores once per model: by name, a value for each expert."""

Read = Callable[[str], torch.Tensor]
"""Reads one part of a coded tensor by name, in storage dtype."""


@dataclass(frozen=True, slots=True)
class Coded:
    """One tensor of all experts, encoded.

    `parts` hold everything that `decode` needs; the name of a part of expert number k ends in `.k`. Floating-point parts are
    rounded to the base's storage dtype when they are stored. `formula` is their size in bytes by the paper's formula.
    `figures` are reported, such as a rank.
    """

    parts: Mapping[str, torch.Tensor]
    formula: float
    figures: Mapping[str, float] = field(default_factory=dict)


class Codec(BaseModel, ABC):
    """An encoding of K experts, with its parameters as fields. Abstract.

    Not to be confused with a merging method: a codec has as many outputs as inputs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    about: ClassVar[str]
    elementwise: ClassVar[bool]
    """Whether each element is encoded by itself, so that a tensor may be passed flat and in slices, and its parts joined."""

    def constants(self, experts: Sequence[str], vectors: Iterable[torch.Tensor]) -> Constants:
        """Return what is stored once for the model, by default nothing.

        `vectors` yields the task vectors that `encode` receives later, `(experts, *shape)` float64. The names and the
        lengths of the result do not depend on them. Raises `RecipeError` where the parameters do not fit these experts.
        """
        return {}

    @abstractmethod
    def encode(self, base: torch.Tensor, vectors: torch.Tensor, constants: Constants) -> Coded | None:
        """Return a tensor's task vectors encoded, or None where storing each expert's tensor is better.

        `base` has any shape and its storage dtype; `vectors` is `(experts, *shape)`, expert - base, float64.
        """

    @abstractmethod
    def decode(self, part: Read, expert: int, constants: Constants) -> torch.Tensor:
        """Return the task vector of expert number `expert`, of the tensor's shape.

        It is in the storage dtype where its elements are only selected from the parts, else in float64.
        """


def pack(mask: torch.Tensor) -> torch.Tensor:
    """Return a boolean mask as bits, uint8 `(ceil(numel / 8),)`."""
    return torch.from_numpy(np.packbits(mask.numpy().reshape(-1)))


def unpack(bits: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return the mask of `shape` that `pack` packed into `bits`."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=shape.numel()).view(np.bool_).reshape(shape))


def mask_bytes(vectors: torch.Tensor, base: torch.Tensor) -> float:
    """Return the bytes of one unified vector and a mask per expert: n·storage + K·n/8."""
    return base.numel() * base.element_size() + vectors.numel() / 8
