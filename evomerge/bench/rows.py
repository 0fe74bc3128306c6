"""Rows: the models that a bench compares: references, each method with its paper's defaults, and each with its coefficients searched."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.errors import EvomergeError
from evomerge.merging import METHODS, Method, Parameter, check, needs
from evomerge.recipe import Recipe, base, expert, merge
from evomerge.space import SearchSpace

Kind = Literal["reference", "default", "searched"]
AVERAGE = "average"

_COEFFICIENTS: Mapping[str, tuple[str, ...]] = {
    "linear": ("weight",),
    "mwa": ("power",),
    "fisher": ("weight",),
    "regmean": ("alpha",),
    "regmean_plus": ("alpha",),
    "lines": ("alpha", "beta"),
    "split_slerp": ("split", "t"),
    "nuslerp": ("weight",),
    "multislerp": ("weight",),
    "karcher": ("weight",),
    "ties": ("density", "lambda"),
    "dare_linear": ("drop", "lambda"),
    "dare_ties": ("drop", "lambda"),
    "della": ("density", "lambda"),
    "della_linear": ("density", "lambda"),
    "breadcrumbs": ("density", "lambda"),
    "breadcrumbs_ties": ("density", "lambda"),
    "sce": ("select",),
    "pcb": ("ratio", "lambda"),
    "consensus": ("threshold", "lambda"),
    "consensus_ties": ("threshold", "lambda"),
    "iso_cts": ("common", "lambda"),
    "cart": ("rank", "strength"),
    "localize_stitch": ("density",),
    "layer_swap": ("bottom", "top"),
}
"""By method: what its paper tunes, at most two numbers, or a weight for each expert. Others: `lambda`, or all numbers without one."""
_NOT_FREE = {"mwa": "its weights are each expert's metric, which has to be measured"}
"""Methods that need data of their own and whose stages do not say so."""
_NO_MERGE = ("svd_mutate",)
"""Methods that make variants of a merge for a population, at random; by themselves they are left out."""


@dataclass(frozen=True)
class Row:
    """One model of a bench, before it is scored."""

    name: str
    kind: Kind
    method: str | None = None
    """None for references."""
    recipe: Recipe | None = None
    """None for the result of a search."""
    space: Mapping[str, Any] | None = None
    """The search space, of a searched row."""
    reason: str | None = None
    """Why the pool or the method cannot have this row; None where it can."""


def statistics(method: Method) -> tuple[str, ...]:
    """Return the kinds of statistics that a method reads with its defaults."""
    return needs(merge(method.name, [f"e{i}" for i in range(method.inputs or 2)]))


def free(method: Method) -> bool:
    """Return whether a method reads nothing but weights."""
    return method.name not in (*_NOT_FREE, *_NO_MERGE) and not statistics(method)


def coefficients(method: Method) -> dict[str, Parameter]:
    """Return the parameters of a method that a bench searches: those that its paper tunes. Empty where it has no number."""
    ranged = {name: spec for name, spec in method.parameters.items() if spec.search is not None}
    names = _COEFFICIENTS.get(method.name, ("lambda",) if "lambda" in ranged else tuple(ranged))
    return {name: ranged[name] for name in names if name in ranged}


def space(method: Method) -> dict[str, Any]:
    """Return the search space over a method's coefficients, each one number, but `weight` one for each expert.

    The search begins at the method's defaults, where they are in the range.
    """
    holes = {}
    for name, spec in coefficients(method).items():
        assert spec.search is not None
        low, high = spec.search
        hole: dict[str, Any] = {"int" if spec.integer else "float": [low, high]}
        if isinstance(spec.default, int | float) and low <= spec.default <= high:
            hole["init"] = spec.default
        hole |= {"log": True} if spec.log else {}
        holes[name] = hole | ({"per": ["expert"]} if name == "weight" else {})
    return {"recipe": {"merge": {"method": method.name, "inputs": "experts", "parameters": holes}}}


def plan(pool: Pool, methods: tuple[str, ...], *, searched: bool) -> list[Row]:
    """Return the rows of a bench over `pool`: references first, then each of the `methods`, by default all that read no data.

    Nothing is merged, but every recipe is checked against the pool: what it cannot have is a row with the reason.
    """
    names = list(pool.experts)
    average = merge("linear", names)
    rows = [
        Row("base", "reference", recipe=base()),
        *(Row(f"expert {name}", "reference", recipe=expert(name)) for name in names),
        Row(AVERAGE, "reference", recipe=average),
    ]
    for name in methods or [name for name, method in METHODS.items() if free(method)]:
        rows += [row for row in _of_method(METHODS[name], pool, searched=searched) if row.recipe != average]
    return rows


def _of_method(method: Method, pool: Pool, *, searched: bool) -> Iterator[Row]:
    recipe, reason = None, _NOT_FREE.get(method.name)
    try:
        if reason is None:
            recipe = merge(method.name, list(pool.experts))
            check(recipe)
            Builder(pool).build_model(recipe)  # reads no tensor
    except EvomergeError as error:
        recipe, reason = None, str(error)
    yield Row(method.name, "default", method.name, recipe, reason=reason)
    if not searched:
        return
    holes, name = space(method), f"{method.name}, searched"
    if reason is None and not coefficients(method):
        reason = "it has no number to search"
    if reason is None:
        layout = pool.layout
        try:
            SearchSpace.parse(
                holes,
                experts=[*pool.experts],
                kinds=layout.kinds,
                towers=layout.towers,
                tensors=[*pool.merged],
                blocks=layout.blocks,
            )
        except EvomergeError as error:
            reason = str(error)
    yield Row(name, "searched", method.name, space=holes, reason=reason)
