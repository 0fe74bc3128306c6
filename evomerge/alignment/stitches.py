"""Stitches: affine maps of the residual stream between layers that do not follow one another in one model, in closed form.

Model stitching (Lenc & Vedaldi, https://arxiv.org/abs/1411.5908) by least squares on what the models compute for the same tokens
(Csiszarik et al., https://arxiv.org/abs/2110.14633). Not to be confused with the stage `stitch`, a mask of task vectors.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from evomerge.checkpoints.layout import block_number
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.stack import Affine, Stacked
from evomerge.errors import RecipeError
from evomerge.merging import Evidence, Store, Tables
from evomerge.merging.prepared import Key
from evomerge.recipe import Stack, Stitch
from evomerge.recipe.recipe import stitching

VERSION = 1
"""Version of the fit: another finds other maps."""

_Point: TypeAlias = tuple[str, int]
"""A place in a model's residual stream: the model's label, and the number of blocks before it."""


def fit(before: Tensor, after: Tensor, ridge: float) -> dict[str, Tensor]:
    """Return the affine map from hidden states `before` to those `after`, `(tokens, d)` and `(tokens, e)`, of the same tokens.

    With both less their means, H and G: A = (HᵀH + ridge I)⁻¹ HᵀG, in fp64. Returns `weight`, Aᵀ `(e, d)`, and `bias`, mean(after) -
    mean(before) A, `(e,)`, as of a linear layer, float32.
    """
    means = before.double().mean(0), after.double().mean(0)
    centred, goal = before.double() - means[0], after.double() - means[1]
    gram = centred.mT @ centred
    gram.diagonal().add_(ridge)
    solved = torch.linalg.solve(gram, centred.mT @ goal)
    return {"weight": solved.mT.float().contiguous(), "bias": (means[1] - means[0] @ solved).float()}


def stitched(stack: Stack, plain: Stacked, pool: Pool, store: Store) -> Stacked:
    """Return the assembled stack with the maps that its recipe asks for; they are fitted when they are read, and kept in `store`.

    There is none between layers that follow one another in one model, and in models with the same weights. Embeddings count as what is before
    the first layer of `rest`, its final norm and head as what is after its last. Raises `RecipeError` without the models' hidden states.
    """
    if stack.stitch is None:
        return plain
    labels, rest = [slot.source.root.label or "" for slot in stack.slots], stack.rest.root.label or ""
    layers = [(label, slot.layer) for label, slot in zip(labels, stack.slots, strict=True)]
    given = [(rest, 0), *((label, layer + 1) for label, layer in layers)]
    taken = [*layers, (rest, pool.layout.blocks)]
    maps = [_between(*points, stack.stitch, pool, store) for points in zip(given, taken, strict=True)]
    joined = [replace(layer, stitch=stitch) for layer, stitch in zip(plain.layers, maps[:-1], strict=True)]
    return Stacked(joined, plain.rest, plain.rest_key, plain.prefix, stitching(stack), maps[-1])


def _between(given: _Point, taken: _Point, stitch: Stitch, pool: Pool, store: Store) -> Affine | None:
    """Return the map from what a model computes at one place to what another does at its own; None where they are the same."""
    if given[1] == taken[1] and pool.digests[given[0]] == pool.digests[taken[0]]:
        return None
    kind, evidence = f"hidden@{stitch.task}", pool.evidence
    if evidence is None:
        from evomerge.statistics.store import missing  # a merge of weights does not wait for libraries of tasks

        raise RecipeError(missing(kind, given[0]))
    digests = [evidence.digest(kind, label) for label, _ in (given, taken)]
    key: Key = ("stitch", VERSION, stitch.ridge, digests[0], given[1], digests[1], taken[1])

    def made() -> dict[str, Tensor]:
        source, target = (_states(at, kind, evidence, pool) for at in (given, taken))
        if not torch.equal(source["read"], target["read"]):
            raise RecipeError(
                f"stack: `{given[0]}` and `{taken[0]}` read other tokens than one another on the task `{stitch.task}`, as models do that go on "
                "with what they have generated; expected a task that scores given inputs, such as multiple_choice or classification"
            )
        tables = fit(source["states"], target["states"], stitch.ridge)
        if not all(table.isfinite().all() for table in tables.values()):
            raise RecipeError(
                f"stack: the hidden states of `{given[0]}` or `{taken[0]}` on the task `{stitch.task}` have no finite map between them; "
                "leave the model out whose outputs are not finite, or raise `ridge`"
            )
        return tables

    return lambda: store.prepared(key, pool.parameters, made)


def _states(at: _Point, kind: str, evidence: Evidence, pool: Pool) -> Tables:
    """Return the hidden states of a model at a place, `states` `(rows, d)`, and what it has `read`."""
    label, number = at
    block, when = (number, "before") if number < pool.layout.blocks else (number - 1, "after")
    for name in _names(pool, block):
        if tables := evidence.tables(kind, label, name):
            return {"states": tables[when], "read": tables["read"]}
    raise RecipeError(
        f"stack: no hidden states of `{label}` were seen around its layer {block}; expected blocks that take and give one tensor"
    )


def _names(pool: Pool, block: int) -> Sequence[str]:
    """Return the names of the matrices in a block."""
    prefix = pool.layout.prefix
    assert prefix is not None
    inside = [name for name in pool.merged if block_number(name, prefix) == block]
    return [matrix.name for name in inside for matrix in pool.layout.matrices(name)]
