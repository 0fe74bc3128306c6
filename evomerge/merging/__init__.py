"""ONE IDEA: one tensor of the base and of each input in, one merged tensor out.

A merge method is a named composition of stages on one tensor's task vectors:

    origin, D[K, n] of task vectors (fp32) → edit* → weigh* → reduce → post* → origin + Δ

`methods` is their table; `composition` runs one over a tensor in one pass, and `pipeline` computes its thresholds and angles before.
"""

from evomerge.merging.composition import seconds_compiling
from evomerge.merging.gradient import MergeGradient, Pulled
from evomerge.merging.methods import METHODS, Method
from evomerge.merging.parameters import Parameter
from evomerge.merging.pipeline import PATIENCE, Inputs, Pipeline
from evomerge.merging.prepared import Store
from evomerge.merging.site import Evidence, Statistics, Tables, Watch, unwatched
from evomerge.merging.slopes import inputs_sloped, sloped, sloped_paths
from evomerge.merging.stage import Stage
from evomerge.merging.stages import STAGES
from evomerge.merging.steps import check, needs

__all__ = [
    "METHODS",
    "PATIENCE",
    "STAGES",
    "Evidence",
    "Inputs",
    "MergeGradient",
    "Method",
    "Parameter",
    "Pipeline",
    "Pulled",
    "Stage",
    "Statistics",
    "Store",
    "Tables",
    "Watch",
    "check",
    "inputs_sloped",
    "needs",
    "seconds_compiling",
    "sloped",
    "sloped_paths",
    "unwatched",
]
