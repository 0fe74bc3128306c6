"""Merges of a few numbers, over a base of zeros."""

import torch

from evomerge.recipe import Recipe, merge
from evomerge.testing import merge_tensors

NAME = "layers.0.mlp.weight"


def merged(method, rows, parameters=None, seed=0):
    """Merge task vectors, lists of any depth, by a method."""
    return _run(merge(method, _labels(rows), parameters, seed=seed), rows)


def staged(rows, **stages):
    """Merge task vectors by explicit stages."""
    return _run(Recipe.parse({"merge": {"inputs": _labels(rows), "stages": stages}}), rows)


def each(*values):
    """Return the table of a value for each input."""
    return {"per": ["expert"], "values": {f"e{i}": value for i, value in enumerate(values)}}


def _labels(rows):
    return [f"e{i}" for i in range(len(rows))]


def _run(recipe, rows):
    inputs = [{NAME: torch.tensor(row, dtype=torch.float32)} for row in rows]
    return merge_tensors(recipe, {NAME: torch.zeros_like(inputs[0][NAME])}, inputs)[NAME].tolist()


def fix_noise(monkeypatch, numbers):
    """Let the random numbers of every tensor be these, in [0, 1), in place of the keyed ones."""
    drawn = torch.tensor([round(u * 2**32) - 2**31 for u in numbers]).to(torch.int32)
    monkeypatch.setattr("evomerge.merging.stages.drops.bits", lambda index, key: drawn[index.long() + 2**31])
