"""Aligner: the nodes of one pool's recipes that follow units through a model: `align`, and those that merge units.

A pool's models are of one architecture, whose symmetry is found once.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TypeAlias

import torch
from torch import Tensor

from evomerge.alignment.activations import Read, reordered, standardised
from evomerge.alignment.condensed import Condensed
from evomerge.alignment.grouping import paired, zipped
from evomerge.alignment.matching import match, match_many
from evomerge.alignment.mlps import Mlp, Mlps, find_mlps, resized_config
from evomerge.alignment.narrowed import Narrowed
from evomerge.alignment.permuted import Permuted
from evomerge.alignment.symmetries import Permutations, Symmetry, symmetry
from evomerge.alignment.zipped import Zipped
from evomerge.checkpoints.folder import Checkpoint
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.stack import Stacked
from evomerge.errors import ModelError, RecipeError
from evomerge.merging import Statistics, Store, needs
from evomerge.merging.prepared import Key
from evomerge.models.live import LiveModel
from evomerge.recipe import Align, Condense, Narrow, Pleas, Recipe, ZipIt

VERSION = 1
"""Version of the matching: another finds other orders."""

Build: TypeAlias = Callable[[Recipe], Checkpoint]
Load: TypeAlias = Callable[[Checkpoint, str], Tensor]


class Aligner:
    """Aligns checkpoints of a pool's architecture. What is found is kept by content in `store`."""

    def __init__(self, pool: Pool, store: Store) -> None:
        """Take the pool; nothing is loaded before the first alignment."""
        self._pool, self._store = pool, store

    def aligned(self, align: Align, build: Build) -> Permuted:
        """Return a model in the order of units that is nearest to another's, or of several together; `build` returns a recipe's model.

        Orders are searched for when a tensor is read. Raises `RecipeError` for a pool or models that cannot be aligned.
        """
        if self._pool.heads:
            raise RecipeError(
                "align: needs models without heads of their own, since heads would keep the order of their own models"
            )
        source, models = build(align.source), [build(recipe) for recipe in align.targets]
        for word, model in (("source", source), *(("to", model) for model in models)):
            if isinstance(model, Stacked):
                raise RecipeError(f"align: `{word}` is a stack of layers; align the models that its layers come from")
        kind, labels = f"inputs@{align.task}", [recipe.root.label or "" for recipe in (align.source, *align.targets)]
        read = [] if align.task is None else [self._statistic(kind, label) for label in labels]
        with _said_of("align"):
            symmetry = self._symmetry
        many = isinstance(align.to, tuple)
        recipes = align.targets if many else (align.source, *align.targets)
        key: Key = ("alignment", VERSION, "many" if many else align.by, *(recipe.id for recipe in recipes))
        key = (*key, *(digest for digest, _ in read), *self._digests(*recipes))
        own = align.targets.index(align.source) if many else 0  # one search for all of them

        def permutations() -> Permutations:
            def made() -> dict[str, Tensor]:
                if many:
                    matched = match_many(models, symmetry)
                else:
                    activations = (read[0][1], read[1][1]) if read else None
                    matched = [match(source, models[0], symmetry, activations)]
                return {
                    f"{i} {unit}": torch.from_numpy(order)
                    for i, orders in enumerate(matched)
                    for unit, order in orders.items()
                }

            tables: Mapping[str, Tensor] = self._store.prepared(key, self._pool.parameters, made)
            return {unit: tables[f"{own} {unit}"].numpy() for unit in range(len(symmetry.units))}

        return Permuted(source, symmetry, permutations, (*key, own))

    def condensed(self, condense: Condense, source: Checkpoint, load: Load) -> Condensed:
        """Return `source`, a mixture, with fewer experts; `load` returns tensors before their last cast. Raises `RecipeError`."""
        self._check("condense", source)
        statistics = Statistics.of(self._pool.evidence, condense.counted)
        return Condensed(condense, source, self._pool.config, statistics, load)

    def narrowed(self, narrow: Narrow, source: Checkpoint, load: Load) -> Narrowed:
        """Return `source` with fewer hidden units; `load` returns tensors before their last cast.

        Raises `RecipeError` for a pool or model whose MLPs are not known.
        """
        self._check("narrow", source)
        with _said_of("narrow"):
            return Narrowed(narrow, source, self._pool.config, self._mlps, load)

    def zipped(self, node: Pleas | ZipIt, build: Build, load: Load) -> Zipped:
        """Return two models in one; `build` returns a recipe's model, and `load` tensors before their last cast.

        Raises `RecipeError` for a pool or model whose MLPs are not known, and without evidence.
        """
        self._check(node.word, self._pool.base)
        with _said_of(node.word):
            mlps = Mlps(self._mlps)
            size = mlps.all[0].size
            hidden = round(node.width * size) if isinstance(node, Pleas) else size
            config = resized_config(self._pool.config, mlps.all, hidden)
        models = build(node.inputs[0]), build(node.inputs[1])
        labels = [model.unaligned.root.label or "" for model in node.inputs]
        tables = [[self._statistic(kind, label) for kind in node.kinds] for label in labels]
        key: Key = ("zip", VERSION, node.model_dump_json(), *self._digests(*node.inputs))
        key = (*key, *(digest for some in tables for digest, _ in some))

        def rows(name: str) -> tuple[tuple[Tensor, Tensor], int] | None:
            both = [[read(name) for _, read in some] for some in tables]
            pairs = list(zip(*both, strict=True))
            if not all(one and other and torch.equal(one["counts"], other["counts"]) for one, other in pairs):
                return None
            made = []
            for model, some in zip(models, both, strict=True):
                parts = [_rows(model, name, table) for table in some]
                if any(part is None for part in parts):
                    return None
                made.append(torch.cat([part for part in parts if part is not None]))
            return (made[0], made[1]), int(both[0][0]["axis"])

        def groups(mlp: Mlp) -> Tensor:
            def made() -> dict[str, Tensor]:
                place = mlp.out[0]
                if (both := rows(place.tensor)) is None:
                    raise RecipeError(
                        f"{node.word}: the evidence says nothing of the hidden units in `{place.tensor}`; expected examples that run its layer"
                    )
                one, other = (standardised(table.narrow(1, place.start, size)) for table in both[0])
                if isinstance(node, Pleas):
                    return {"groups": paired(one.mT @ other, hidden)}
                units = torch.cat([one, other], 1)
                return {"groups": zipped(units.mT @ units, node.budget, node.damping)}

            return self._store.prepared((*key, mlp.out[0].tensor), self._pool.parameters, made)["groups"]

        fit = (rows, node.ridge) if isinstance(node, Pleas) else None
        return Zipped(models, build(node.average), mlps, hidden, groups, config, load, fit)

    def _check(self, node: str, source: Checkpoint) -> None:
        """Raise `RecipeError` for a model whose shapes cannot change, in the words of the `node`."""
        if isinstance(source, Stacked):
            raise RecipeError(f"{node}: expected a model that is no stack of layers")
        if self._pool.heads:
            raise RecipeError(
                f"{node}: expected models whose heads are merged, and here each keeps its own; leave out `--head`, or give models with heads of one shape"
            )

    @cached_property
    def _mlps(self) -> list[Mlp]:
        live = LiveModel(self._pool.open_base())
        return find_mlps(live, self._pool.base, self._symmetry, self._pool.layout)

    def _digests(self, *recipes: Recipe) -> list[str]:
        """Return what the weights of recipes' models depend on, beside the recipes."""
        pool = [f"{name} {digest}" for name, digest in sorted(self._pool.digests.items())]
        return [*pool, *(digest for recipe in recipes for digest in self._read(recipe))]

    def _read(self, recipe: Recipe) -> list[str]:
        """Return the digests of the statistics that the weights of a recipe's model depend on."""
        evidence, repairs = self._pool.evidence, [repair.id for repair in recipe.repairs]
        return [
            evidence.digest(kind, label)
            for kind in needs(recipe)
            for label in (repairs if kind == "repair" else recipe.experts)
            if evidence is not None
        ]

    def _statistic(self, kind: str, label: str) -> tuple[str, Read]:
        """Return the digest and the tables of a model's statistic. Raises `RecipeError` without evidence."""
        evidence = self._pool.evidence
        if evidence is None:
            from evomerge.statistics.store import missing  # a merge of weights does not wait for libraries of tasks

            raise RecipeError(missing(kind, label))
        return evidence.digest(kind, label), partial(evidence.tables, kind, label)

    @cached_property
    def _symmetry(self) -> Symmetry:
        return symmetry(LiveModel(self._pool.open_base()))


@contextmanager
def _said_of(node: str) -> Iterator[None]:
    """Raise `ModelError` as `RecipeError`, in the words of the `node` that needs the model's units."""
    try:
        yield
    except ModelError as error:
        raise RecipeError(f"{node}: {error}".replace("`align`", f"`{node}`")) from None


def _rows(model: Checkpoint, name: str, tables: Mapping[str, Tensor]) -> Tensor | None:
    """Return the rows of a matrix's inputs in the order of a model's units, which may be an alignment."""
    if isinstance(model, Permuted):
        return reordered(model.symmetry, name, tables, model.permutations())
    return tables["rows"]
