"""Runnable models from checkpoints. The only package that imports transformers."""

from evomerge.models.live import LiveModel
from evomerge.models.pretrained import keeps_all
from evomerge.models.saved_stack import load_stack

__all__ = ["LiveModel", "keeps_all", "load_stack"]
