"""Compositions: as written or compiled, on any number of threads, the same bytes."""

import logging
import warnings
from collections import defaultdict

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from evomerge.merging import METHODS, STAGES, composition, pipeline
from evomerge.merging.site import cancels, total
from evomerge.recipe import Recipe, merge
from evomerge.testing import merge_tensors

NAME = "layers.0.mlp.weight"

EXTRAS = {
    "exact": {
        "edit": [
            {"trim": {"density": 0.7, "equals": "first"}},
            {"breadcrumbs": {"density": 0.8, "equals": "first"}},
            {"select": {"select": 0.7, "equals": "first"}},
        ],
        "weigh": [{"elect": {"elect": "count", "undecided": "majority"}}],
        "origin": "mean",
        "reduce": "max",
    },
    "norms": {
        "edit": [{"dare": {"drop": 0.4, "rescale": "l1"}}, {"della": {"rescale": "l1"}}],
        "weigh": [{"elect": {"undecided": "positive"}}, {"weight": {"weight": -0.3}}],
        "reduce": "solve",
    },
    "balances": {
        "edit": [{"clip": {"clip": 0.01}}],
        "weigh": [{"balance": {"variant": variant, "ratio": 0.5}} for variant in ("paper", "merging", "pcb")],
    },
    "noise": {"post": [{"noise": {"sigma": 0.05}}]},
}
"""Stages, words, origins and reductions that no method has by default."""
CASES = [*METHODS, *EXTRAS]


def stages_of(name):
    roles = [EXTRAS[name].get(role, ()) for role in ("edit", "weigh", "post")] if name in EXTRAS else []
    return {next(iter(entry)) for role in roles for entry in role} or METHODS[name].stages


def first_with_each_stage():
    """Return few cases with all stages: compiling one takes the compiler a second or two."""
    seen, chosen = set(), []
    for name in [*EXTRAS, *METHODS]:
        if new := {*stages_of(name)} - seen:
            seen |= new
            chosen.append(name)
    return chosen


def recipe(stages, labels=("a", "b")):
    return Recipe.parse({"merge": {"inputs": list(labels), "stages": stages, "seed": 3}})


def case(name):
    """Return a recipe and its models: bf16, but for one input in fp32."""
    stages, count = EXTRAS.get(name), 3 if name == "exact" else 2  # "exact" divides by the number of inputs
    base, inputs = models(torch.bfloat16, count)
    inputs[1 % count] = models(torch.float32, count)[1][1 % count]
    labels = ["a", "b", "c"][:count]
    return recipe(stages, labels) if stages else merge(name, labels, seed=3), base, inputs


def run(name, **options):
    """Merge a case into fp32, whose last bits bf16 would hide."""
    return data(merge_tensors(*case(name), torch.float32, **options))


def models(dtype, count=2):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(128, 160, generator=generator)
    base[:2] = torch.tensor([0.0, -0.0]).repeat(80)
    near = [torch.where(base == 0, 0.0, base + 0.1 * torch.randn(128, 160, generator=generator)) for _ in range(count)]
    return {NAME: base.to(dtype)}, [{NAME: tensor.to(dtype)} for tensor in near]


def data(tensors):
    return tensors[NAME].contiguous().view(-1).view(torch.uint8)


pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, when it compiles


@pytest.fixture(scope="module")
def compiled():
    """Return a function that gives a merge, by its name, from compiled code."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        from torch._inductor import cpp_builder, exc

        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler:
            pytest.skip("torch compiles with a C++ compiler, and there is none")
        patch.setattr(composition, "_broken", set())

        def compiled_run(name):
            merged = run(name, compile=True)
            assert composition._broken == set()
            return merged

        yield compiled_run


def test_every_stage_is_in_a_case():
    assert set().union(*map(stages_of, first_with_each_stage())) == set().union(*map(stages_of, CASES)) == set(STAGES)


@pytest.mark.parametrize("name", first_with_each_stage())
def test_compiled_is_as_written_byte_for_byte(compiled, name):
    """So the bytes do not depend on when a search starts to compile, either."""
    assert torch.equal(compiled(name), run(name))


EXACT = """
    __lshift __rshift _to_copy abs add arange bitwise_and bitwise_not bitwise_or bitwise_xor clamp copy copysign detach div eq
    floor ge gt le lift_fresh lt maximum minimum mul ne neg reciprocal rsub scalar_tensor select sign sub unbind view where zeros
"""
"""Names of torch operations whose result IEEE 754 or integer arithmetic defines; not exp, log, tanh, pow, sums or products."""


class Recorded(TorchDispatchMode):
    """Records the names of the operations that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name().split("::")[1].split(".")[0].rstrip("_"))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CASES)
def test_stages_apply_only_operations_with_defined_results(monkeypatch, name):
    """Whatever is transcendental is computed before, in `measure` or `bind`, or by `arithmetic`: with or without a compiler."""
    recorded = Recorded()
    plain = composition.Composition.run

    def record(self, *arguments):
        with recorded:
            plain(self, *arguments)

    monkeypatch.setattr(composition.Composition, "run", record)
    run(name)
    assert recorded.names
    assert recorded.names.difference(EXACT.split()) == set()


@pytest.mark.parametrize("name", ["ties", "sce", "split_slerp", "svd_mutate"])
def test_threads_do_not_change_a_byte(compiled, name):
    expected = compiled(name)
    for threads in (2, 1):
        torch.set_num_threads(threads)
        for fused in (True, False):
            assert torch.equal(run(name, compile=fused), expected)


@pytest.mark.parametrize("name", EXTRAS)
def test_length_of_the_chunks_does_not_change_a_byte(monkeypatch, name):
    """Of what a stage applies; a sum over chunks may differ in its last bit, and is therefore kept."""
    expected = merge_tensors(*case(name))[NAME]
    monkeypatch.setattr(pipeline, "CHUNK", 777)
    found = merge_tensors(*case(name))[NAME]
    assert (found != expected).float().mean() < 0.01
    assert torch.allclose(found, expected, rtol=2**-7, atol=1e-6)


def test_tensors_of_any_number_of_dimensions_share_compiled_code(compiled):
    from torch._dynamo.utils import counters

    base, inputs = models(torch.float32)
    seen = set()
    for shape in ((128 * 160,), (128, 160), (64, 2, 160), (64, 2, 10, 16)):
        first, *others = ({NAME: tensors[NAME].view(shape)} for tensors in (base, *inputs))
        merge_tensors(recipe({"post": ["scale", "scale"]}), first, others, compile=True)
        seen.add(counters["stats"]["unique_graphs"])
    assert len(seen) == 1


def test_small_tensors_are_never_compiled(monkeypatch):
    monkeypatch.setattr(pipeline, "compiled", None)
    base, inputs = {NAME: torch.zeros(100)}, [{NAME: torch.ones(100)}] * 2
    assert merge_tensors(recipe({}), base, inputs, compile=True)[NAME].tolist() == [2.0] * 100


@pytest.fixture
def without_a_compiler(monkeypatch):
    """Let every compilation fail, as where there is no C++ compiler."""
    from torch._inductor.exc import InvalidCxxCompiler

    def refuse(function, **options):
        def run(*arguments):
            raise InvalidCxxCompiler

        return run

    monkeypatch.setattr(torch, "compile", refuse)
    monkeypatch.setattr(composition, "_broken", set())


def test_without_a_compiler_it_runs_as_written_and_says_so_once(without_a_compiler, caplog):
    stages = {"post": ["scale", {"scale": {"lambda": 0.3}}, "scale"]}  # a composition that no other test compiles
    with caplog.at_level(logging.WARNING, "evomerge"):
        found = [data(merge_tensors(recipe(stages), *models(torch.bfloat16), compile=True)) for _ in range(2)]
        found.append(data(merge_tensors(recipe({"post": ["scale"] * 4}), *models(torch.bfloat16), compile=True)))
    (record,) = caplog.records
    assert "several times slower" in record.message
    assert "g++" in record.message
    expected = data(merge_tensors(recipe(stages), *models(torch.bfloat16)))
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], expected)


def test_errors_that_are_not_the_compiler_s_are_not_hidden(monkeypatch):
    def fail(function, **options):
        def run(*arguments):
            raise MemoryError

        return run

    monkeypatch.setattr(torch, "compile", fail)
    monkeypatch.setattr(composition, "_broken", set())
    with pytest.raises(MemoryError):
        merge_tensors(recipe({"post": ["scale"] * 5}), *models(torch.float32), compile=True)
    assert composition._broken == set()


def test_what_runs_long_as_written_is_compiled_with_the_same_bytes(monkeypatch):
    """Small models are merged as written; a search that goes on pays for the compiler."""
    used = []
    monkeypatch.setattr(pipeline, "compiled", lambda composition, *dtypes: used.append(composition) or composition.run)
    monkeypatch.setattr(pipeline, "_spent", defaultdict(float))
    monkeypatch.setattr(pipeline, "PATIENCE", 0.0)
    base, inputs = {"t": torch.randn(20_000)}, [{"t": torch.randn(20_000)}]
    recipe = merge("task_arithmetic", ["a"])
    first = merge_tensors(recipe, base, inputs)["t"]
    assert used == []
    assert torch.equal(merge_tensors(recipe, base, inputs)["t"], first)
    assert len(used) == 1
    tiny = {"t": torch.randn(10)}
    merge_tensors(recipe, tiny, [tiny])
    assert len(used) == 1


@pytest.mark.parametrize("weights", [(0.0, 0.5), (-0.0, 2.0), (-0.3, 0.0, 0.3), (0.3, 0.6, -0.9)])
def test_a_quotient_by_elementwise_weights_is_the_formulas_to_the_bit(weights):
    """Also where all weights of an element are 0, or cancel but for their rounding, and for zeros of either sign."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(weights), (3, 4096), generator=generator)
    chosen[:, :1000] = torch.arange(1000) % len(weights)
    field = list(torch.tensor(weights)[chosen])
    rows = list(torch.randn(3, 4096, generator=generator) * torch.tensor([0.0, -0.0, 1.0]).repeat(1366)[:4096])
    divisor = torch.where(cancels(field), torch.inf, total(field))
    expected = total([row * weight for row, weight in zip(rows, field, strict=True)]) / divisor
    assert (divisor == torch.inf).any()
    kept = [weight.clone() for weight in field]
    assert composition._reduced(rows, field, "solve").numpy().tobytes() == expected.numpy().tobytes()
    assert all(map(torch.equal, field, kept))


def test_inputs_are_never_overwritten():
    """Those in float32 are rows as they are where weights are merged raw."""
    base, inputs = torch.randn(64), [torch.randn(64), torch.randn(64)]
    kept = [tensor.clone() for tensor in inputs]
    for origin in ("zero", "base", "mean"):
        made = composition.Composition(origin, (("weight", ()),), "solve")
        made.run(base, inputs, torch.empty(64), pipeline.start(slice(0, 64)), [{"weight": torch.tensor([2.0, 3.0])}])
        assert all(map(torch.equal, inputs, kept))
