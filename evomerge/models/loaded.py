"""Save a model that is already loaded as a checkpoint folder, so that a pool can hold it."""

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from evomerge import files
from evomerge.errors import ModelError


def folder_of(model: Any, tokenizer: Any = None) -> Path:
    """Return a checkpoint folder with the weights and configuration of a transformers `model`, and its `tokenizer`.

    The folder is in the cache, named by a digest of its content: the same model is written once. Raises `ModelError` for an
    object that has no `save_pretrained`.
    """
    for value in (model, *([] if tokenizer is None else [tokenizer])):
        if not hasattr(value, "save_pretrained"):
            msg = (
                f"expected a checkpoint folder, or a transformers model or tokenizer that is loaded, got {type(value).__name__}; "
                "save other modules as safetensors, and give the study `module: FILE.py:FUNCTION`"
            )
            raise ModelError(msg)
    parent = files.cache() / "loaded"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as scratch:
        folder = Path(scratch) / "model"
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        digest = hashlib.sha256()
        for file in sorted(folder.iterdir()):
            with file.open("rb") as content:
                digest.update(f"{file.name}\n{hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
        place = parent / digest.hexdigest()[:32]
        if not place.exists():
            shutil.move(folder, place)
    return place
