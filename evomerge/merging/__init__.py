"""ONE IDEA: a stack of tensors in, one tensor out.

A merge method is a named composition of stages on one tensor's stack of task vectors:

    origin, D[K, n] of task vectors (fp32) → edit* → weigh* → reduce → post* → origin + Δ

`stage` says what a stage is, `stages` holds them, `methods` is the table of compositions with the papers' defaults,
`composition` runs one over a tensor in one pass, and `pipeline` gives it what it must know before: thresholds, angles.
"""

from evomerge.merging.methods import METHODS, Method
from evomerge.merging.parameters import Parameter
from evomerge.merging.pipeline import Inputs, Pipeline, check
from evomerge.merging.prepared import Store
from evomerge.merging.stage import Stage
from evomerge.merging.stages import STAGES

__all__ = ["METHODS", "STAGES", "Inputs", "Method", "Parameter", "Pipeline", "Stage", "Store", "check"]
