"""build(recipe, pool) -> Checkpoint: the only interpreter of recipes.

It is lazy: a tensor is merged when it is asked for, so a merge larger than memory streams to disk, and a worker writes a
candidate into a live model in place. Nested merges stay in fp32; the one cast is at the end, to the base's storage dtype.
"""

import torch

from evomerge import files
from evomerge.checkpoint import Checkpoint
from evomerge.errors import RecipeError, nearest
from evomerge.merging import Pipeline, Store
from evomerge.pool import Pool
from evomerge.recipe import Base, Expert, Merge, Place, Recipe


class Builder:
    """Builds the recipes of one pool, and keeps what does not depend on any recipe's numbers."""

    def __init__(self, pool: Pool) -> None:
        """Build from `pool`."""
        self.pool = pool
        self._store = Store(files.cache() / "prepared")

    def build(self, recipe: Recipe) -> Checkpoint:
        """Return the checkpoint that `recipe` describes; nothing is merged yet. Raises `RecipeError`."""
        match recipe.root:
            case Base():
                return self.pool.base
            case Expert(expert=name):
                if name not in self.pool.experts:
                    msg = f"the pool has no expert `{name}`; {nearest(name, self.pool.experts)}"
                    raise RecipeError(msg)
                return self.pool.experts[name]
            case node:
                return Merged(node.merge, self, self._store)


COMPILED = 32_000_000
"""Numbers of a model from which on compiling its merges, which takes some seconds, is sooner won back than not."""


def _content(recipe: Recipe, pool: Pool) -> str:
    """Return what an input is by content: the digest of an expert's weights, the id of a nested merge."""
    match recipe.root:
        case Base():
            return pool.digests["base"]
        case Expert(expert=name):
            return pool.digests[name]
        case _:
            return recipe.id


class _Inputs:
    """A merge's view of its inputs."""

    def __init__(self, pool: Pool, merge: Merge, checkpoints: list[Checkpoint]) -> None:
        self._pool = pool
        self._checkpoints = checkpoints
        self.names = pool.merged
        self.ids = [pool.digests["base"], *(_content(inner, pool) for inner in merge.inputs)]

    def place(self, name: str) -> Place:
        return self._pool.layout.place(name)

    def load(self, name: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return self._pool.base.tensor(name), [
            checkpoint.fp32(name) if isinstance(checkpoint, Merged) else checkpoint.tensor(name)
            for checkpoint in self._checkpoints
        ]


class Merged:
    """The checkpoint of a merge: shapes, names and dtypes of the base, tensors merged on demand."""

    def __init__(self, merge: Merge, builder: Builder, store: Store) -> None:
        """Prepare to merge. Raises `RecipeError`."""
        self._pool = builder.pool
        self._sources = [builder.build(inner) for inner in merge.inputs]
        self._pipeline = Pipeline(
            merge, _Inputs(self._pool, merge, self._sources), store, compile=self._pool.parameters >= COMPILED
        )
        self.info = self._pool.base.info

    def tensor(self, name: str) -> torch.Tensor:
        """The merged tensor, in the base's storage dtype."""
        return self._make(name, self.info[name].dtype)

    def fp32(self, name: str) -> torch.Tensor:
        """The merged tensor before the last cast."""
        return self._make(name, torch.float32)

    def write(self, name: str, out: torch.Tensor) -> None:
        """Merge the tensor into `out`: straight into it where the dtype is the base's, else rounded to that first."""
        if out.dtype == self.info[name].dtype and out.is_contiguous() and self._source(name) in self._pool.merged:
            self._pipeline.write(self._source(name), out)
        else:
            out.copy_(self.tensor(name))

    def forget(self) -> None:
        """Close the files of the pool that this merge reads."""
        self._pool.base.forget()
        for source in self._sources:
            source.forget()

    def _source(self, name: str) -> str:
        return self._pool.aliases.get(name, name)

    def _make(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        source = self._source(name)
        if source not in self._pool.merged:
            return self._pool.base.tensor(source)
        out = torch.empty(self.info[source].shape, dtype=dtype)
        self._pipeline.write(source, out)
        return out
