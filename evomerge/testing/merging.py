"""Conformance suites of stages and methods, and merging in memory."""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from evomerge.checkpoints.header import TensorInfo
from evomerge.checkpoints.layout import Layout
from evomerge.merging import METHODS, STAGES, Inputs, MergeGradient, Pipeline, Stage, Statistics, Store, Tables, sloped
from evomerge.merging.pipeline import CHUNK
from evomerge.merging.site import Piece, Site
from evomerge.placement import Placement
from evomerge.recipe import MergeNode, Recipe, merge
from evomerge.recipe.form import KeyPath
from evomerge.statistics import STATISTICS


class InMemory(Inputs):
    """A base and inputs held in memory, as a merge reads them. Not to be confused with a `Pool`, which is on disk."""

    def __init__(
        self,
        base: Mapping[str, torch.Tensor],
        inputs: Sequence[Mapping[str, torch.Tensor]],
        placement: Placement | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        """Hold the tensors of a base and of each input, by name, to be merged where `placement` says; by default without statistics."""
        models = (base, *inputs)
        layout = Layout({name: TensorInfo(tuple(t.shape), t.dtype) for name, t in base.items()})
        ids = [hashlib.sha256(save(dict(model))).hexdigest() for model in models]
        super().__init__(
            tuple(base),
            lambda: ids,
            lambda name: base[name].numel(),
            layout.place,
            lambda name: [model[name] for model in models],
            placement=placement or Placement(),
            statistics=statistics or Statistics(),
            fetch=None if placement is None else lambda name: placement.send([model[name] for model in models]),
        )


def merge_tensors(
    recipe: Recipe,
    base: Mapping[str, torch.Tensor],
    inputs: Sequence[Mapping[str, torch.Tensor]],
    dtype: torch.dtype | None = None,
    *,
    store: Store | None = None,
    compile: bool = False,  # noqa: A002  # torch's word
    once: bool = False,
    statistics: Statistics | None = None,
) -> dict[str, torch.Tensor]:
    """Return the merge `recipe` of tensors in memory, in `dtype`, else the base's; by default with `random_statistics`."""
    node = recipe.root
    assert isinstance(node, MergeNode), "a recipe of a merge"
    held = InMemory(base, inputs, statistics=statistics or random_statistics(node.merge.labels, base))
    pipeline = Pipeline(node.merge, held, store or Store(), compile=compile, once=once)
    merged = {name: torch.empty(tensor.shape, dtype=dtype or tensor.dtype) for name, tensor in base.items()}
    for name, out in merged.items():
        pipeline.write(name, out)
    return merged


def random_statistics(labels: Sequence[str], tensors: Mapping[str, torch.Tensor]) -> Statistics:
    """Return random statistics of every kind, of tensors like these; the same for an input of the same label, wherever it stands."""

    def one(kind: str, label: str, name: str) -> Tables:
        key = hashlib.sha256(f"{kind} {label} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:4], "little"))
        return STATISTICS[kind].sample(tuple(tensors[name].shape), generator)

    return Statistics(
        lambda kind: [f"{kind} of {label}" for label in labels],
        lambda kind, name: [one(kind, label, name) for label in labels],
    )


def tiny_tensors(seed: int, like: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Return the random fp32 tensors of a model of four blocks; near `like`, if that is given.

    There are zeros of both signs, a tensor longer than a chunk of the pipeline, and tensors of no dimension, of one element
    and of none.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "embed.weight": (CHUNK // 8 + 3, 9),
        "final_norm.weight": (7,),
        "head.weight": (3, 7),
    }
    for block in range(4):
        shapes |= {
            f"layers.{block}.attn.weight": (7, 7),
            f"layers.{block}.attn.temperature": (),
            f"layers.{block}.mlp.weight": (9, 7),
            f"layers.{block}.mlp.bias": (1,),
            f"layers.{block}.mlp.cache": (0, 7),
            f"layers.{block}.norm.weight": (7,),
        }
    tensors = {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=generator)
        if like is not None:
            tensor = torch.where(like[name] == 0, 0.0, like[name] + 0.1 * tensor)
        elif tensor.dim() == 2:  # matrices have zeros of both signs in their first row
            tensor[:1] = torch.tensor([0.0, -0.0] * tensor.shape[1])[: tensor.shape[1]]
        tensors[name] = tensor
    return tensors


def inputs_of(method: str) -> int:
    """Return how many inputs to merge by a method: as many as it takes, else three."""
    return METHODS[method].inputs or 3


class StageSuite:
    """Promises of every stage, as pytest tests. Subclass it and set `name`."""

    name = ""
    symmetric = True
    """Whether the inputs may be permuted."""

    def stage(self) -> Stage:
        """Return the stage."""
        return STAGES[self.name]

    def apply(self, stack: torch.Tensor, labels: Sequence[str]) -> list[torch.Tensor]:
        """Return the stage's result for task vectors `(K, n)`, with its default parameters: rows, or one Δ."""
        stage = self.stage()
        tensor = "layers.0.mlp.weight"
        recipe = Recipe.parse({"merge": {"inputs": list(labels), "stages": {stage.role: [self.name]}}})
        assert isinstance(recipe.root, MergeNode)
        base = {tensor: torch.zeros(stack.shape[1])}
        statistics = random_statistics(labels, base)
        inputs = InMemory(base, [{tensor: row} for row in stack], statistics=statistics)
        pipeline = Pipeline(recipe.root.merge, inputs, Store())
        site = Site(tensor, tuple(stack.shape[1:]), inputs.place(tensor).unnamed, tuple(labels), 0, statistics)
        words = {name: str(spec.default) for name, spec in stage.parameters.items() if spec.is_word}
        piece = Piece(list(stack.clone()), torch.tensor(-(2**31), dtype=torch.int32))
        rows = list(stack.clone())
        result = stage.apply(piece, rows[0] if stage.role == "post" else rows, pipeline.bound(0, site), words)
        assert torch.equal(torch.stack(piece.raw), stack), "a stage must not write into its arguments"
        assert torch.equal(torch.stack(rows), stack), "a stage must not write into its arguments"
        return [result] if stage.role == "post" else list(result)

    def stack(self, columns: int = 40) -> torch.Tensor:
        """Return task vectors, fp32 `(K, columns)`, as many as the stage takes."""
        generator = torch.Generator().manual_seed(columns)
        return torch.randn(self.stage().arity[1] or 3, columns, generator=generator)

    def labels(self) -> list[str]:
        """Return the names of the inputs of `stack`."""
        return [f"expert {i}" for i in range(len(self.stack()))]

    def test_parameters_are_described_and_searchable(self) -> None:
        """Each has a description, a valid default, and a valid range to search."""
        assert self.stage().about
        for name, spec in self.stage().parameters.items():
            assert spec.about
            spec.check(name, spec.default)
            if spec.search is not None:
                for bound in spec.search:
                    spec.check(name, bound)

    def test_result_has_the_shape_of_its_role(self) -> None:
        """An edit gives rows `(n,)`, a field rows or one number for each, a post stage `(n,)`; all in fp32 and finite."""
        for columns in (1, 2, 40):
            stack = self.stack(columns)
            found = self.apply(stack, self.labels())
            rows = 1 if self.stage().joins or self.stage().role == "post" else len(stack)
            shapes = {(columns,), ()} if self.stage().role == "weigh" else {(columns,)}
            assert len(found) == rows
            for row in found:
                assert tuple(row.shape) in shapes
                assert row.dtype == torch.float32
                assert torch.isfinite(row).all()

    def test_zeros_and_extremes_give_finite_numbers(self) -> None:
        """Task vectors of zeros, and numbers near the ends of fp32's range."""
        for scale in (0.0, 1e-38, 1e15):
            assert all(torch.isfinite(row).all() for row in self.apply(self.stack() * scale, self.labels()))

    def test_same_bytes_every_time(self) -> None:
        """Nothing depends on a global generator."""
        expected = torch.stack(self.apply(self.stack(), self.labels()))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            assert torch.equal(torch.stack(self.apply(self.stack(), self.labels())), expected)

    def test_inputs_may_be_permuted(self) -> None:
        """A permutation of the inputs and their labels permutes the results."""
        if not self.symmetric or self.stage().role == "post":
            return
        order = list(reversed(range(len(self.labels()))))
        expected = torch.stack(self.apply(self.stack(), self.labels()))
        found = torch.stack(self.apply(self.stack()[order], [self.labels()[i] for i in order]))
        assert torch.allclose(found, expected if self.stage().joins else expected[order], rtol=1e-5, atol=1e-7)


def _moved(recipe: Recipe, direction: Mapping[KeyPath, float], step: float) -> Recipe:
    """Return the recipe with `step` times the direction added to its numbers."""
    data: Any = copy.deepcopy(recipe.explicit)
    for path, share in direction.items():
        *outer, last = path
        inner = data
        for key in outer:
            inner = inner[key]
        inner[last] += step * share
    return Recipe.parse(data)


class MethodSuite:
    """Promises of every method, as pytest tests. Subclass it and set `name`."""

    name = ""
    symmetric = True
    """Whether the inputs may be permuted, up to fp32's rounding."""
    normalises = False
    """Whether equal inputs give that input, for any number of them."""

    def models(self) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
        """Return a base, and as many inputs near it as the method takes."""
        base = tiny_tensors(0)
        return base, [tiny_tensors(1 + i, base) for i in range(inputs_of(self.name))]

    def recipe(self, inputs: int, parameters: Mapping[str, Any] | None = None, seed: int = 0) -> Recipe:
        """Return the merge by this method."""
        return merge(self.name, self.labels(inputs), parameters, seed=seed)

    def labels(self, inputs: int) -> list[str]:
        """Return the names of the inputs."""
        return [f"expert{i}" for i in range(inputs)]

    def reached(self, weights: Sequence[float]) -> Recipe | None:
        """Return a recipe of the base plus these weights of the task vectors, if the method has one."""
        labels = self.labels(len(weights))
        parameters = METHODS[self.name].reach(dict(zip(labels, weights, strict=True)))
        if parameters is None:
            return None
        tables = {
            name: {"per": ["expert"], "values": value} if isinstance(value, Mapping) else value
            for name, value in parameters.items()
        }
        return self.recipe(len(weights), tables)

    def test_known_weights_give_the_base_bit_for_bit(self) -> None:
        """If the method can express the base, its merge is the base, zeros of either sign included."""
        base, inputs = self.models()
        recipe = self.reached([0.0] * len(inputs))
        if recipe is None:
            return
        for name, tensor in merge_tensors(recipe, base, inputs).items():
            assert tensor.numpy().tobytes() == base[name].numpy().tobytes(), name

    def test_known_weights_give_each_input_and_the_mean(self) -> None:
        """If the method can express one input or the mean, its merge is that, up to fp32's rounding."""
        base, inputs = self.models()
        count = len(inputs)
        wanted = [[float(i == k) for i in range(count)] for k in range(count)] + [[1.0 / count] * count]
        for weights in wanted:
            recipe = self.reached(weights)
            if recipe is None:
                continue
            for name, tensor in merge_tensors(recipe, base, inputs).items():
                mean = sum(w * model[name].double() for w, model in zip(weights, inputs, strict=True))
                assert isinstance(mean, torch.Tensor)
                assert torch.allclose(tensor.double(), mean, rtol=1e-6, atol=1e-6), name

    def test_equal_inputs_give_that_input(self) -> None:
        """A merge of copies is the copy, for methods that take a mean."""
        if not self.normalises:
            return
        base, inputs = self.models()
        found = merge_tensors(self.recipe(len(inputs)), base, [inputs[0]] * len(inputs))
        for name, tensor in found.items():
            assert torch.allclose(tensor, inputs[0][name], rtol=1e-6, atol=1e-6), name

    def test_slopes_are_those_of_finite_differences(self) -> None:
        """Along a random direction of all parameters that have slopes, where no mask, sign or threshold changes."""
        base, inputs = self.models()
        recipe = self.recipe(len(inputs), self._numbers(len(inputs)))
        assert isinstance(recipe.root, MergeNode)
        paths = [p for p in recipe.numbers if any(p[1 : 1 + len(q)] == q for q in sloped(recipe.root.merge))]
        if not paths:
            return
        rng = np.random.default_rng(7)
        direction = dict(zip(paths, rng.uniform(0.5, 1.0, len(paths)), strict=True))
        below, at, above = (merge_tensors(_moved(recipe, direction, step), base, inputs) for step in (-1e-3, 0.0, 1e-3))
        held = InMemory(base, inputs, statistics=random_statistics(recipe.root.merge.labels, base))
        gradients = MergeGradient(recipe.root.merge, Pipeline(recipe.root.merge, held, Store()))
        found = expected = size = 0.0
        for name, tensor in at.items():
            fixed = (above[name] - 2 * tensor + below[name]).abs() <= 2e-5
            gradient = torch.where(fixed, torch.from_numpy(rng.standard_normal(tensor.shape)).float(), 0.0)
            change = (above[name] - below[name]).double() / 2e-3
            expected += float((change * gradient).sum())
            size += float((change * gradient).square().sum())
            numbers = gradients.numbers(name, gradients.pull(name, gradient))
            found += sum(number * direction.get(("merge", *path), 0.0) for path, number in numbers)
        assert abs(found - expected) <= 1e-3 * size**0.5 + 1e-2  # fp32's rounding of the merged elements

    def _numbers(self, inputs: int) -> dict[str, Any]:
        """Return a valid number for each parameter that has some, another one for each input."""
        parameters: dict[str, Any] = {}
        for name, spec in METHODS[self.name].parameters.items():
            if spec.is_word or spec.integer:
                continue
            low, high = spec.search or (0.5, 2.0)
            middle = spec.default if isinstance(spec.default, float) and low < spec.default < high else (low + high) / 2
            if not spec.per_input:
                parameters[name] = middle
                continue
            values = {label: middle * (0.6 + 0.2 * i) for i, label in enumerate(self.labels(inputs))}
            parameters[name] = {"per": ["expert"], "values": values}
        return parameters

    def test_inputs_may_be_permuted(self) -> None:
        """The order of the inputs changes nothing, up to fp32's rounding."""
        if not self.symmetric:
            return
        base, inputs = self.models()
        weights = [0.3 + 0.2 * i for i in range(len(inputs))]
        table = dict(zip(self.labels(len(inputs)), weights, strict=True))
        weighed = "weight" in METHODS[self.name].parameters
        parameters = {"weight": {"per": ["expert"], "values": table}} if weighed else {}
        recipe = self.recipe(len(inputs), parameters)
        turned = merge(self.name, list(reversed(self.labels(len(inputs)))), parameters)
        expected = merge_tensors(recipe, base, inputs)
        for name, tensor in merge_tensors(turned, base, inputs[::-1]).items():
            assert torch.allclose(tensor, expected[name], rtol=1e-5, atol=1e-6), name

    def test_low_precision_is_rounded_once(self) -> None:
        """Inputs in bf16 give the fp32 result, rounded at the end."""
        base, inputs = self.models()
        low = [{name: tensor.bfloat16() for name, tensor in model.items()} for model in (base, *inputs)]
        recipe = self.recipe(len(inputs))
        wide = merge_tensors(recipe, low[0], low[1:], torch.float32)
        for name, tensor in merge_tensors(recipe, low[0], low[1:]).items():
            assert tensor.dtype == torch.bfloat16
            assert torch.equal(tensor, wide[name].bfloat16())

    def test_threads_do_not_change_a_bit(self) -> None:
        """Nor does the global generator."""
        base, inputs = self.models()
        recipe = self.recipe(len(inputs), seed=3)
        before = torch.get_num_threads()
        found = []
        try:
            for threads in (1, 3):
                torch.set_num_threads(threads)
                merged = merge_tensors(recipe, base, inputs)
                found.append(b"".join(tensor.numpy().tobytes() for tensor in merged.values()))
        finally:
            torch.set_num_threads(before)
        assert found[0] == found[1]
