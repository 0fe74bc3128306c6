"""ONE IDEA: a model and examples of its task in, one table for each of its tensors out; collected once, cached by content.

Stages of a merge name the kinds that they need (`Stage.needs`) and read the tables like any other field.
"""

from collections.abc import Mapping

from evomerge.plugins import Table
from evomerge.statistics.gradients import GRADIENTS
from evomerge.statistics.hidden import HIDDEN
from evomerge.statistics.inputs import INPUTS
from evomerge.statistics.outputs import OUTPUTS
from evomerge.statistics.settings import EvidenceSettings
from evomerge.statistics.statistic import Statistic, Subject
from evomerge.statistics.store import Collected

__all__ = ["STATISTICS", "Collected", "EvidenceSettings", "Statistic", "Subject"]

STATISTICS: Mapping[str, Statistic] = Table(
    "evomerge.statistics",
    {**INPUTS, **HIDDEN, **OUTPUTS, **GRADIENTS},
    "an evomerge.statistics.Statistic",
    lambda entry: isinstance(entry, Statistic),
)
"""The kinds of statistics, by name."""
