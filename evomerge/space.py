"""SearchSpace: a recipe with holes. Fill the holes and it is the recipe that `evomerge merge` takes.

A hole stands wherever a recipe may have a value:

    weight:  {float: [0, 1], init: 0.3, per: [expert, block/4]}
    density: {float: [0.05, 1], log: true}
    seed:    {int: [0, 2147483647]}
    rank:    {int: [1, 16]}
    method:  {choice: [ties, dare_ties]}
    edit:    {choice: [none, dare, {trim: {density: {float: [0.05, 1]}}}]}
    include: {bit: first, per: [slot]}
    share:   {float: [0.9, 1.1], init: 1, sd: 0.01}

Where numbers are drawn at random, they are spread evenly, and normally around `init` for a hole with `sd`. An option may
have holes of its own, whose genes do nothing where another option is chosen. A space that says how earlier candidates are
crossed names them by any words, `{member: mother}`, to be filled with the ids of whoever they are. Each hole expands into
named genes (`weight[math,block 2]`). A genome is float64 `(genes,)` in the genes' own units, where a choice is the index of
its option and a bit is 0 or 1. Drivers that want a unit cube use `to_unit` and `from_unit`.

A stack may stand in one of its short forms (`evomerge.paths`), which then has the holes: decoding keeps it within its
bounds and spells it out. A bit says whether a slot of a path is a hop; `first` starts with the first source's layers.
"""

import copy
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from evomerge import merging, paths, strict_yaml
from evomerge.errors import RecipeError, SpaceError, nearest
from evomerge.recipe import (
    KINDS,
    Expert,
    Json,
    MergeNode,
    Place,
    Recipe,
    axis_size,
    canonical_json,
    check_axes,
    describe,
    expand_inputs,
)

Genome = NDArray[np.float64]
Kind = Literal["float", "int", "choice", "bit"]

_HOLES = ("float", "int", "choice", "bit")
_OPTIONS = ("init", "log", "per", "sd")
_HUGE = 1e300


@dataclass(frozen=True, slots=True)
class Gene:
    """One number of a genome. For a choice, `low` is 0, `high` the last option's index and `init` an index; a bit is 0 or 1."""

    name: str
    kind: Kind
    low: float
    high: float
    init: float
    log: bool = False
    choices: tuple[Json, ...] = ()
    sd: float | None = None
    """Standard deviation around `init` where the gene is drawn at random; None draws evenly over the range."""

    def value(self, number: float) -> Json:
        """Return what goes into the recipe for the gene's `number`, clipped into the gene's range."""
        clipped = min(max(number, self.low), self.high)
        if self.kind == "float":
            return float(clipped)
        whole = self.whole(number)
        return self.choices[whole] if self.kind == "choice" else bool(whole) if self.kind == "bit" else whole

    def whole(self, number: float) -> int:
        """Return the whole number nearest to `number` in the gene's range."""
        return math.floor(min(max(number, self.low), self.high) + 0.5)

    def number(self, value: Any) -> float:
        """Return the number whose `value` is `value`; the inverse of `value`. Raises `SpaceError` outside the range."""
        if self.kind == "choice":
            for index, option in enumerate(self.choices):
                if _fits(option, _unwrapped(value, option)):
                    return float(index)
        elif (
            isinstance(value, int | float)
            and isinstance(value, bool) == (self.kind == "bit")
            and self.low <= value <= self.high
            and (self.kind == "float" or float(value).is_integer())
        ):
            return float(value)
        expected = {
            "float": f"a number in [{self.low:g}, {self.high:g}]",
            "int": f"a whole number in [{self.low:g}, {self.high:g}]",
            "choice": f"one of {list(self.choices)}",
            "bit": "true or false",
        }[self.kind]
        msg = f"gene `{self.name}`: expected {expected}, got {'nothing' if value is None else repr(value)}"
        raise SpaceError(msg)


@dataclass(frozen=True, slots=True)
class _Hole:
    """Where a hole is in the template (`path`), and which of the genome's numbers fill it."""

    path: tuple[str | int, ...]
    within: tuple[
        tuple[int, int], ...
    ]  # (number of the hole, its option) of each choice around it, from the outside in
    choice: bool  # one choice for all, whose options may have holes
    per: tuple[str, ...]
    axes: tuple[tuple[str | int, ...], ...]  # the keys along each axis of `per`
    start: int

    @property
    def keys(self) -> list[tuple[str | int, ...]]:
        """One key into the table for each gene; the one key () when the hole is not tiled."""
        return list(itertools.product(*self.axes))

    @property
    def genes(self) -> slice:
        """The hole's part of the genome."""
        return slice(self.start, self.start + math.prod(len(axis) for axis in self.axes))


class SpaceFile(BaseModel):
    """The YAML form of a search space: a recipe with holes, and the driver that suits it, where it needs another than usual."""

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
        blocks: int | None = None,
        about: str = "",
        driver: Mapping[str, Any] | None = None,
    ) -> None:
        """Read `template`, a recipe with holes as parsed YAML, for a pool with these `experts`.

        `kinds` are the kinds of tensor that the model has, `blocks` its number of blocks: they decide how many genes
        `per: [kind]` makes, and refuse `block/N` finer than the model. Raises `SpaceError` or `RecipeError`.
        """
        self.about = about
        self.driver = driver
        self._template = expand_inputs(copy.deepcopy(template), experts)
        self.parents = tuple(dict.fromkeys(_parents(self._template)))
        self._kinds = tuple(kinds)
        self._blocks = blocks
        self.experts = tuple(experts)
        stacks = list(paths.stacks(self._template))
        self._stacked = bool(stacks)
        if blocks is None and any(paths.form_of(stack) for stack in stacks):
            msg = (
                "the space has a stack's `path` or `swap`, which depends on the model; expected its number of `blocks`"
            )
            raise SpaceError(msg)
        genes: list[Gene] = []
        holes: list[_Hole] = []
        found = list(_find_holes(self._template, (), ()))
        places = [path for path, _, _ in found]
        for path, labels, hole in found:
            expanded, axes = self._expand(_name(path, places), labels, hole, path)
            per = tuple(hole.get("per", ()))
            holes.append(_Hole(path, _within(path, places), "choice" in hole and not per, per, axes, len(genes)))
            genes.extend(expanded)
        if not genes:
            msg = "the search space has no holes; expected at least one, such as `weight: {float: [0, 1]}`"
            raise SpaceError(msg)
        self.genes: tuple[Gene, ...] = tuple(genes)
        self._holes = tuple(holes)
        self._check_everywhere()

    @classmethod
    def parse(
        cls, data: Any, *, experts: Sequence[str], kinds: Sequence[str] = KINDS, blocks: int | None = None
    ) -> "SearchSpace":
        """Return the space that `data`, the content of a space file (`about`, `driver`, `recipe`), spells."""
        try:
            file = SpaceFile.model_validate(data)
        except ValidationError as error:
            raise SpaceError(describe(error, "search space", {"": tuple(SpaceFile.model_fields)})) from None
        return cls(file.recipe, experts=experts, kinds=kinds, blocks=blocks, about=file.about, driver=file.driver)

    # -- genome and recipe ---------------------------------------------------------------------------------------------

    @cached_property
    def lower(self) -> Genome:
        """Lower bounds, float64 `(genes,)`."""
        return np.array([gene.low for gene in self.genes])

    @cached_property
    def upper(self) -> Genome:
        """Upper bounds, float64 `(genes,)`."""
        return np.array([gene.high for gene in self.genes])

    @cached_property
    def initial(self) -> Genome:
        """The genome of every hole's `init`, float64 `(genes,)`."""
        return np.array([gene.init for gene in self.genes])

    def decode(self, genome: Genome, parents: Sequence[str] = ()) -> Recipe:
        """Return the recipe of a genome, float64 `(genes,)`. Total: any finite genome is clipped into the box.

        `parents` are the ids of earlier candidates, one for each of the space's `parents`, in that order. Raises `SpaceError`
        on a wrong length or a number that is not finite.
        """
        if len(parents) != len(self.parents):
            msg = f"the space crosses {len(self.parents)} earlier candidates, got {len(parents)}"
            raise SpaceError(msg)
        genome = np.asarray(genome, dtype=np.float64)
        if genome.shape != (len(self.genes),):
            msg = f"a genome of this space has shape ({len(self.genes)},), got {genome.shape}"
            raise SpaceError(msg)
        if not np.isfinite(genome).all():
            msg = f"gene `{self.genes[int(np.argmin(np.isfinite(genome)))].name}` is not finite"
            raise SpaceError(msg)
        filled = self._spelled(self._fill(genome.tolist()))
        return Recipe.parse(_born(filled, dict(zip(self.parents, parents, strict=True))) if parents else filled)

    def encode(self, recipe: Recipe) -> Genome:
        """Return the genome that decodes to `recipe`. A number where the space has a table is spread over the table.

        Raises `SpaceError` if the recipe is not in the space.
        """
        data = recipe.complete
        genome = self._numbers((), self._folded((), data))
        filled = Recipe.parse(self._spelled(self._fill(genome.tolist())))
        if not _same(filled.complete, data, {hole.path for hole in self._holes}):
            msg = f"the recipe differs from the space outside its holes: expected the form {filled.json}, got {recipe.json}"
            raise SpaceError(msg)
        return genome

    def landmarks(self) -> dict[str, Genome]:
        """Return genomes worth trying first: `init`, and those that give exactly the base, each expert and the mean.

        Only what the space can express is there: a space of normalised averages has no base. A stack's are the stacks of
        all layers of one model: the base, an expert, or a source.
        """
        if self.parents:
            return {}
        marks = {"init": self.initial}
        if isinstance(stack := _get(self._template, ("stack",)), Mapping) and self._blocks is not None:
            return marks | self._whole_models(stack)
        root = _get(self._template, ("merge",))
        if not isinstance(root, Mapping) or not isinstance(root.get("method"), str):
            return marks
        method = merging.METHODS[root["method"]]
        inputs = self.decode(self.initial).root
        if not isinstance(inputs, MergeNode) or not all(isinstance(r.root, Expert) for r in inputs.merge.inputs):
            return marks
        labels = inputs.merge.labels
        wanted: dict[str, dict[str, float]] = {"base": dict.fromkeys(labels, 0.0)}
        for label in labels:
            wanted[f"expert {label}"] = {**dict.fromkeys(labels, 0.0), label: 1.0}
        wanted["mean"] = dict.fromkeys(labels, 1.0 / len(labels))
        for name, weights in wanted.items():
            parameters = method.reach(weights)
            genome = None if parameters is None else self._place(parameters)
            if genome is not None:
                marks[name] = genome
        return marks

    # -- unit cube -----------------------------------------------------------------------------------------------------

    def to_unit(self, genome: Genome) -> Genome:
        """Map genomes `(..., genes)` into the unit cube, logarithmically where a gene asks for it."""
        low, span, log = self._scale
        return (np.where(log, np.log(np.maximum(genome, 1e-300)), genome) - low) / span

    def from_unit(self, unit: Genome) -> Genome:
        """Map points `(..., genes)` of the unit cube to genomes; the inverse of `to_unit`, clipped into the box."""
        low, span, log = self._scale
        raw = low + np.clip(unit, 0.0, 1.0) * span
        return np.clip(np.where(log, np.exp(np.where(log, raw, 0.0)), raw), self.lower, self.upper)

    @cached_property
    def whole(self) -> NDArray[np.bool_]:
        """Which genes only take whole numbers (int, choice and bit), bool `(genes,)`."""
        return np.array([gene.kind != "float" for gene in self.genes])

    @cached_property
    def log(self) -> NDArray[np.bool_]:
        """Which genes are on a logarithmic scale, bool `(genes,)`."""
        return np.array([gene.log for gene in self.genes])

    @cached_property
    def _scale(self) -> tuple[Genome, Genome, NDArray[np.bool_]]:
        log = self.log
        low = np.array([math.log(gene.low) if gene.log else gene.low for gene in self.genes])
        high = np.array([math.log(gene.high) if gene.log else gene.high for gene in self.genes])
        return low, np.where(high > low, high - low, 1.0), log

    # -- inside --------------------------------------------------------------------------------------------------------

    def _expand(
        self, name: str, labels: tuple[str, ...], hole: Mapping[str, Any], path: paths.Where
    ) -> tuple[list[Gene], tuple[tuple[str | int, ...], ...]]:
        kind, low, high, choices = _range(name, hole)
        form = self._form(name, path, kind, hole.get("per"))
        init, log = hole.get("init"), hole.get("log", False)
        if not isinstance(log, bool) or (log and (kind == "choice" or low <= 0)):
            msg = f"hole `{name}`: `log` is {log!r} over [{low:g}, {high:g}]; expected true or false, and a positive range for true"
            raise SpaceError(msg)
        if init is None:
            middle = math.sqrt(low * high) if log else (low + high) / 2
            by_kind = {"float": middle, "int": round(middle), "bit": hole.get("bit")}
            init = choices[0] if kind == "choice" else by_kind[kind]
        sd = hole.get("sd")
        if sd is not None and (
            kind != "float" or log or isinstance(sd, bool) or not isinstance(sd, int | float) or not 0 < sd < math.inf
        ):
            msg = f"hole `{name}`: `sd` is {sd!r}; expected a number above 0, of a `float` without `log`"
            raise SpaceError(msg)
        axes: list[list[tuple[str | int, str]]] = []
        if "per" in hole and form is not None:
            axes = [list(enumerate(texts)) for texts in form.cells(str(path[-1]), hole["per"], self._blocks or 0)]
        elif "per" in hole:
            check_axes(hole["per"])
            axes = [self._axis(name, axis, labels) for axis in hole["per"]]
        cells = list(itertools.product(*axes))
        gene = Gene(name, kind, low, high, low, log, choices)
        if kind == "bit" and init == "first" and isinstance(form, paths.Path):
            starts = [float(first) for first in form.first(self._blocks or 0)]
        else:
            starts = [gene.number(init)] * len(cells)
        genes = []
        for cell, start in zip(cells, starts, strict=True):
            suffix = f"[{','.join(text for _, text in cell)}]" if cell else ""
            genes.append(Gene(name + suffix, kind, low, high, start, log, choices, sd))
        return genes, tuple(tuple(key for key, _ in axis) for axis in axes)

    def _form(self, name: str, path: paths.Where, kind: Kind, per: Any) -> paths.Form | None:
        """Return the short form of a stack that the hole at `path` is in, itself and not in a source; None for others."""
        inside = path[-3:-1] in (("stack", "path"), ("stack", "swap"))
        form = paths.form_of(_get(self._template, path[:-2])) if inside else None
        if kind == "bit" and not (isinstance(form, paths.Path) and path[-1] == "include" and per):
            msg = f"hole `{name}`: a bit stands at the `include` of a stack's `path`; type {{bit: first, per: [slot]}} there"
            raise SpaceError(msg)
        return form

    def _axis(self, name: str, axis: str, labels: tuple[str, ...]) -> list[tuple[str | int, str]]:
        if axis == "expert":
            if not labels:
                msg = f"hole `{name}`: `per: [expert]` stands outside any merge; expected it among a merge's parameters"
                raise SpaceError(msg)
            return [(label, label) for label in labels]
        if axis == "kind":
            return [(kind, kind) for kind in self._kinds]
        size, word = axis_size(axis), axis.partition("/")[0]
        if word == "block" and self._blocks is not None and size > self._blocks:
            msg = f"hole `{name}`: `{axis}` makes {size} groups, but the model has {self._blocks} blocks; type `block/{self._blocks}` or less"
            raise SpaceError(msg)
        return [(i, f"{word} {i}") for i in range(size)]

    def _fill(self, genome: Sequence[float], place: paths.Where = ()) -> Any:
        """Return what is at `place` in the template, with its holes filled."""
        data = _get(self._template, place)
        for hole in reversed(self._holes):  # those inside of a choice's option before the choice
            if hole.path[: len(place)] != place:
                continue
            path = hole.path[len(place) :]
            values = (
                gene.value(number) for gene, number in zip(self.genes[hole.genes], genome[hole.genes], strict=True)
            )
            if hole.choice:  # the option with its own holes filled
                option = self.genes[hole.start].whole(genome[hole.start])
                data = _set(data, path, _get(data, (*path, "choice", option)))
                continue
            table = _table(hole.axes, values)
            data = _set(data, path, {"per": list(hole.per), "values": table} if hole.per else table)
        return data

    def _spelled(self, data: Any) -> Any:
        """Return filled data with its stacks within their bounds and spelled out."""
        if not self._stacked or self._blocks is None:
            return data
        return paths.spell_out(paths.fit(data, self._blocks), self._blocks)

    def _folded(self, place: paths.Where, data: Any) -> Any:
        """Return a recipe's data in the form of the template at `place`. Raises `SpaceError`."""
        if not self._stacked or self._blocks is None:
            return data
        return paths.fold(_get(self._template, place), data, self._blocks, self._suits, place)

    def _numbers(self, place: paths.Where, data: Any) -> Genome:
        """Return the genome that has in the holes at `place` what `data` has there, and `initial` in all others.

        Raises `SpaceError` for a value that a hole cannot have.
        """
        genome = self.initial.copy()
        values: dict[int, Any] = {}  # what the recipe has in each hole
        for number, hole in enumerate(self._holes):
            if hole.path[: len(place)] != place:
                continue
            path = hole.path[len(place) :]
            if hole.within:
                outer, option = hole.within[-1]
                if values[outer] is _ABSENT or genome[self._holes[outer].start] != option:
                    values[number] = _ABSENT  # its option is not the chosen one: its genes do nothing
                    continue
                depth = len(self._holes[outer].path) + 2
                template = _get(self._template, hole.path[:depth])
                values[number] = _get(_unwrapped(values[outer], template), hole.path[depth:])
            else:
                values[number] = _get(data, path)
            for i, key in enumerate(hole.keys, start=hole.start):
                cell = _cell(values[number], hole.per, key)
                if cell is not paths.IDLE:
                    genome[i] = self.genes[i].number(cell)
        return genome

    def _suits(self, place: paths.Where, value: Any) -> bool:
        """Tell whether `value` is the template at `place` with its holes filled, or one cell of the table that is there."""
        table = next((hole for hole in self._holes if hole.path == place and hole.per), None)
        try:
            if table is not None:
                self.genes[table.start].number(value)
                return True
            genome = self._numbers(place, self._folded(place, value))
            return Recipe.parse(self._spelled(self._fill(genome.tolist(), place))) == Recipe.parse(value)
        except (SpaceError, RecipeError):
            return False

    def _whole_models(self, stack: Mapping[str, Any]) -> dict[str, Genome]:
        """Return the genomes that put all layers of one model into the stack, those that the space has."""
        data = self._fill(self.initial.tolist())
        form = paths.form_of(stack)
        if form is None or self._blocks is None:
            return {}
        rest = self._spelled(data)["stack"]["rest"]
        models: dict[str, Any] = {"base": "base"} | {name: {"expert": name} for name in self.experts}
        if isinstance(form, paths.Path):
            models |= dict(zip(form.names, data["stack"]["path"]["sources"], strict=True))
        marks = {}
        for name, model in models.items():
            slots = [{"source": model, "layer": layer} for layer in range(self._blocks)]
            whole = {"stack": {"slots": slots, "rest": rest}}
            try:
                marks[f"layers of {name}"] = self.encode(Recipe.parse(self._spelled(whole)))
            except SpaceError:
                continue
        return marks

    def _place(self, parameters: Mapping[str, Any]) -> Genome | None:
        """Return the genome whose recipe has these `parameters` at its root, or None if the space has no such point."""
        genome = self.initial.copy()
        holes = {hole.path[-1]: hole for hole in self._holes if hole.path[:-1] == ("merge", "parameters")}
        fixed = _get(self._template, ("merge", "parameters")) or {}
        defaults = merging.METHODS[_get(self._template, ("merge", "method"))].parameters
        for name, wanted in parameters.items():
            if name not in holes:
                if fixed.get(name, defaults[name].default) != wanted:
                    return None
                continue
            hole = holes[name]
            by_input = wanted if isinstance(wanted, Mapping) else {}
            if "expert" not in hole.per and len(set(by_input.values())) > 1:
                return None
            for i, key in enumerate(hole.keys, start=hole.start):
                label = key[hole.per.index("expert")] if "expert" in hole.per else next(iter(by_input), None)
                value = by_input.get(str(label), wanted)
                try:
                    genome[i] = self.genes[i].number(value)
                except SpaceError:
                    return None
        return genome

    def _check_everywhere(self) -> None:
        """Decode each hole's extremes and all combinations of choices, so that `decode` is total before any search."""
        points = [self.initial]
        for hole in self._holes:
            for bound in (self.lower, self.upper):
                point = self.initial.copy()
                for outer, option in hole.within:
                    point[self._holes[outer].start] = option
                point[hole.genes] = bound[hole.genes]
                points.append(point)
        choices = [hole for hole in self._holes if self.genes[hole.start].kind == "choice"]
        options = [range(len(self.genes[hole.start].choices)) for hole in choices]
        for combination in itertools.islice(itertools.product(*options), 1024):
            point = self.initial.copy()
            for hole, option in zip(choices, combination, strict=True):
                point[hole.genes] = option
            points.append(point)
        # Whether the tables fit the model does not depend on the numbers in them: one point tells.
        blocks = self._blocks or 0
        places = [Place(block, blocks, kind) for block in range(blocks) for kind in self._kinds]
        dummies = {name: hashlib.sha256(name.encode()).hexdigest() for name in self.parents}
        for i, point in enumerate(points):
            try:
                filled = self._spelled(self._fill(point.tolist()))
                recipe = Recipe.parse(_born(filled, dummies), experts=self.experts)
                merging.check(recipe, () if i else places)
            except RecipeError as error:
                msg = f"search space: some of its points are no valid recipe: {error}"
                raise SpaceError(msg) from None


def shipped() -> dict[str, Traversable]:
    """Return the search spaces that come with evomerge, by name."""
    folder = files("evomerge.search_spaces")
    return {
        entry.name.removesuffix(".yaml"): entry
        for entry in sorted(folder.iterdir(), key=lambda e: e.name)
        if entry.name.endswith(".yaml")
    }


def from_method(name: str) -> str:
    """Return the YAML of a search space with a hole for each parameter of a method that is worth searching.

    Raises `SpaceError` for an unknown method, and for one that has nothing to search.
    """
    if name not in merging.METHODS:
        msg = f"no merge method `{name}`; {nearest(name, merging.METHODS)}"
        raise SpaceError(msg)
    method = merging.METHODS[name]
    parameters = {key: spec for key, spec in method.parameters.items() if key != "reduce"}
    if not any(spec.search for spec in parameters.values()):
        msg = f"the method `{name}` has no parameter to search; merge with it as it is"
        raise SpaceError(msg)
    lines = [
        f"about: {json.dumps(f'Parameters of {name}: {method.about}.', ensure_ascii=False)}",
        "recipe:",
        "  merge:",
        f"    method: {name}",
    ]
    inputs = next((merging.STAGES[stage].inputs for stage in method.stages if merging.STAGES[stage].inputs), None)
    lines.append(f"    inputs: experts{f'  # the pool must have exactly {inputs}' if inputs else ''}")
    lines.append("    parameters:")
    for key, spec in parameters.items():
        default = int(spec.default) if spec.integer else spec.default
        if spec.search is None:
            options = f" ({' | '.join(spec.choices)})" if spec.choices else ""
            lines.append(f"      {key}: {default}  # {spec.about}{options}")
            continue
        kind = "int" if spec.integer else "float"
        low, high = (f"{bound:g}" for bound in spec.search)
        inside = isinstance(default, int | float) and spec.search[0] <= default <= spec.search[1]
        parts = [f"{kind}: [{low}, {high}]"]
        parts += [f"init: {default}"] if inside else []
        parts += ["log: true"] if spec.log else []
        parts += ["per: [expert]"] if spec.per_input else []
        lines.append(f"      {key}: {{{', '.join(parts)}}}  # {spec.about}")
    return "\n".join(lines) + "\n"


def read(source: str | Path) -> Any:
    """Return the parsed content of a space file: a shipped one by name, or any by path. Raises `SpaceError`."""
    known = shipped()
    if str(source) in known:
        return strict_yaml.parse(known[str(source)].read_text(encoding="utf-8"), str(source))
    path = Path(source)
    if not path.exists():
        msg = f"no search space `{source}`: neither a file nor shipped; {nearest(str(source), known)}"
        raise SpaceError(msg)
    return strict_yaml.read(path)


def _range(name: str, hole: Mapping[str, Any]) -> tuple[Kind, float, float, tuple[Json, ...]]:
    for key in hole:
        if key not in _HOLES + _OPTIONS:
            msg = f"hole `{name}`: unknown key `{key}`; {nearest(str(key), _HOLES + _OPTIONS)}"
            raise SpaceError(msg)
    kinds = [kind for kind in _HOLES if kind in hole]
    kind: Kind = kinds[0]  # type: ignore[assignment]  # one of _HOLES by construction
    if len(kinds) > 1:
        msg = f"hole `{name}`: has {' and '.join(kinds)}; expected one of them"
        raise SpaceError(msg)
    if kind == "choice":
        options = hole["choice"]
        if not isinstance(options, list) or len(options) < 2:
            msg = f"hole `{name}`: `choice` is {options!r}; expected a list of two or more options"
            raise SpaceError(msg)
        if "per" in hole and any(True for _ in _find_holes(options, (), ())):
            msg = f"hole `{name}`: an option holds another hole, which a choice with `per` cannot have; leave out `per`"
            raise SpaceError(msg)
        if any(paths.form_of(stack) for stack in paths.stacks(options)):
            msg = f"hole `{name}`: an option is a stack with a `path` or `swap`, which only the space itself can have; type `slots`"
            raise SpaceError(msg)
        return kind, 0.0, float(len(options) - 1), tuple(options)
    if kind == "bit":
        if "init" in hole or not (isinstance(hole["bit"], bool) or hole["bit"] == "first"):
            msg = f"hole `{name}`: `bit` is {hole['bit']!r}; expected how it starts: true, false, or `first`, and no `init`"
            raise SpaceError(msg)
        return kind, 0.0, 1.0, ()
    bounds = hole[kind]
    number = int if kind == "int" else (int, float)
    if (
        not isinstance(bounds, list)
        or len(bounds) != 2
        or not all(isinstance(b, number) and not isinstance(b, bool) and abs(b) < _HUGE for b in bounds)
        or not bounds[0] < bounds[1]
    ):
        msg = f"hole `{name}`: `{kind}` is {bounds!r}; expected two finite numbers [low, high] with low < high"
        raise SpaceError(msg)
    return kind, float(bounds[0]), float(bounds[1]), ()


def _find_holes(
    data: Any, path: tuple[str | int, ...], labels: tuple[str, ...]
) -> Iterator[tuple[tuple[str | int, ...], tuple[str, ...], Mapping[str, Any]]]:
    """Yield each hole's path, the labels of the inputs of the merge around it, and its content, in order."""
    if isinstance(data, Mapping):
        if any(kind in data for kind in _HOLES):
            yield path, labels, data
            if isinstance(options := data.get("choice"), list):
                yield from _find_holes(options, (*path, "choice"), labels)
            return
        if isinstance(data.get("inputs"), list):
            labels = _labels(data["inputs"])
        for key, value in data.items():
            yield from _find_holes(value, (*path, key), labels)
    elif isinstance(data, list):
        for i, value in enumerate(data):
            yield from _find_holes(value, (*path, i), labels)


def _labels(inputs: list[Any]) -> tuple[str, ...]:
    def label(i: int, entry: Any) -> str:
        if isinstance(entry, Mapping):
            return str(entry["expert"]) if "expert" in entry else "base" if "base" in entry else f"#{i}"
        return str(entry)

    return tuple(label(i, entry) for i, entry in enumerate(inputs))


def _within(path: tuple[str | int, ...], places: list[tuple[str | int, ...]]) -> tuple[tuple[int, int], ...]:
    """Return (number of the hole, option) of each choice that `path` leads through."""
    found = []
    for length in range(len(path) - 1):
        option = path[length + 1]
        if path[:length] in places and path[length] == "choice" and isinstance(option, int):
            found.append((places.index(path[:length]), option))
    return tuple(found)


def _parents(template: Any) -> Iterator[str]:
    """Yield what a template calls the earlier candidates that it crosses: any word in place of a member's id."""
    if isinstance(template, Mapping):
        if isinstance(name := template.get("member"), str) and len(template) == 1:
            yield name
        for value in template.values():
            yield from _parents(value)
    elif isinstance(template, list):
        for value in template:
            yield from _parents(value)


def _born(data: Any, parents: Mapping[str, str]) -> Any:
    """Return filled data with the ids of its parents."""
    if isinstance(data, Mapping):
        if len(data) == 1 and data.get("member") in parents:
            return {"member": parents[data["member"]]}
        return {key: _born(value, parents) for key, value in data.items()}
    if isinstance(data, list):
        return [_born(value, parents) for value in data]
    return data


_ABSENT = object()


def _unwrapped(value: Any, option: Any) -> Any:
    """Return the one entry of a recipe's list where the space has that entry alone, as of stages."""
    return value[0] if isinstance(value, list) and len(value) == 1 and not isinstance(option, list) else value


def _fits(option: Any, value: Any) -> bool:
    """Tell whether `value`, from a recipe, is what a recipe makes of `option`, with any numbers in the option's holes."""
    if isinstance(option, Mapping):
        if any(kind in option for kind in _HOLES):
            return value is not None
        if isinstance(value, Mapping) and any(True for _ in _find_holes(option, (), ())):
            return option.keys() == value.keys() and all(_fits(option[key], value[key]) for key in option)
    if isinstance(option, list) and isinstance(value, list) and any(True for _ in _find_holes(option, (), ())):
        return len(option) == len(value) and all(_fits(a, b) for a, b in zip(option, value, strict=True))
    return _alike(option, value)


def _alike(option: Json, value: Any) -> bool:
    """Tell whether `value`, from a recipe, is what a recipe makes of `option`."""
    if isinstance(value, Mapping) and set(value) <= {"expert", "merge", "stack"}:  # what an option may be short for
        try:
            return Recipe.parse(option) == Recipe.parse(value)
        except RecipeError:
            return False
    return canonical_json(option) == canonical_json(value)


def _name(path: tuple[str | int, ...], places: list[tuple[str | int, ...]]) -> str:
    """Return the shortest tail of `path`, in dots, that no other hole shares."""
    words = [str(part) for part in path if part != "parameters"]
    others = [[str(part) for part in other if part != "parameters"] for other in places if other != path]
    for size in range(1, len(words) + 1):
        if all(other[-size:] != words[-size:] for other in others):
            return ".".join(words[-size:])
    return ".".join(words)


def _get(data: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        if data is paths.IDLE:
            break
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _set(data: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """Return a copy of `data` with `value` at `path`; what lies off the path is shared."""
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(data, list):
        return [_set(item, rest, value) if i == head else item for i, item in enumerate(data)]
    return {key: _set(item, rest, value) if key == head else item for key, item in data.items()}


def _table(axes: Sequence[Sequence[str | int]], values: Iterator[Json]) -> Any:
    """Nest `values`, which come in the order of the axes' product, as `Tiled.values` wants them."""
    if not axes:
        return next(values)
    entries = [_table(axes[1:], values) for _ in axes[0]]
    return entries if isinstance(axes[0][0], int) else dict(zip(axes[0], entries, strict=True))


def _cell(value: Any, per: tuple[str, ...], key: tuple[str | int, ...]) -> Any:
    """Return the entry of `value` (a number, or a table over the same axes) at `key`."""
    if isinstance(value, Mapping) and "per" in value:
        if tuple(value["per"]) != per:
            msg = f"the recipe tiles a parameter over {value['per']}, the space over {list(per)}"
            raise SpaceError(msg)
        return _get(value["values"], key)
    return value


def _same(left: Any, right: Any, holes: set[tuple[str | int, ...]], path: tuple[str | int, ...] = ()) -> bool:
    """Tell whether two recipes' data agree everywhere but at the holes."""
    if path in holes:
        return True
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_same(left[k], right[k], holes, (*path, k)) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(
            _same(a, b, holes, (*path, i)) for i, (a, b) in enumerate(zip(left, right, strict=True))
        )
    return bool(left == right)
