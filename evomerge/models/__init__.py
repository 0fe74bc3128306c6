"""Runnable models from checkpoints. The only package that imports transformers."""

from evomerge.models.engine import EngineModel
from evomerge.models.live import LiveModel
from evomerge.models.pretrained import keeps_all
from evomerge.models.saved_stack import load_stack
from evomerge.models.text_model import TextModel

__all__ = ["EngineModel", "LiveModel", "TextModel", "keeps_all", "load_stack"]
