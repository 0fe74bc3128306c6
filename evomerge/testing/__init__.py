"""Conformance suites: one per protocol, run on each of its implementations.

A suite is a class of pytest tests: subclass it in the tests of an implementation and define its abstract methods. The package
itself does not need pytest. `problems` has search problems with known optima, `models` tiny checkpoints of real architectures.
"""

from evomerge.testing.drivers import DecodedSuite, DriverSuite, GenomeSuite, PopulationSuite, SteadySuite, drive
from evomerge.testing.evaluators import EvaluatorSuite
from evomerge.testing.merging import InMemory, MethodSuite, StageSuite, inputs_of, merge_tensors, tiny_tensors
from evomerge.testing.models import TINY, tiny_model, tiny_tokenizer
from evomerge.testing.problems import (
    Exam,
    Family,
    Problem,
    exam,
    family,
    mixed,
    sphere,
    three_corners,
    toy_space,
    two_spheres,
)
from evomerge.testing.surfaces import SurfaceSuite
from evomerge.testing.tasks import TaskSuite

__all__ = [
    "TINY",
    "DecodedSuite",
    "DriverSuite",
    "EvaluatorSuite",
    "Exam",
    "Family",
    "GenomeSuite",
    "InMemory",
    "MethodSuite",
    "PopulationSuite",
    "Problem",
    "StageSuite",
    "SteadySuite",
    "SurfaceSuite",
    "TaskSuite",
    "drive",
    "exam",
    "family",
    "inputs_of",
    "merge_tensors",
    "mixed",
    "sphere",
    "three_corners",
    "tiny_model",
    "tiny_tensors",
    "tiny_tokenizer",
    "toy_space",
    "two_spheres",
]
