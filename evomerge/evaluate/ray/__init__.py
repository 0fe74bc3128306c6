"""Evaluation in worker processes by Ray, on this machine or on a cluster that may grow and shrink. The only package that imports ray."""

from evomerge.evaluate.ray.connection import check_authentication, check_reachable, check_start, connect
from evomerge.evaluate.ray.evaluator import RayEvaluator

__all__ = ["RayEvaluator", "check_authentication", "check_reachable", "check_start", "connect"]
