"""Placement: which devices there are, what stays on one, and what is copied to it when. The device here is the CPU, with copies counted."""

import pytest
import torch

from evomerge import placement
from evomerge.build import Builder
from evomerge.errors import DeviceError
from evomerge.evaluate.slopes import Slopes
from evomerge.merging import METHODS
from evomerge.placement import Placement, describe, described, fastest, find, room_left
from evomerge.recipe import Recipe, merge
from evomerge.testing import inputs_of

CPU = torch.device("cpu")
GIB = 1 << 30
EXPERTS = ["maths", "code", "prose"]
TWO_GPUS = {"cuda:0": "NVIDIA H100", "cuda:1": "NVIDIA A100", "cpu": ""}


@pytest.fixture
def gpus(monkeypatch):
    monkeypatch.setattr(placement, "available", lambda: TWO_GPUS)


def test_auto_is_an_accelerator_if_there_is_one(gpus, monkeypatch):
    assert str(find("auto")) == str(find("cuda")) == "cuda:0"
    assert str(find("cuda:1")) == "cuda:1"
    monkeypatch.setattr(placement, "available", lambda: {"cpu": ""})
    assert find("auto") == CPU


def test_device_that_is_not_there_is_refused_with_those_that_are(gpus):
    with pytest.raises(
        DeviceError,
        match=r"device `cuda:2`: not here \(torch .*\); expected one of `cuda:0` \(NVIDIA H100\), `cuda:1` \(NVIDIA A100\), `cpu`, or `auto`",
    ):
        find("cuda:2")


def test_a_device_is_described_by_kind_and_name_not_by_number(gpus):
    assert describe(torch.device("cuda:1")) == described("cuda:1") == "cuda NVIDIA A100"
    assert describe(CPU) == "cpu"
    assert described("mps") == "mps", "not here"


@pytest.mark.parametrize(("capability", "precision"), [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float16")])
def test_bfloat16_is_the_fastest_from_ampere_on(capability, precision, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert fastest(torch.device("cuda:0")) == precision


def test_room_is_what_a_candidate_leaves_with_a_quarter_of_its_batch_more():
    """Of 80 GiB: 20 at the peak, of which 16 are a batch, a quarter of that, and half a GiB."""
    assert room_left(80 * GIB, 4 * GIB, 20 * GIB) == (80 - 20 - 4) * GIB - GIB // 2
    assert room_left(8 * GIB, 4 * GIB, 8 * GIB) == 0


class Tensors:
    """Four tensors of 400 bytes on the host, which remember in what order they are read."""

    def __init__(self):
        self.read = []

    def __call__(self, key):
        self.read.append(key[1])
        return torch.full((100,), float("abcd".index(key[1])))


def passed(place, tensors, names="abcd"):
    """Fetch one tensor after another; return their first elements."""
    return [float(place.fetch([("base", name, 0)], tensors)[0][0]) for name in names]


def test_on_the_cpu_nothing_is_copied():
    place, tensors = Placement(), torch.ones(3)
    assert place.send([tensors])[0] is tensors
    assert place.sent == 0


def test_what_has_no_room_is_copied_for_each_candidate():
    place, tensors = Placement(CPU, copies=True), Tensors()
    place.room = 0
    for _ in range(3):
        assert passed(place, tensors) == [0, 1, 2, 3]
    assert place.sent == 3 * 4 * 400 + 400, "and the first tensor of the next candidate"
    assert place.held_bytes == 0


def test_the_next_tensor_is_begun_before_it_is_asked_for():
    place, tensors = Placement(CPU, copies=True), Tensors()
    passed(place, tensors)
    passed(place, tensors, "a")
    assert tensors.read == [*"abcd", "a", "b"]
    tensors.read.clear()
    assert passed(place, tensors, "b") == [1]
    assert tensors.read == ["c"], "b has arrived"


def test_a_tensor_that_was_not_wanted_after_all_is_dropped():
    place, tensors = Placement(CPU, copies=True), Tensors()
    passed(place, tensors, "abab")
    assert passed(place, tensors, "dcba") == [3, 2, 1, 0]


def test_tensors_stay_where_they_fit_once_a_candidate_was_whole():
    place, tensors = Placement(CPU, copies=True), Tensors()
    passed(place, tensors)
    assert place.held_bytes == 0, "how much room there is shows only after a candidate"
    place.room = 2 * 400
    for _ in range(2):
        assert passed(place, tensors) == [0, 1, 2, 3]
    assert place.held_bytes == 800
    before = place.sent
    passed(place, tensors)
    assert place.sent - before == 800, "the other two"


def test_after_a_release_nothing_stays_and_all_is_there():
    place, tensors = Placement(CPU, copies=True), Tensors()
    place.room = 1 << 20
    passed(place, tensors)
    place.release()
    place.settle()
    assert passed(place, tensors) == [0, 1, 2, 3]
    assert place.held_bytes == place.room == 0


def placed(pool, room=None):
    place = Placement(CPU, copies=True)
    place.room = room
    return Builder(pool, search=True, placement=place), place


def content(checkpoint):
    return {name: checkpoint.tensor(name).contiguous().view(-1).view(torch.uint8).tolist() for name in checkpoint.info}


@pytest.mark.parametrize("method", METHODS)
def test_a_merge_has_the_same_bytes_wherever_it_runs(method, pool):
    recipe = merge(method, EXPERTS[: inputs_of(method)], seed=2)
    assert content(placed(pool, 1 << 20)[0].build(recipe)) == content(Builder(pool).build(recipe))


def test_nested_merges_and_members_have_the_same_bytes(pool):
    inner = merge("ties", ["maths", "code"])
    outer = Recipe.parse(
        {
            "merge": {
                "method": "task_arithmetic",
                "inputs": [inner.data, {"expert": "prose"}],
                "parameters": {"lambda": 0.4},
            }
        }
    )
    child = Recipe.parse({"merge": {"method": "slerp", "inputs": [{"member": inner.id}, {"expert": "prose"}]}})
    for recipe in (outer, child):
        host, device = Builder(pool), placed(pool)[0]
        for builder in (host, device):
            builder.members.lineage[inner.id] = inner
        assert content(device.build(recipe)) == content(host.build(recipe))


def test_a_second_candidate_copies_nothing_where_the_models_fit(pool):
    builder, place = placed(pool, 1 << 30)
    for _ in range(2):
        before = place.sent
        content(builder.build(merge("linear", EXPERTS, {"weight": 0.3})))
    floats = sum(entry.nbytes for entry in pool.base.info.values() if entry.dtype.is_floating_point)
    assert place.held_bytes == floats * (1 + len(EXPERTS))
    assert place.sent - before < floats / 10, "only the parameters"


def test_experts_that_are_used_alone_share_the_base(pool):
    builder, place = placed(pool, 1 << 30)
    for expert in EXPERTS:
        content(builder.build(merge("linear", [expert])))
    floats = sum(entry.nbytes for entry in pool.base.info.values() if entry.dtype.is_floating_point)
    assert place.held_bytes == floats * (1 + len(EXPERTS))


def test_slopes_of_a_nested_merge_are_those_of_the_host(pool):
    recipe = Recipe.parse(
        {
            "merge": {
                "method": "task_arithmetic",
                "inputs": [merge("task_arithmetic", ["maths", "code"], {"weight": 0.3}).data, {"expert": "prose"}],
                "parameters": {"weight": 0.7},
            }
        }
    )
    found = []
    for builder in (Builder(pool), placed(pool)[0]):
        slopes = Slopes(recipe, builder.build(recipe))
        for name in slopes.tensors:
            slopes.take(name, torch.linspace(-1, 1, pool.base.info[name].numel).reshape(pool.base.info[name].shape))
        found.append(slopes.collect())
    assert found[1] == pytest.approx(found[0], rel=1e-4, nan_ok=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")
@pytest.mark.parametrize("room", [0, 1 << 20])
def test_models_are_merged_on_cuda(room, pool):
    place = Placement(find("cuda"))
    place.room = room
    builder, recipe = Builder(pool, search=True, placement=place), merge("dare_ties", EXPERTS, seed=2)
    for _ in range(3):
        assert content(builder.build(recipe)) == content(Builder(pool).build(recipe))
