"""Runnable models from checkpoints. The only package that imports transformers."""

from evomerge.models.live import LiveModel
from evomerge.models.saved_stack import load_stack

__all__ = ["LiveModel", "load_stack"]
