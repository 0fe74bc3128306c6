"""ONE IDEA: a stack of tensors in, one tensor out.

A merge method is a named composition of stages on one tensor's stack of task vectors:

    origin, D[K, n] of task vectors (fp32) → edit* → weigh* → reduce → post* → origin + Δ

`stages` holds the stages, `methods` the table of compositions with the papers' defaults, `pipeline` runs one merge.
"""

from evomerge.merging.methods import METHODS, Method
from evomerge.merging.parameters import Parameter
from evomerge.merging.pipeline import BLOCK, Inputs, Pipeline, check
from evomerge.merging.stages import STAGES, Stage

__all__ = ["BLOCK", "METHODS", "STAGES", "Inputs", "Method", "Parameter", "Pipeline", "Stage", "check"]
