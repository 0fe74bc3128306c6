"""ONE IDEA: a checkpoint becomes a runnable module. The only package that imports transformers."""

from evomerge.models.live import LiveModel

__all__ = ["LiveModel"]
