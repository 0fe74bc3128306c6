"""The table of methods: each names a composition of stages, with the paper's defaults.

Where a paper, its released code and mergekit differ, the paper is the default and the others are options by name.
"""

from collections.abc import Callable, Mapping
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
    inputs: int | None = None
    reach: Callable[[Weights], Mapping[str, float | Weights] | None] = _unreachable
    """(weights by input) → parameters that give exactly base + Σ weight·(input − base), or None if there are none."""

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """Every parameter of the method by name, with this method's default."""
        found = {name: spec for stage in self.stages for name, spec in STAGES[stage].parameters.items()}
        found["reduce"] = REDUCE.with_default(self.reduce)
        for name, default in (self.defaults or {}).items():
            found[name] = found[name].with_default(default)
        return found


def _affine(weights: Weights) -> Mapping[str, float | Weights]:
    return {"weight": weights, "lambda": 1.0}


def _average(weights: Weights) -> Mapping[str, float | Weights] | None:
    return {"weight": weights} if abs(sum(weights.values()) - 1.0) < 1e-9 else None  # noqa: PLR2004


def _one_input(weights: Weights) -> bool:
    return sorted(weights.values())[-1] == 1.0 and sum(map(abs, weights.values())) == 1.0


def _slerp_ends(weights: Weights) -> Mapping[str, float | Weights] | None:
    return {"t": list(weights.values())[1]} if len(weights) == 2 and _one_input(weights) else None  # noqa: PLR2004


def _alone(weights: Weights) -> Mapping[str, float | Weights] | None:
    """TIES and its kin: without trimming, the base and each input alone are exact; a mean is not, where signs conflict."""
    if _one_input(weights) or not any(weights.values()):
        return {"weight": weights, "density": 1.0, "lambda": 1.0}
    return None


def _undropped(reached: Mapping[str, float | Weights] | None) -> Mapping[str, float | Weights] | None:
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
            inputs=2,
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
        where = f"method `{method.name}`"
        if method.inputs is not None and len(merge.inputs) != method.inputs:
            msg = f"{where} takes exactly {method.inputs} inputs, got {len(merge.inputs)}: {', '.join(merge.labels)}"
            raise RecipeError(msg)
        values = _complete(where, method.parameters, merge.parameters)
        steps = [(name, {key: values[key] for key in STAGES[name].parameters}) for name in method.stages]
        return {"origin": method.origin, "reduce": values["reduce"], "steps": steps}
    stages = merge.stages
    assert stages is not None  # Merge holds exactly one of method and stages  # noqa: S101
    steps = []
    for role in ("edit", "weigh", "post"):
        for entry in getattr(stages, role):
            name, given = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
            known = {key for key, stage in STAGES.items() if stage.role == role}
            if name == "none":
                continue
            if name not in known or (not isinstance(entry, str) and len(entry) != 1):
                msg = f"unknown {role} stage `{name}`; {nearest(str(name), known)}"
                raise RecipeError(msg)
            steps.append((name, _complete(f"stage `{name}`", STAGES[name].parameters, given)))
    return {"origin": stages.origin, "reduce": stages.reduce, "steps": steps}


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
