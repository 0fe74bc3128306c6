"""mergekit, called through its public functions: what the benchmarks here share, and nothing that they measure.

`order` says a recipe in mergekit's terms. Where the two define a method otherwise, it gives the parameters under which they
come closest; what then remains different is listed, and shown, in tests/test_mergekit.py.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evomerge.merging import METHODS
from evomerge.recipe import Recipe

REQUIREMENT = "mergekit>=0.1.5,<0.2"

BY_INPUT: dict[str, tuple[str, ...]] = {  # method that both have → parameters of ours that mergekit has by input
    "linear": ("weight",),
    "task_arithmetic": ("weight",),
    "ties": ("weight", "density"),
    "dare_linear": ("weight", "drop"),
    "dare_ties": ("weight", "drop"),
    "della": ("weight", "density", "epsilon"),
    "della_linear": ("weight", "density", "epsilon"),
    "breadcrumbs": ("weight", "density", "gamma"),
    "breadcrumbs_ties": ("weight", "density", "gamma"),
    "nuslerp": ("weight",),
    "multislerp": ("weight",),
    "karcher": (),  # its weights are equal
    "model_stock": (),
    "slerp": (),
    "sce": (),
}
SHARED = {"lambda": "lambda", "t": "t", "select": "select_topk"}  # our parameter of a whole merge → mergekit's
BASELESS = ("linear", "karcher")


@dataclass(frozen=True)
class Order:
    """What mergekit is asked to do, of models by their name in the pool."""

    method: str
    base: str | None
    models: Mapping[str, Mapping[str, float]]
    """The inputs in order, each with its own parameters."""
    shared: Mapping[str, float | bool]


def order(recipe: Recipe) -> Order:
    """Return a recipe in mergekit's words: a merge of experts by one of the methods above, tables only over `expert`."""
    given: Any = recipe.data
    method, parameters = given["merge"]["method"], given["merge"].get("parameters", {})
    known, experts = METHODS[method].parameters, recipe.experts

    def number(name: str, expert: str = "") -> Any:
        value = parameters.get(name, known[name].default)
        return value["values"][expert] if isinstance(value, Mapping) else value

    def own(expert: str) -> dict[str, float]:
        numbers = {name: number(name, expert) for name in BY_INPUT[method]}
        if "drop" in numbers:
            numbers["density"] = 1 - numbers.pop("drop")
        return numbers

    shared: dict[str, float | bool] = {theirs: number(ours) for ours, theirs in SHARED.items() if ours in known}
    if "weight" in BY_INPUT[method] and method != "nuslerp":
        name = "normalize_weights" if method == "multislerp" else "normalize"
        shared[name] = method == "multislerp" or number("reduce") == "solve"
    base = experts[0] if method == "slerp" else None if method in BASELESS else "base"
    return Order(method, base, {expert: own(expert) for expert in experts}, shared)


def merge_in_memory(what: Order, pool: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the merge of state dicts, in the arithmetic that mergekit chooses for their dtype."""
    from mergekit.merge_methods import merge_state_dicts

    names = dict.fromkeys([what.base or next(iter(what.models)), *what.models])
    own = {
        key: {name: numbers[key] for name, numbers in what.models.items()} for key in next(iter(what.models.values()))
    }
    with torch.no_grad():
        merged: dict[str, torch.Tensor] = merge_state_dicts(
            {name: pool[name] for name in names}, what.method, parameters={**what.shared, **own}, base=what.base
        )
    return merged


def configuration(what: Order, pool: Mapping[str, Path], dtype: str) -> dict[str, Any]:
    """Return the YAML that `mergekit-yaml` takes, of checkpoints in folders."""
    config = {
        "merge_method": what.method,
        "dtype": dtype,
        "parameters": dict(what.shared),
        "models": [{"model": str(pool[name]), "parameters": dict(own)} for name, own in what.models.items()],
    }
    return config if what.base is None else {**config, "base_model": str(pool[what.base])}


def merge_to_folder(what: Order, pool: Mapping[str, Path], dtype: str, folder: Path, **options: Any) -> None:
    """Do what `mergekit-yaml` does with checkpoints in folders, quietly and without a model card, in `dtype`."""
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
    from mergekit.plan import MergePlanner

    logging.getLogger().setLevel(logging.ERROR)
    plan_tensor = MergePlanner.plan_tensor

    def plan_present(self: Any, weight: Any, weights_in: Any, models: Any, cfg_reader: Any) -> None:
        # mergekit 0.1.5 adds a list to a tuple for each optional tensor that has aliases (BERT's `position_ids`),
        # and so cannot merge any BERT. What it meant to do: leave out the tensor where no input has it.
        stored = [LoaderCache().get(model).index.tensor_paths for model in models]
        names = [(one.name, *(one.aliases or ())) for one in weights_in]
        if not weight.optional or any(name in stored[i] for i, some in enumerate(names) for name in some):
            weight = weight.model_copy(update={"optional": False})
            plan_tensor(self, weight=weight, weights_in=weights_in, models=models, cfg_reader=cfg_reader)

    MergePlanner.plan_tensor = plan_present
    try:
        run_merge(
            MergeConfiguration.model_validate(configuration(what, pool, dtype)),
            str(folder),
            MergeOptions(quiet=True, write_model_card=False, **options),
        )
    finally:
        MergePlanner.plan_tensor = plan_tensor
