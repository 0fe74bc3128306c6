"""Alignment: the units of one model in the order of another's, so that models without a common ancestor can be merged.

`symmetry` finds which units of a module may be reordered, and proves it; `match` finds their order in one model that fits
another. `stitched` joins layers of different models by affine maps instead. Not to be confused with the alignment of vocabularies, in `evomerge.checkpoints`.
"""

from evomerge.alignment.aligner import Aligner
from evomerge.alignment.condensed import Condensed
from evomerge.alignment.matching import match
from evomerge.alignment.narrowed import Narrowed
from evomerge.alignment.permuted import Permuted
from evomerge.alignment.stitches import stitched
from evomerge.alignment.symmetries import Permutations, Symmetry, Unit, symmetry
from evomerge.alignment.zipped import Zipped

__all__ = [
    "Aligner",
    "Condensed",
    "Narrowed",
    "Permutations",
    "Permuted",
    "Symmetry",
    "Unit",
    "Zipped",
    "match",
    "stitched",
    "symmetry",
]
