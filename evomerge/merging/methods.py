"""The table of methods: each names a composition of stages, with the paper's defaults.

Where a paper, its released code and mergekit differ, the paper is the default and the others are options by name:

- TIES: `scope` (paper: the model; mergekit: each tensor), `undecided` (paper: none; mergekit: positive; the paper's code:
  majority), `equals` (mergekit keeps an exact number), `reduce` (FusionBench and mergekit's dare_ties: sum);
- DARE, DELLA: `rescale` (papers: inverse; mergekit: l1);
- trimming methods and SCE: `rounding` (mergekit: down); SLERP: `chord` (mergekit: 0.9995); Model Stock: `bounds` (mergekit: none);
  SCE: `equal_below` (mergekit: 1e-6);
- PCB: `variant`; the default is the released pcb_ES.py, whose λ the paper's experiments search. The others are the paper's
  formulas, pcb-merging.py and pcb.py. Those two take the cross term on unclipped task vectors, as released;
- ISO-CTS splits a matrix's rank between common and specific directions as the authors' code does;
- SVD mutation and split SLERP follow CycleQD's and M2N2's released code (`angle: part` is M2N2's paper).

Differences that have no option:

- weights that cancel (their sum is zero up to float32's rounding) give the base where a sum divides, and equal shares in
  nuslerp, multislerp and karcher; mergekit divides by the sum in linear, and takes 0.5 below 1e-6 in nuslerp;
- a curve over depth (`per: [depth/N]`) gives the final norm and the head the last block's value, and embeddings the first
  block's; gradients of mergekit 0.1.5 give norm and head their first value too;
- Localize-and-Stitch's masks are the paper's dataless ones, the largest elements; those that it trains are not there;
- RegMean++'s partial merges are at its paper's `alpha` and equal weights, whatever the last solve has, so that a search can share them;
- CART's, WUDI's and ACE's matrices are all of the model's, embeddings and head included;
- DOGE's matrices are all of the model's but embeddings, heads included;
- Concrete's mask is drawn while it is learnt; a merge has its expected value, where the released evaluation draws again;
- OPCM projects every matrix, embeddings and head included; the authors' code only linear layers.

tests/test_mergekit.py compares with mergekit 0.1.5 and lists the differences from it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evomerge.errors import RecipeError, nearest
from evomerge.merging.parameters import Parameter
from evomerge.merging.stages import STAGES
from evomerge.plugins import Table
from evomerge.recipe import Merge
from evomerge.recipe.form import KeyPath

Weights = Mapping[str, float]
Reach = Callable[[Weights], Mapping[str, Any] | None]

REDUCE = Parameter.word(
    "`sum`: ΣP∘D; `solve`: ΣP∘D / ΣP, 0 where the weights cancel (for signs, the disjoint mean); `max`: the largest |P∘D|",
    ("sum", "solve", "max"),
)


def _nowhere(weights: Weights) -> None:
    return None


@dataclass(frozen=True)
class Method:
    """A named composition of stages. Its parameters are its stages' parameters, with this method's defaults."""

    name: str
    about: str
    stages: tuple[str, ...]
    reduce: str = "sum"
    origin: str = "base"
    defaults: Mapping[str, float | str] | None = None
    reach: Reach = _nowhere
    """(weights by input) → parameters for which the merge is exactly base + Σ weight·(input - base), or None."""

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """Every parameter of the method by name, with this method's default."""
        parameters = {name: spec for stage in self.stages for name, spec in STAGES[stage].parameters.items()}
        parameters["reduce"] = REDUCE.with_default(self.reduce)
        for name, default in (self.defaults or {}).items():
            parameters[name] = parameters[name].with_default(default)
        return parameters

    @property
    def inputs(self) -> int | None:
        """Number of inputs, for a method that takes a fixed number of them."""
        return next((STAGES[stage].arity[1] for stage in self.stages if STAGES[stage].arity[1]), None)


def _affine(weights: Weights) -> Mapping[str, Any]:
    return {"weight": weights, "lambda": 1.0, "reduce": "sum"}


def _average(weights: Weights) -> Mapping[str, Any] | None:
    return {"weight": weights, "reduce": "solve"} if abs(sum(weights.values()) - 1.0) < 1e-9 else None


def _is_one_input(weights: Weights) -> bool:
    return max(weights.values()) == 1.0 and sum(map(abs, weights.values())) == 1.0


def _slerp_ends(weights: Weights) -> Mapping[str, Any] | None:
    return {"t": list(weights.values())[1], "reduce": "sum"} if len(weights) == 2 and _is_one_input(weights) else None


def _alone(weights: Weights) -> Mapping[str, Any] | None:
    """Return TIES' parameters for the base or one input alone, exact without trimming; a mean is not, where signs conflict."""
    exact = _is_one_input(weights) or not any(weights.values())
    return {"weight": weights, "density": 1.0, "lambda": 1.0} if exact else None


def _also(reach: Reach, name: str, value: float) -> Reach:
    """Return `reach` with one more parameter."""
    return lambda weights: (reached := reach(weights)) and {**reached, name: value}


_REACH: Mapping[str, Reach] = {
    "linear": _average,
    "task_arithmetic": _affine,
    "lines": lambda weights: {"weight": weights, "alpha": 1.0, "beta": 0.0, "reduce": "sum"},
    "slerp": _slerp_ends,
    "split_slerp": _also(_slerp_ends, "split", 1.0),
    "ties": _alone,
    "dare_linear": _also(_affine, "drop", 0.0),
    "dare_ties": _also(_alone, "drop", 0.0),
    "svd_mutate": lambda weights: {"rate": 0.0, "reduce": "sum"} if list(weights.values()) == [1.0, 0.0] else None,
}

_COMPOSITIONS: Mapping[str, tuple[str, Mapping[str, float | str]]] = {
    "linear": ("weight → solve", {}),
    "mwa": ("metric → solve", {}),
    "fisher": ("weight → fisher → solve", {}),
    "regmean": ("regmean → sum", {}),
    "regmean_plus": ("regmean → sum", {"alpha": 0.95, "grams": "merged"}),
    "task_arithmetic": ("weight → sum → scale", {"lambda": 0.3}),
    "lines": ("weight → sum → lines", {}),
    "slerp": ("zero → slerp → sum", {}),
    "split_slerp": ("zero → split_slerp → sum", {}),
    "nuslerp": ("nuslerp → sum", {}),
    "multislerp": ("multislerp → sum", {}),
    "karcher": ("zero → karcher → sum", {}),
    "model_stock": ("stock → sum", {}),
    "ties": ("trim → elect → solve → scale", {}),
    "dare_linear": ("dare → weight → sum → scale", {}),
    "dare_ties": ("dare → trim → elect → solve → scale", {"density": 1.0}),
    "della": ("della → elect → solve → scale", {"lambda": 1.1}),
    "della_linear": ("della → weight → sum → scale", {}),
    "breadcrumbs": ("breadcrumbs → weight → sum → scale", {"lambda": 0.3}),
    "breadcrumbs_ties": ("breadcrumbs → elect → solve → scale", {}),
    "sce": ("select → energy → elect → solve", {"undecided": "positive"}),
    "pcb": ("clip → balance → multiply → solve → scale", {"lambda": 1.2, "clip": 0.01}),
    "consensus": ("weight → sum → consensus → scale", {"lambda": 0.3}),
    "consensus_ties": ("trim → elect → sum → consensus → scale", {"lambda": 0.3}),
    "tsv": ("decorrelate → weight → sum → scale", {}),
    "iso_c": ("isotropise → sum → scale", {}),
    "iso_cts": ("isotropise → sum → scale", {"common": 0.8}),
    "cart": ("centre → sum", {}),
    "wudi": ("wudi → sum → scale", {}),
    "ace": ("ace → sum → scale", {}),
    "doge": ("doge → keep → unit → sum → scale", {}),
    "concrete": ("concrete → weight → sum → scale", {"lambda": 0.3}),
    "localize_stitch": ("trim → stitch → solve", {"density": 0.05}),
    "aim": ("weight → sum → scale → aim", {}),
    "opcm": ("project → sum → restore_norm", {}),
    "svd_mutate": ("zero → svd_mutate → sum", {}),
    "layer_swap": ("zero → swap → sum", {}),
    "nearswap": ("near → sum", {}),
}
"""By name: the stages with the reduction between them, after `zero` where raw weights are merged; and defaults."""

_ABOUT = {
    "linear": "weighted average: Σwθ / Σw, the base where the weights cancel (model soups, arXiv 2203.05482)",
    "mwa": "average of checkpoints weighted by a power of their metric (arXiv 2504.18580)",
    "task_arithmetic": "base + λ Σwτ (arXiv 2212.04089); a negative λ forgets",
    "fisher": "average weighted by each expert's Fisher information, element by element: ΣwF̂θ / ΣwF̂ (arXiv 2111.09832)",
    "regmean": "the matrices whose outputs are nearest to the experts' on their own data; means for other tensors (RegMean, arXiv 2212.09849)",
    "regmean_plus": "RegMean block by block, each on what the merged blocks before it give (RegMean++, arXiv 2508.03121)",
    "lines": "task arithmetic, scaled linearly with depth (LiNeS, arXiv 2410.17146)",
    "slerp": "along the arc between two models, tensor by tensor, on raw weights (Shoemake 1985)",
    "split_slerp": (
        "slerp at t before a split point of the flattened parameters, at 1 - t from there on (M2N2, arXiv 2508.16204); "
        "`split` 1 or 0 is slerp at t or 1 - t everywhere"
    ),
    "nuslerp": "along the arc between two task vectors, at the second's share of the weights (mergekit)",
    "multislerp": "weighted mean direction of the task vectors at their mean length (mergekit)",
    "karcher": "Karcher mean of the models' directions, tensor by tensor, on raw weights (Karcher 1977)",
    "model_stock": "between the base and the mean of the inputs, by the angles between them (Model Stock, arXiv 2403.19522)",
    "ties": "trim, elect signs, disjoint mean (arXiv 2306.01708)",
    "dare_linear": "drop and rescale, then task arithmetic (arXiv 2311.03099)",
    "dare_ties": "drop and rescale, optionally trim, elect signs, disjoint mean (arXiv 2311.03099)",
    "della": "drop by rank and rescale, elect signs, disjoint mean (arXiv 2406.11617)",
    "della_linear": "drop by rank and rescale, then task arithmetic (arXiv 2406.11617)",
    "breadcrumbs": "drop the largest and the small, then task arithmetic (arXiv 2312.06795)",
    "breadcrumbs_ties": "drop the largest and the small, elect signs, disjoint mean (arXiv 2312.06795)",
    "sce": "select by variance, weigh by energy, erase minority signs (arXiv 2408.07990)",
    "pcb": "clip outliers, balance competing parameters, drop and rescale (PCB-Merging, arXiv 2410.02396)",
    "consensus": "task arithmetic without the elements that fewer than two tasks need (arXiv 2405.07813)",
    "consensus_ties": "TIES' disjoint sum without the elements that fewer than two tasks need (arXiv 2405.07813)",
    "tsv": "each input's first singular vectors, made orthogonal to the others' (TSV-Merge, arXiv 2412.00081)",
    "iso_c": "the summed task vector with equal singular values (arXiv 2502.04959)",
    "iso_cts": "equal singular values over common and task-specific directions (arXiv 2502.04959)",
    "cart": "the mean, and the first singular directions of what each input's matrices are away from it (CART, arXiv 2412.12153)",
    "wudi": "the matrices that disturb least what each input does, judged by the task vectors alone (WUDI-Merging, arXiv 2503.08099)",
    "ace": "the matrices nearest to all inputs' by covariances read from the task vectors (ACE-Merging, arXiv 2603.02945, as released)",
    "doge": (
        "each matrix's task vectors at one norm, after one learnt change Δ by which they disturb each other less, trimmed: λ Σ η/|τ|·(τ + Δ); "
        "other tensors stay the base (DOGE, adaptive projective gradient descent, arXiv 2501.01230)"
    ),
    "concrete": "task arithmetic with one mask of all task vectors, learnt without labels: λ Σ m/mean(m)·τ (Concrete TA, arXiv 2312.06173)",
    "localize_stitch": "the largest elements of each task vector, the mean where several have one (dataless Localize-and-Stitch, arXiv 2408.13656)",
    "aim": "task arithmetic, with smaller changes where the base's inputs are large (AIM, arXiv 2502.02421)",
    "opcm": "one input after the other, each projected away from the merge so far (OPCM, arXiv 2501.09522)",
    "svd_mutate": (
        "the first input, mutated at random along the singular directions of the second's task vector (CycleQD, "
        "arXiv 2410.14735, as released)"
    ),
    "layer_swap": "the first input's blocks, the second's at the bottom and the top (Layer Swapping, arXiv 2410.01335)",
    "nearswap": "the base, moved towards the input by at most t in each element (mergekit)",
}


def _built_in(name: str) -> Method:
    composition, defaults = _COMPOSITIONS[name]
    words = composition.split(" → ")
    (reduce,) = (word for word in words if word in REDUCE.choices)
    stages = tuple(word for word in words if word not in ("zero", reduce))
    origin = "zero" if words[0] == "zero" else "base"
    return Method(name, _ABOUT[name], stages, reduce, origin, defaults, _REACH.get(name, _nowhere))


METHODS: Mapping[str, Method] = Table(
    "evomerge.methods",
    {name: _built_in(name) for name in _COMPOSITIONS},
    "an evomerge.merging.Method",
    lambda entry: isinstance(entry, Method),
)


def spell_out(merge: Merge) -> dict[str, Any]:
    """Return a merge's stages with every parameter written: origin, reduce, and a list `steps` of (stage, parameters).

    `paths` has for each step the key path of its parameters in the merge's JSON data. Raises `RecipeError` for unknown
    methods, stages or parameters, and for values out of range.
    """
    if merge.method is not None:
        if merge.method not in METHODS:
            raise RecipeError(f"unknown method `{merge.method}`; {nearest(merge.method, METHODS)}")
        method = METHODS[merge.method]
        values = _complete(f"method `{method.name}`", method.parameters, merge.parameters)
        steps = [(name, {key: values[key] for key in STAGES[name].parameters}) for name in method.stages]
        _check_inputs(steps, merge)
        paths: list[KeyPath] = [("parameters",)] * len(steps)
        return {"origin": method.origin, "reduce": values["reduce"], "steps": steps, "paths": paths}
    stages = merge.stages
    assert stages is not None  # Merge holds exactly one of method and stages
    steps, paths = [], []
    for role in ("edit", "weigh", "post"):
        names = {key for key, stage in STAGES.items() if stage.role == role}
        for number, entry in enumerate(getattr(stages, role)):
            name, parameters = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
            if name == "none":
                continue
            if name not in names:
                raise RecipeError(f"unknown {role} stage `{name}`; {nearest(name, names)}")
            steps.append((name, _complete(f"stage `{name}`", STAGES[name].parameters, parameters)))
            paths.append(("stages", role, number, name))
    _check_inputs(steps, merge)
    return {"origin": stages.origin, "reduce": stages.reduce, "steps": steps, "paths": paths}


def _check_inputs(steps: Sequence[tuple[str, Mapping[str, Any]]], merge: Merge) -> None:
    joined = None
    for name, _ in steps:
        stage, inputs = STAGES[name], len(merge.inputs)
        fewest, most = stage.arity
        if inputs < fewest or (most is not None and inputs > most):
            wanted = f"exactly {most}" if most is not None else f"at least {fewest}"
            msg = f"`{merge.method or name}` takes {wanted} inputs, got {inputs}: {', '.join(merge.labels)}"
            raise RecipeError(msg)
        if joined is not None and stage.role != "post":
            msg = f"stage `{name}` comes after `{joined}`, which joins the inputs into one; put it before, or leave it out"
            raise RecipeError(msg)
        joined = name if stage.joins else joined


def _complete(where: str, specs: Mapping[str, Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in given.items():
        if name not in specs:
            raise RecipeError(f"{where}: unknown parameter `{name}`; {nearest(name, specs)}")
        try:
            specs[name].check(name, value)
        except RecipeError as error:
            raise RecipeError(f"{where}: {error}") from None
    return {name: given.get(name, spec.default) for name, spec in specs.items()}
