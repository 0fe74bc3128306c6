"""Merges that several test files use: of a few numbers over a base of zeros, and of tiny models."""

import torch

from evomerge.recipe import Recipe, merge
from evomerge.testing import merge_tensors, tiny_tensors

NAME = "layers.0.mlp.weight"
RIGHT = [[1.0, 0.0], [0.0, 2.0]]
"""A right angle, and lengths that differ."""


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


MODELS = (tiny_tensors(0), [tiny_tensors(1 + i, tiny_tensors(0)) for i in range(3)])
LABELS = ["a", "b", "c"]


def run(method, parameters=None, inputs=MODELS[1], seed=0, base=MODELS[0]):
    return merge_tensors(merge(method, LABELS[: len(inputs)], parameters, seed=seed), base, inputs)


def assert_same(found, expected, tolerance=1e-6):
    for name, tensor in found.items():
        assert torch.allclose(tensor, expected[name], rtol=tolerance, atol=tolerance), name


def content(tensors):
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
