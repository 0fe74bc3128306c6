"""The table of methods: each names a composition of stages, with the paper's defaults.

Where a paper, its released code and mergekit differ, the paper is the default and the others are options by name.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evomerge.errors import RecipeError, nearest
from evomerge.merging.parameters import Parameter
from evomerge.merging.stages import STAGES
from evomerge.recipe import Merge

Weights = Mapping[str, float]

REDUCE = Parameter(
    "`sum`: ΣP∘D; `solve`: ΣP∘D / ΣP, and 0 where ΣP = 0 (for signs, the disjoint mean); `max`: the largest |P∘D|",
    "sum",
    choices=("sum", "solve", "max"),
    per_input=False,
)


def _unreachable(weights: Weights) -> Mapping[str, Any] | None:
    return None


@dataclass(frozen=True)
class Method:
    """A composition of stages under a name. Its parameters are its stages' parameters, with the defaults given here."""

    name: str
    about: str
    stages: tuple[str, ...]
    reduce: str = "sum"
    origin: str = "base"
    defaults: Mapping[str, float | str] | None = None
    reach: Callable[[Weights], Mapping[str, Any] | None] = _unreachable
    """(weights by input) → parameters that give exactly base + Σ weight·(input - base), or None if there are none."""

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """Every parameter of the method by name, with this method's default."""
        found = {name: spec for stage in self.stages for name, spec in STAGES[stage].parameters.items()}
        found["reduce"] = REDUCE.with_default(self.reduce)
        for name, default in (self.defaults or {}).items():
            found[name] = found[name].with_default(default)
        return found


def _affine(weights: Weights) -> Mapping[str, Any]:
    return {"weight": weights, "lambda": 1.0, "reduce": "sum"}


def _average(weights: Weights) -> Mapping[str, Any] | None:
    if abs(sum(weights.values()) - 1.0) < 1e-9:
        return {"weight": weights, "reduce": "solve"}
    return None


def _one_input(weights: Weights) -> bool:
    return max(weights.values()) == 1.0 and sum(map(abs, weights.values())) == 1.0


def _slerp_ends(weights: Weights) -> Mapping[str, Any] | None:
    return {"t": list(weights.values())[1], "reduce": "sum"} if len(weights) == 2 and _one_input(weights) else None


def _alone(weights: Weights) -> Mapping[str, Any] | None:
    """TIES and its kin: without trimming, the base and each input alone are exact; a mean is not, where signs conflict."""
    if _one_input(weights) or not any(weights.values()):
        return {"weight": weights, "density": 1.0, "lambda": 1.0}
    return None


def _undropped(reached: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return None if reached is None else {**reached, "drop": 0.0}


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "linear",
            "weighted average: Σwθ / Σw, and the base where Σw = 0 (model soups, arXiv 2203.05482)",
            ("weight",),
            reduce="solve",
            reach=_average,
        ),
        Method(
            "task_arithmetic",
            "base + λ Σwτ (arXiv 2212.04089)",
            ("weight", "scale"),
            defaults={"lambda": 0.3},
            reach=_affine,
        ),
        Method(
            "slerp",
            "along the arc between two models, tensor by tensor, on raw weights",
            ("slerp",),
            origin="zero",
            reach=_slerp_ends,
        ),
        Method(
            "ties",
            "trim, elect signs, disjoint mean (arXiv 2306.01708)",
            ("trim", "elect", "scale"),
            reduce="solve",
            reach=_alone,
        ),
        Method(
            "dare_linear",
            "drop and rescale, then task arithmetic (arXiv 2311.03099)",
            ("drop", "weight", "scale"),
            reach=lambda weights: _undropped(_affine(weights)),
        ),
        Method(
            "dare_ties",
            "drop and rescale, optionally trim, elect signs, disjoint mean (arXiv 2311.03099)",
            ("drop", "trim", "elect", "scale"),
            reduce="solve",
            defaults={"density": 1.0},
            reach=lambda weights: _undropped(_alone(weights)),
        ),
    )
}


def spell_out(merge: Merge) -> dict[str, Any]:
    """Return a merge's stages with every parameter written: origin, reduce, and a list of (stage, parameters).

    Raises `RecipeError` for unknown methods, stages or parameters, and for values out of range.
    """
    if merge.method is not None:
        if merge.method not in METHODS:
            msg = f"unknown method `{merge.method}`; {nearest(merge.method, METHODS)}"
            raise RecipeError(msg)
        method = METHODS[merge.method]
        values = _complete(f"method `{method.name}`", method.parameters, merge.parameters)
        steps = [(name, {key: values[key] for key in STAGES[name].parameters}) for name in method.stages]
        _check_inputs(method.stages, merge)
        return {"origin": method.origin, "reduce": values["reduce"], "steps": steps}
    stages = merge.stages
    assert stages is not None  # Merge holds exactly one of method and stages
    steps = []
    for role in ("edit", "weigh", "post"):
        for entry in getattr(stages, role):
            name, given = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
            known = {key for key, stage in STAGES.items() if stage.role == role}
            if name == "none":
                continue
            if name not in known:
                msg = f"unknown {role} stage `{name}`; {nearest(name, known)}"
                raise RecipeError(msg)
            steps.append((name, _complete(f"stage `{name}`", STAGES[name].parameters, given)))
    _check_inputs([name for name, _ in steps], merge)
    return {"origin": stages.origin, "reduce": stages.reduce, "steps": steps}


def _check_inputs(stages: Iterable[str], merge: Merge) -> None:
    for name in stages:
        if STAGES[name].inputs not in (None, len(merge.inputs)):
            msg = (
                f"`{merge.method or name}` takes exactly {STAGES[name].inputs} inputs, "
                f"got {len(merge.inputs)}: {', '.join(merge.labels)}"
            )
            raise RecipeError(msg)


def _complete(where: str, known: Mapping[str, Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in given.items():
        if name not in known:
            msg = f"{where}: unknown parameter `{name}`; {nearest(name, known)}"
            raise RecipeError(msg)
        try:
            known[name].check(name, value)
        except RecipeError as error:
            msg = f"{where}: {error}"
            raise RecipeError(msg) from None
    return {name: given.get(name, spec.default) for name, spec in known.items()}
