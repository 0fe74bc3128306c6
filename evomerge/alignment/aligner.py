"""Aligner: the `align` nodes of one pool's recipes. Its models are of one architecture, whose symmetry is found once."""

from collections.abc import Callable, Mapping
from functools import cached_property, partial

import torch

from evomerge.alignment.activations import Activations
from evomerge.alignment.matching import match
from evomerge.alignment.narrowed import Narrowed, find_mlps
from evomerge.alignment.permuted import Permuted
from evomerge.alignment.symmetries import Permutations, Symmetry, symmetry
from evomerge.checkpoints.folder import Checkpoint
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.stack import Stacked
from evomerge.errors import ModelError, RecipeError
from evomerge.merging import Store, needs
from evomerge.merging.prepared import Key
from evomerge.models.live import LiveModel
from evomerge.recipe import Align, Narrow, Recipe

VERSION = 1
"""Version of the matching: another finds other orders."""


class Aligner:
    """Aligns checkpoints of a pool's architecture. What is found is kept by content in `store`."""

    def __init__(self, pool: Pool, store: Store) -> None:
        """Take the pool; nothing is loaded before the first alignment."""
        self._pool, self._store = pool, store

    def aligned(self, align: Align, source: Checkpoint, to: Checkpoint) -> Permuted:
        """Return `source` in the order of units that is nearest to `to`; orders are searched for when a tensor is read.

        Raises `RecipeError` for a pool or models that cannot be aligned.
        """
        if self._pool.heads:
            raise RecipeError(
                "align: needs models without heads of their own, since heads would keep the order of their own models"
            )
        for word, model in (("source", source), ("to", to)):
            if isinstance(model, Stacked):
                raise RecipeError(f"align: `{word}` is a stack of layers; align the models that its layers come from")
        read = self._activations(align)
        symmetry = self._units("align")
        digests = [f"{name} {digest}" for name, digest in sorted(self._pool.digests.items())]
        key: Key = ("alignment", VERSION, align.by, align.source.id, align.to.id, *digests)
        key = (*key, *(() if read is None else read[0]), *self._read(align.source), *self._read(align.to))

        def permutations() -> Permutations:
            def made() -> dict[str, torch.Tensor]:
                orders = match(source, to, symmetry, None if read is None else read[1])
                return {str(unit): torch.from_numpy(order) for unit, order in orders.items()}

            tables: Mapping[str, torch.Tensor] = self._store.prepared(key, self._pool.parameters, made)
            return {int(unit): table.numpy() for unit, table in tables.items()}

        return Permuted(source, symmetry, permutations, key)

    def narrowed(self, narrow: Narrow, source: Checkpoint, load: Callable[[Checkpoint, str], torch.Tensor]) -> Narrowed:
        """Return `source` with fewer hidden units; `load` returns tensors before their last cast.

        Raises `RecipeError` for a pool or model whose MLPs are not known.
        """
        if isinstance(source, Stacked) or self._pool.heads:
            raise RecipeError("narrow: expected a model that is no stack of layers, and has no head of its own")
        live = LiveModel(self._pool.open_base())
        mlps = find_mlps(live, self._pool.base, self._units("narrow"), self._pool.layout)
        return Narrowed(narrow, source, self._pool.config, mlps, load)

    def _read(self, recipe: Recipe) -> list[str]:
        """Return the digests of the statistics that the weights of a recipe's model depend on."""
        evidence, repairs = self._pool.evidence, [repair.id for repair in recipe.repairs]
        return [
            evidence.digest(kind, label)
            for kind in needs(recipe)
            for label in (repairs if kind == "repair" else recipe.experts)
            if evidence is not None
        ]

    def _activations(self, align: Align) -> tuple[tuple[str, ...], Activations] | None:
        """Return the digests and the tables of the models' activations, None where weights are matched. Raises `RecipeError`."""
        if align.task is None:
            return None
        kind, evidence = f"inputs@{align.task}", self._pool.evidence
        labels = [recipe.root.label or "" for recipe in (align.source, align.to)]
        if evidence is None:
            from evomerge.statistics.store import missing  # a merge of weights does not wait for libraries of tasks

            raise RecipeError(missing(kind, labels[0]))
        source, to = (partial(evidence.tables, kind, label) for label in labels)
        return tuple(evidence.digest(kind, label) for label in labels), (source, to)

    def _units(self, node: str) -> Symmetry:
        """Return the symmetry of the pool's architecture. Raises `RecipeError`, in the words of the `node` that needs it."""
        try:
            return self._symmetry
        except ModelError as error:
            raise RecipeError(f"{node}: {error}".replace("`align`", f"`{node}`")) from None

    @cached_property
    def _symmetry(self) -> Symmetry:
        return symmetry(LiveModel(self._pool.open_base()))
