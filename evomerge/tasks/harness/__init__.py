"""ONE IDEA: tasks of lm-evaluation-harness, with its own prompts, filters and metrics, on a live model, document by document."""

from evomerge.tasks.harness.task import LmEval, LmEvalSettings

__all__ = ["LmEval", "LmEvalSettings"]
