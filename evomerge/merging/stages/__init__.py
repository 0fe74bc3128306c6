"""The stages, by name."""

from collections.abc import Mapping

from evomerge.merging.stage import Stage
from evomerge.merging.stages.ace import ACE
from evomerge.merging.stages.aim import AIM
from evomerge.merging.stages.arcs import ARCS
from evomerge.merging.stages.balance import BALANCE
from evomerge.merging.stages.concrete import CONCRETE
from evomerge.merging.stages.crossover import CROSSOVER
from evomerge.merging.stages.doge import DOGE
from evomerge.merging.stages.drops import DROPS
from evomerge.merging.stages.edits import EDITS
from evomerge.merging.stages.fisher import FISHER
from evomerge.merging.stages.posts import POSTS
from evomerge.merging.stages.regmean import REGMEAN
from evomerge.merging.stages.spectral import SPECTRAL
from evomerge.merging.stages.weights import WEIGHTS
from evomerge.merging.stages.wudi import WUDI
from evomerge.plugins import Table

STAGES: Mapping[str, Stage] = Table(
    "evomerge.stages",
    {
        **EDITS,
        **DROPS,
        **SPECTRAL,
        **WUDI,
        **ACE,
        **DOGE,
        **REGMEAN,
        **WEIGHTS,
        **BALANCE,
        **FISHER,
        **ARCS,
        **CROSSOVER,
        **CONCRETE,
        **POSTS,
        **AIM,
    },
    "an evomerge.merging.Stage",
    lambda entry: isinstance(entry, Stage),
)
