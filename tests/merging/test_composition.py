"""One pass over memory: as written or compiled, on any number of threads, the same bytes."""

import logging
import warnings
from collections import defaultdict

import pytest
import torch

from evomerge.merging import STAGES, composition, pipeline
from evomerge.merging.stages.arcs import ARCS
from evomerge.recipe import Recipe, merge
from evomerge.testing import merge_tensors

NAME = "layers.0.mlp.weight"
LABELS = ["a", "b"]

COMPOSITIONS = {
    "size": (
        torch.bfloat16,
        {
            "edit": [{"trim": {"density": 0.7}}, {"clip": {"clip": 0.01}}, "multiply", {"near": {"t": 0.3}}, "dare"],
            "weigh": [{"elect": {"undecided": "positive"}}, "weight", "stock"],
            "reduce": "solve",
            "post": [{"consensus": {"agree": 1}}, "restore_norm", "scale", "lines", {"noise": {"sigma": 0.05}}],
        },
    ),
    "rank": (
        torch.float32,
        {
            "edit": [{"breadcrumbs": {"density": 0.8}}, {"select": {"select": 0.7}}, "della"],
            "weigh": [{"elect": {"elect": "count", "undecided": "majority"}}, "energy", {"metric": {"metric": 2}}],
            "reduce": "max",
        },
    ),
    "matrices": (
        torch.bfloat16,
        {
            "edit": ["decorrelate", {"dare": {"drop": 0.4, "rescale": "l1"}}, {"della": {"rescale": "l1"}}],
            "weigh": [{"balance": {"variant": "paper", "ratio": 0.5}}],
            "origin": "mean",
            "reduce": "solve",
        },
    ),
    "balance": (torch.bfloat16, {"edit": ["project"], "weigh": [{"balance": {"ratio": 0.5}}], "origin": "zero"}),
    "split": (
        torch.float32,
        {"weigh": [{"split_slerp": {"split": 0.37, "t": 0.2, "angle": "part"}}], "origin": "zero", "post": ["noise"]},
    ),
    "mutated": (torch.float32, {"edit": [{"svd_mutate": {"rate": 0.5}}], "origin": "zero"}),
    "joined": (torch.float32, {"edit": ["isotropise"], "weigh": [], "post": ["scale"]}),
}
"""By name: the models' dtype, and stages. Together they have each stage's `apply`, origin and reduction."""


def models(dtype):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(128, 160, generator=generator)
    base[:2] = torch.tensor([0.0, -0.0]).repeat(80)
    near = [torch.where(base == 0, 0.0, base + 0.1 * torch.randn(128, 160, generator=generator)) for _ in LABELS]
    return {NAME: base.to(dtype)}, [{NAME: tensor.to(dtype)} for tensor in near]


def recipe(stages):
    return Recipe.parse({"merge": {"inputs": LABELS, "stages": stages, "seed": 3}})


def data(tensors):
    return tensors[NAME].contiguous().view(-1).view(torch.uint8)


pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, when it compiles


@pytest.fixture(scope="module")
def compiled():
    """Return a function that gives a merge, by its name, as it comes from compiled code."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        from torch._inductor import cpp_builder, exc

        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler:
            pytest.skip("torch compiles with a C++ compiler, and there is none")
        found = {}
        patch.setattr(composition, "_broken", set())

        def run(name):
            if name not in found:
                dtype, stages = COMPOSITIONS[name]
                found[name] = data(merge_tensors(recipe(stages), *models(dtype), compile=True))
            assert composition._broken == set()
            return found[name]

        yield run


def test_every_stage_is_in_a_composition():
    used = {
        entry if isinstance(entry, str) else next(iter(entry))
        for _, stages in COMPOSITIONS.values()
        for role in ("edit", "weigh", "post")
        for entry in stages.get(role, ())
    }
    alike = {*ARCS, "swap"} - {"split_slerp"}  # one bound number for each input, as `weight`
    assert used | alike == set(STAGES)


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_compiled_is_as_written_byte_for_byte(compiled, name):
    dtype, stages = COMPOSITIONS[name]
    written = data(merge_tensors(recipe(stages), *models(dtype)))
    assert torch.equal(compiled(name), written)


@pytest.mark.parametrize("name", ["size", "rank", "split", "mutated"])
def test_threads_do_not_change_a_byte(compiled, name):
    dtype, stages = COMPOSITIONS[name]
    expected = compiled(name)
    for threads in (2, 1):
        torch.set_num_threads(threads)
        for fused in (True, False):
            assert torch.equal(data(merge_tensors(recipe(stages), *models(dtype), compile=fused)), expected)


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_length_of_the_blocks_does_not_change_a_byte(monkeypatch, name):
    """Of what a stage applies; what is summed over blocks may differ in its last bit, and is therefore kept."""
    dtype, stages = COMPOSITIONS[name]
    expected = merge_tensors(recipe(stages), *models(dtype))[NAME]
    monkeypatch.setattr(pipeline, "CHUNK", 777)
    found = merge_tensors(recipe(stages), *models(dtype))[NAME]
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
