"""Every stage and every method of the tables keeps its suite."""

from evomerge.merging import METHODS, STAGES
from evomerge.testing import MethodSuite, StageSuite

ORDERED = {"slerp", "split_slerp", "svd_mutate", "project", "swap", "layer_swap", "opcm"}
"""Stages and methods whose inputs may not change places."""
MEANS = {
    *("linear", "mwa", "slerp", "split_slerp", "nuslerp", "multislerp", "karcher", "sce", "layer_swap"),
    *("fisher", "regmean", "regmean_plus", "cart"),
}
"""Methods of which a merge of copies is the copy."""


def suites():
    for name in STAGES:
        yield f"TestStage_{name}", type(name, (StageSuite,), {"name": name, "symmetric": name not in ORDERED})
    for name in METHODS:
        kept = {"name": name, "symmetric": name not in ORDERED, "normalises": name in MEANS}
        yield f"TestMethod_{name}", type(name, (MethodSuite,), kept)


globals().update(suites())
