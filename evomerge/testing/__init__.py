"""Conformance suites: one per protocol, run on each of its implementations.

A suite is a class of pytest tests: subclass it in the tests of an implementation and define its abstract methods. The package
itself does not need pytest. `problems` has search problems with known optima.
"""

from evomerge.testing.drivers import DecodedSuite, DriverSuite, GenomeSuite, PopulationSuite, SteadySuite, drive
from evomerge.testing.engines import EngineSuite, FakeLLM, candidate, fake_vllm
from evomerge.testing.evaluators import EvaluatorSuite
from evomerge.testing.merging import (
    InMemory,
    MethodSuite,
    StageSuite,
    inputs_of,
    merge_tensors,
    random_statistics,
    tiny_tensors,
)
from evomerge.testing.problems import Family, Problem, Scattered, family, scattered_spheres, toy_space, two_spheres
from evomerge.testing.surfaces import SurfaceSuite
from evomerge.testing.tasks import TaskSuite

__all__ = [
    "DecodedSuite",
    "DriverSuite",
    "EngineSuite",
    "EvaluatorSuite",
    "FakeLLM",
    "Family",
    "GenomeSuite",
    "InMemory",
    "MethodSuite",
    "PopulationSuite",
    "Problem",
    "Scattered",
    "StageSuite",
    "SteadySuite",
    "SurfaceSuite",
    "TaskSuite",
    "candidate",
    "drive",
    "fake_vllm",
    "family",
    "inputs_of",
    "merge_tensors",
    "random_statistics",
    "scattered_spheres",
    "tiny_tensors",
    "toy_space",
    "two_spheres",
]
