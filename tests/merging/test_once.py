"""A merge that is made once: the bytes are those of a search, and nothing is compiled or stored that does not pay off."""

from collections import defaultdict

import pytest
import torch

from evomerge.merging import METHODS, Store, composition, pipeline, site
from evomerge.recipe import merge
from evomerge.testing import merge_tensors, tiny_tensors

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, when it compiles

LABELS = ["a", "b", "c"]
BASE = tiny_tensors(0)
INPUTS = [tiny_tensors(seed, BASE) for seed in (1, 2, 3)]
VARIANTS = [
    *((name, {}) for name in METHODS),
    *((name, {"scope": "model", "density": 0.3}) for name in ("ties", "breadcrumbs")),
    ("ties", {"density": {"per": ["block/2"], "values": [0.2, 0.7]}}),
    ("ties", {"density": {"per": ["block/4"], "values": [0.2, 0.4, 0.6, 0.8]}}),
    ("ties", {"equals": "first"}),
    ("dare_ties", {"density": 0.5, "rescale": "l1"}),
    ("della", {"rescale": "l1"}),
    ("slerp", {"scope": "model"}),
    ("sce", {"select": 0.5}),
]


def run(method, parameters, **options):
    inputs = METHODS[method].inputs or len(LABELS)
    return merge_tensors(merge(method, LABELS[:inputs], parameters), BASE, INPUTS[:inputs], **options)


@pytest.mark.parametrize(("method", "parameters"), VARIANTS, ids=lambda value: str(value)[:40])
def test_bytes_are_those_of_a_search(monkeypatch, method, parameters):
    monkeypatch.setattr(site, "SAMPLE_FROM", 1000)
    monkeypatch.setattr(site, "SAMPLED", 16)
    expected = run(method, parameters)
    found = run(method, parameters, once=True)
    for name, tensor in expected.items():
        assert torch.equal(found[name].view(torch.int32), tensor.view(torch.int32)), name


@pytest.mark.parametrize("method", ["ties", "della", "breadcrumbs", "slerp", "sce"])
def test_nothing_is_stored(tmp_path, method):
    store = Store(tmp_path)
    run(method, {}, store=store, once=True)
    assert store._prepared == store._measures == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("patience", "compiled"), [(0.0, True), (1e9, False)])
def test_compiled_where_the_rest_takes_longer_than_the_compiler(monkeypatch, patience, compiled):
    used = []

    def record(composition, *dtypes):
        used.append(composition)
        return composition.run

    monkeypatch.setattr(pipeline, "compiled", record)
    monkeypatch.setattr(pipeline, "_spent", defaultdict(float))
    monkeypatch.setattr(pipeline, "_FIRST", 1 << 14)
    monkeypatch.setattr(pipeline, "PATIENCE", patience)
    base = {name: torch.randn(1 << 15) for name in "xyz"}
    recipe = merge("task_arithmetic", ["a"])
    merge_tensors(recipe, base, [{name: 2 * tensor for name, tensor in base.items()}], compile=True, once=True)
    assert len(used) == (2 if compiled else 0)  # the first tensor shows how long it takes


def test_what_the_edits_left_is_counted_alike_in_compiled_code():
    base, inputs = torch.randn(70_000), [torch.randn(70_000) for _ in range(2)]
    stages = (("trim", (("scope", "tensor"), ("equals", "all"))), ("weight", ()))
    made = composition.Composition("base", stages, "sum")
    bound = [
        {"least": torch.tensor([0.5, 1.0]), "least_last": torch.zeros(2, dtype=torch.int32)},
        {"weight": torch.ones(2)},
    ]
    outs, counts = [], []
    for step in (made.run, composition.compiled(made, *[torch.float32] * 4)):
        outs.append(torch.empty_like(base))
        counts.append(torch.zeros(2, dtype=torch.int64))
        step(base, inputs, outs[-1], pipeline.start(slice(0, 1)), bound, counts[-1])
    assert torch.equal(*outs)
    assert torch.equal(*counts)
    assert counts[0].tolist() == [
        int(((row - base).abs() >= bar).sum()) for row, bar in zip(inputs, (0.5, 1.0), strict=True)
    ]
