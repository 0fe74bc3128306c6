"""SearchSpace: decodes genomes into recipes, and encodes known recipes as genomes."""

import copy
import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from evomerge import merging
from evomerge.errors import RecipeError, SpaceError
from evomerge.recipe import KINDS, TOWERS, Recipe, describe, expand_inputs, short_forms
from evomerge.space import nested, slopes
from evomerge.space.holes import (
    Gene,
    Genome,
    Hole,
    Outline,
    choices_around,
    expand,
    find_holes,
    form_around,
    name_of,
    unwrapped,
)
from evomerge.space.landmarks import landmarks
from evomerge.space.mixtures import Mixture, Weights
from evomerge.trial import Proposal

_ABSENT = object()


class SpaceFile(BaseModel):
    """The YAML form of a search space: a recipe with holes, and a driver where the default does not suit it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str = ""
    driver: dict[str, Any] | None = None
    recipe: Any


class SearchSpace:
    """A recipe with holes, ready to be searched over a given pool's experts."""

    def __init__(
        self,
        template: Any,
        *,
        experts: Sequence[str],
        kinds: Sequence[str] = KINDS,
        towers: Sequence[str] = TOWERS,
        tensors: Sequence[str] = (),
        blocks: int | None = None,
        about: str = "",
        driver: Mapping[str, Any] | None = None,
    ) -> None:
        """Read `template`, a recipe with holes as parsed YAML, for a pool with these `experts`.

        `kinds` and `towers` are those of the model, for the genes of `per: [kind]` and `per: [tower]`; `tensors` are the names of its merged
        tensors, for `per: [tensor]`; `blocks` is its number of blocks, the largest N of `block/N`. Raises `SpaceError` or
        `RecipeError`.
        """
        self.about = about
        self.driver = driver
        self.outline = Outline(tuple(kinds), tuple(tensors), blocks, tuple(towers))
        self.template = expand_inputs(copy.deepcopy(template), experts)
        """The recipe with holes, with the experts' names in place of `experts`."""
        members = [
            data["member"] for data in short_forms.mappings(self.template) if len(data) == 1 and "member" in data
        ]
        self.parents = tuple(dict.fromkeys(name for name in members if isinstance(name, str)))
        """Names of the earlier candidates that it merges: words in place of members' ids."""
        if not all(map(str.isprintable, self.parents)):
            raise SpaceError(f"a `member` is one of {self.parents!r}; expected a name of printable characters")
        self.experts = tuple(experts)
        stacks = short_forms.stacks(self.template)
        self.stacked = bool(stacks)
        """Whether a stack is part of it."""
        self._short = any(short_forms.form_of(stack) for stack in stacks)
        if blocks is None and self._short:
            raise SpaceError(
                "the space has a stack's `path` or `swap`, which depends on the model; expected its number of `blocks`"
            )
        tilings = [data["per"] for data in short_forms.mappings(self.template) if isinstance(data.get("per"), list)]
        if not tensors and any("tensor" in per for per in tilings):
            raise SpaceError(
                "the space has a table `per: [tensor]`, which depends on the model; expected the names of its merged `tensors`, "
                "those of a pool's `merged`"
            )
        genes: list[Gene] = []
        holes: list[Hole] = []
        contents = list(find_holes(self.template, (), ()))
        places = [path for path, _, _ in contents]
        for path, labels, content in contents:
            form = form_around(self.template, path)
            key = str(path[-1]) if path else ""
            expanded, axes = expand(content, name_of(path, places), labels, form, key, self.outline)
            per = tuple(content.get("per", ()))
            around = choices_around(path, places)
            total = content.get("mixture")
            mixture = None if total is None else Mixture(*total) if isinstance(total, list) else Mixture(total, total)
            holes.append(Hole(path, around, "choice" in content and not per, per, axes, len(genes), mixture))
            genes.extend(expanded)
        if not genes:
            raise SpaceError("the search space has no holes; expected at least one, such as `weight: {float: [0, 1]}`")
        self.genes: tuple[Gene, ...] = tuple(genes)
        self.lower: Genome = np.array([gene.low for gene in genes])
        self.upper: Genome = np.array([gene.high for gene in genes])
        self.initial: Genome = np.array([gene.init for gene in genes])
        self.log: NDArray[np.bool_] = np.array([gene.log for gene in genes])
        """Which genes have a logarithmic scale, bool `(genes,)`."""
        self.integer: NDArray[np.bool_] = np.array([gene.kind != "float" for gene in genes])
        """Which genes have integer numbers (int, choice and bit), bool `(genes,)`."""
        if inside := [hole for hole in holes if "repair" in hole.path]:
            raise SpaceError(
                f"hole `{self.genes[inside[0].start].name}` is inside of a `repair`, whose merge is run on examples once, before the search; "
                "search the merge without `repair`, and repair what you pick"
            )
        self.holes = tuple(holes)
        self._positions: dict[tuple[int, ...], tuple[list[NDArray[np.intp] | None], int]] = {}  # by the chosen options
        self._check_everywhere()

    @classmethod
    def parse(
        cls,
        data: Any,
        *,
        experts: Sequence[str],
        kinds: Sequence[str] = KINDS,
        towers: Sequence[str] = TOWERS,
        tensors: Sequence[str] = (),
        blocks: int | None = None,
    ) -> "SearchSpace":
        """Return the space described by `data`, the content of a space file. Raises `SpaceError` or `RecipeError`."""
        try:
            file = SpaceFile.model_validate(data)
        except ValidationError as error:
            raise SpaceError(describe(error, "search space", {"": tuple(SpaceFile.model_fields)})) from None
        about: dict[str, Any] = {"about": file.about, "driver": file.driver}
        return cls(file.recipe, experts=experts, kinds=kinds, towers=towers, tensors=tensors, blocks=blocks, **about)

    def decode(self, genome: Genome, parents: Sequence[str] = ()) -> Recipe:
        """Return the recipe of a genome, float64 `(genes,)`; any finite genome is clipped into the box.

        `parents` are the ids of earlier candidates, one for each of the space's `parents`. Raises `SpaceError` for a wrong
        length or a number that is not finite.
        """
        if len(parents) != len(self.parents):
            raise SpaceError(f"the space crosses {len(self.parents)} earlier candidates, got {len(parents)}")
        genome = np.asarray(genome, dtype=np.float64)
        if genome.shape != (len(self.genes),):
            raise SpaceError(f"a genome of this space has shape ({len(self.genes)},), got {genome.shape}")
        if not np.isfinite(genome).all():
            raise SpaceError(f"gene `{self.genes[int(np.argmin(np.isfinite(genome)))].name}` is not finite")
        filled = self._spelled(self.filled(genome.tolist()))
        return Recipe.parse(
            nested.with_parents(filled, dict(zip(self.parents, parents, strict=True))) if parents else filled
        )

    def encode(self, recipe: Recipe) -> Genome:
        """Return a genome that decodes to `recipe`. A number where the space has a table is spread over the table.

        It is for recipes that no genome is recorded of. Raises `SpaceError` if the recipe is not in the space, and for all
        recipes of a space with a stack's `path` or `swap`.
        """
        if self._short:
            msg = "the genome of a stack in a space with `path` or `swap` is only in a journal of format 2; start the study anew"
            raise SpaceError(msg)
        data = recipe.explicit
        genome = self._numbers(data)
        filled = Recipe.parse(self._spelled(self.filled(genome.tolist())))
        if not nested.same(filled.explicit, data, {hole.path for hole in self.holes}):
            msg = f"the recipe differs from the space outside its holes: expected the form {filled.json}, got {recipe.json}"
            raise SpaceError(msg)
        return genome

    def genome_of(self, proposal: Proposal) -> Genome:
        """Return a proposal's genome, float64 `(genes,)`; one recorded without it (journals of format 1) is encoded."""
        return self.encode(proposal.recipe) if proposal.genome is None else proposal.genome

    @cached_property
    def sloped(self) -> NDArray[np.bool_]:
        """Which genes have slopes, bool `(genes,)`: those that merged tensors are smooth functions of, whatever is chosen.

        Genes inside an option have none, nor have those of a space with stacks. An int gene has one as a float would.
        """
        found = [slopes.sloped(self, self._example(point)) for point in self._extremes()]
        return np.asarray(np.all(found, axis=0), np.bool_)

    def slopes(self, genome: Genome, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return derivatives with respect to the genes, float64 `(genes,)`, NaN for a gene that has none.

        `numbers`, float64 `(numbers,)`, are those with respect to the numbers of the genome's recipe, `Recipe.numbers`: the
        slopes of an evaluation. Genes are in their own units, also those with `log`. Raises `SpaceError` for a wrong length.
        """
        genome = np.asarray(genome, np.float64)
        chosen = tuple(g.rounded(n) for g, n in zip(self.genes, genome.tolist(), strict=True) if g.kind == "choice")
        if chosen not in self._positions:
            recipe = self._example(genome)
            self._positions[chosen] = slopes.positions(self, recipe), len(recipe.numbers)
        places, count = self._positions[chosen]
        return slopes.slopes(self, genome, places, slopes.checked(numbers, count, "number of the recipe"))

    def landmarks(self) -> dict[str, Genome]:
        """Return known genomes by name: `init`, and those of the base, each expert and the mean if the space has them.

        For example, a space of normalised averages has no base. For stacks, they are all layers of one model: the base, an
        expert, or a source.
        """
        return landmarks(self)

    def to_unit(self, genome: Genome) -> Genome:
        """Map genomes `(..., genes)` into the unit cube; genes with `log` logarithmically."""
        low, span, log = self._scale
        return (np.where(log, np.log(np.maximum(genome, 1e-300)), genome) - low) / span

    def from_unit(self, unit: Genome) -> Genome:
        """Map points `(..., genes)` of the unit cube to genomes; the inverse of `to_unit`, clipped into the box."""
        low, span, log = self._scale
        raw = low + np.clip(unit, 0.0, 1.0) * span
        return np.clip(np.where(log, np.exp(np.where(log, raw, 0.0)), raw), self.lower, self.upper)

    def coordinates(self, unit: Genome) -> Genome:
        """Map points `(..., genes)` of the unit cube to those in which scores are smoothest: of mixtures, the weights."""
        coordinates = np.array(unit)
        for hole in self.holes:
            if hole.mixture is not None:
                coordinates[..., hole.genes] = hole.mixture.coordinates(self.from_unit(unit)[..., hole.genes])
        return coordinates

    def directions(self, genome: Genome) -> NDArray[np.float64]:
        """Return the derivatives of `coordinates` with respect to each unit coordinate at `genome`, `(genes, genes)`.

        The row of a gene is the direction in which a change of this gene moves the coordinates.
        """
        rows = np.eye(len(self.genes))
        for hole in self.holes:
            if hole.mixture is not None:
                count = rows[hole.genes].shape[0]
                rows[hole.genes, hole.genes] = hole.mixture.jacobian(genome[hole.genes])[:count].T / hole.mixture.high
                rows[hole.genes] *= self._scale[1][hole.genes, None]
        return rows

    def mixed(self, genomes: Genome) -> Genome:
        """Map genomes `(..., genes)` of the box to those whose `weights` are mixtures; other genes stay as they are.

        Genomes spread evenly over the box become mixtures spread evenly over all mixtures.
        """
        if self.weights is None:
            return genomes
        genes = self.weights.genes.ravel()
        mixed = np.array(genomes)
        mixed[..., genes] = self.weights.mixed(self.to_unit(genomes)[..., genes])
        return mixed

    @cached_property
    def weights(self) -> Weights | None:
        """The genes that weigh two or more inputs of a merge by `linear` or `task_arithmetic`, None without such genes.

        A space has them if its whole recipe is such a merge, with a float hole from 0 or less for `weight`, tiled over `expert`.
        Where it is also tiled over blocks or kinds, each tile has its own mixture.
        """
        merge = nested.get(self.template, ("merge",)) or {}
        hole = next((hole for hole in self.holes if hole.path == ("merge", "parameters", "weight")), None)
        if (
            hole is None
            or "expert" not in hole.per
            or hole.mixture
            or merge.get("method") not in ("linear", "task_arithmetic")
        ):
            return None
        gene, axis = self.genes[hole.start], hole.per.index("expert")
        sizes = [len(keys) for keys in hole.axes]
        genes = np.moveaxis(np.arange(hole.genes.start, hole.genes.stop).reshape(sizes), axis, -1).reshape(
            -1, sizes[axis]
        )
        if gene.kind != "float" or gene.log or gene.sd is not None or not gene.low <= 0 < gene.high or sizes[axis] < 2:
            return None
        defaults = merging.METHODS[merge["method"]].defaults or {}
        scale = merge["parameters"].get("lambda", defaults.get("lambda", 1.0))
        total = 1 / scale if isinstance(scale, int | float) and scale > 0 else 1.0  # a hole's scale is drawn
        return Weights(genes, gene.high, total, scaled=merge["method"] == "task_arithmetic")

    @cached_property
    def _scale(self) -> tuple[Genome, Genome, NDArray[np.bool_]]:
        log = self.log
        low = np.array([math.log(gene.low) if gene.log else gene.low for gene in self.genes])
        high = np.array([math.log(gene.high) if gene.log else gene.high for gene in self.genes])
        return low, np.where(high > low, high - low, 1.0), log

    def filled(self, genome: Sequence[float]) -> Any:
        """Return the template with its holes filled; short forms stay as they are."""
        data = self.template
        for hole in reversed(self.holes):  # holes in a choice's options before the choice
            if hole.choice:  # the option with its own holes filled
                option = self.genes[hole.start].rounded(genome[hole.start])
                data = nested.put(data, hole.path, nested.get(data, (*hole.path, "choice", option)))
                continue
            table = nested.table(hole.axes, iter(hole.values(self.genes[hole.genes], genome[hole.genes])))
            data = nested.put(data, hole.path, {"per": list(hole.per), "values": table} if hole.per else table)
        return data

    def _spelled(self, data: Any) -> Any:
        """Return filled data with its short forms within their bounds and spelled out."""
        if not self.stacked or self.outline.blocks is None:
            return data
        return short_forms.spell_out(short_forms.fit(data, self.outline.blocks), self.outline.blocks)

    def _numbers(self, data: Any) -> Genome:
        """Return the genome with the values of `data` in its holes. Raises `SpaceError` for one that a hole cannot have."""
        genome = self.initial.copy()
        values: dict[int, Any] = {}  # the recipe's value at each hole
        for number, hole in enumerate(self.holes):
            if hole.within:
                outer, option = hole.within[-1]
                if values[outer] is _ABSENT or genome[self.holes[outer].start] != option:
                    values[number] = _ABSENT  # its option is not the chosen one: its genes do nothing
                    continue
                depth = len(self.holes[outer].path) + 2
                template = nested.get(self.template, hole.path[:depth])
                values[number] = nested.get(unwrapped(values[outer], template), hole.path[depth:])
            else:
                values[number] = nested.get(data, hole.path)
            cells = [nested.cell(values[number], hole.per, key) for key in hole.keys]
            genome[hole.genes] = hole.numbers(self.genes[hole.genes], cells)
        return genome

    def _extremes(self) -> list[Genome]:
        """Return the initial genome, that of each hole's bounds, and those of the combinations of choices, up to 1024."""
        points = [self.initial]
        for hole in self.holes:
            for bound in (self.lower, self.upper):
                point = self.initial.copy()
                for outer, option in hole.within:
                    point[self.holes[outer].start] = option
                point[hole.genes] = bound[hole.genes]
                points.append(point)
        choices = [hole for hole in self.holes if self.genes[hole.start].kind == "choice"]
        options = [range(len(self.genes[hole.start].choices)) for hole in choices]
        for combination in itertools.islice(itertools.product(*options), 1024):
            point = self.initial.copy()
            for hole, option in zip(choices, combination, strict=True):
                point[hole.genes] = option
            points.append(point)
        return points

    def _example(self, genome: Genome) -> Recipe:
        """Return a genome's recipe, with made-up ids of earlier candidates. Raises `RecipeError`."""
        dummies = {name: hashlib.sha256(name.encode()).hexdigest() for name in self.parents}
        filled = self._spelled(self.filled(genome.tolist()))
        return Recipe.parse(nested.with_parents(filled, dummies), experts=self.experts)

    @cached_property
    def needs(self) -> tuple[str, ...]:
        """The kinds of statistics of the experts that its recipes read."""
        return tuple(sorted({kind for recipe in self.examples for kind in merging.needs(recipe)}))

    @cached_property
    def examples(self) -> tuple[Recipe, ...]:
        """A recipe for each combination of choices."""
        chosen = [i for i, gene in enumerate(self.genes) if gene.kind == "choice"]
        points = {tuple(point[chosen]): point for point in self._extremes()}
        return tuple(self._example(point) for point in points.values())

    def _check_everywhere(self) -> None:
        """Check recipes all over the space, so that no error comes during a search."""
        for i, point in enumerate(self._extremes()):
            try:  # whether the tables fit the model does not depend on their values: the first point is enough
                merging.check(self._example(point), () if i else self.outline.places)
            except RecipeError as error:
                raise SpaceError(f"search space: some of its points are no valid recipe: {error}") from None
