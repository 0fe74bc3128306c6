"""mergekit files, written for a test, and the outline of the tiny Llamas that they name."""

from pathlib import Path

import torch
from shared.mergekit_files import write_models

from evomerge import exchange, strict_yaml
from evomerge.recipe import Recipe


def models(folder, dtype=torch.float32):
    """Write a base and three experts; return their folders by name."""
    return {name: str(path) for name, path in write_models(folder, dtype).items()}


def read(folder, *documents, exact=False):
    """Write the documents into a file and read it."""
    file = Path(folder) / "file.yaml"
    file.write_text("---\n".join(strict_yaml.text(document) for document in documents))
    return exchange.read(file, exact=exact)


def same(imported, data):
    """Return whether an imported recipe is the one that `data` describe."""
    assert imported.recipe.data == Recipe.parse(data).data
    return True


def keys(imported):
    """Return the keys of the notes."""
    return [note.key for note in imported.notes]
