"""Box: numbers of two models that are compared place by place, with a dimension for each of their axes: weights, or activations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from evomerge.alignment.symmetries import Permutations, Piece


@dataclass(frozen=True, slots=True)
class Box:
    """The same box of a table of two models. Tables are read at each call: those of a model together may not fit into memory."""

    piece: Piece
    wanted: Callable[[], Tensor]
    """Returns the table of the model that is aligned to."""
    given: Callable[[], Tensor]
    """Returns the table of the model that is aligned."""

    def target(self) -> Tensor:
        """Return the box of the first, fp64, with a dimension for each axis."""
        return self.piece.of(self.wanted()).double()

    def permuted(self, orders: Permutations, within: Mapping[int, tuple[int, ...]]) -> Tensor:
        """Return the box of the second with its units in another order, fp64, of the same shape."""
        return self.given()[self.piece.sources(orders, within)].expand(self.piece.sizes).double()
