"""The stages, by name."""

from evomerge.merging.stage import Stage
from evomerge.merging.stages.arcs import ARCS
from evomerge.merging.stages.edits import EDITS
from evomerge.merging.stages.posts import POSTS
from evomerge.merging.stages.spectral import SPECTRAL
from evomerge.merging.stages.weights import WEIGHTS

STAGES: dict[str, Stage] = {**EDITS, **SPECTRAL, **WEIGHTS, **ARCS, **POSTS}
