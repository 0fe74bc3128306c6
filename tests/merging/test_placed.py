"""Merges on an accelerator: the same bytes as on the CPU, by the same operations, and nothing read back from the device.

The device `meta`, whose tensors hold no data, shows that no step of a merge needs the host; on the CPU with counted copies
the bytes are compared. On CUDA, where it is there, the bytes are compared again.
"""

import pytest
import torch
from merging.test_composition import CASES, case
from torch.utils._python_dispatch import TorchDispatchMode

from evomerge.merging import MergeGradient, Pipeline, Store, pipeline
from evomerge.placement import Placement
from evomerge.testing import InMemory, merge_tensors, random_statistics

CPU = torch.device("cpu")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")


def placed(name, placement, once=False):
    """Merge a case into fp32 where the placement says; return the tensors and the pipeline."""
    recipe, base, inputs = case(name)
    statistics = random_statistics(recipe.root.merge.labels, base)
    run = Pipeline(recipe.root.merge, InMemory(base, inputs, placement, statistics), Store(), once=once)
    merged = {
        key: torch.empty(tensor.shape, dtype=torch.float32, device=placement.device) for key, tensor in base.items()
    }
    for key, out in merged.items():
        run.depends(key)  # compared on the host: `meta` cannot
        run.write(key, out)
    return merged, run


def data(tensors):
    return {name: tensor.cpu().contiguous().view(-1).view(torch.uint8).tolist() for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", CASES)
def test_no_step_of_a_merge_reads_back_from_the_device(name):
    merged, _ = placed(name, Placement(torch.device("meta")))
    assert all(tensor.is_meta for tensor in merged.values())


class Divisions(TorchDispatchMode):
    """Records what tensors of the device are divided by."""

    def __init__(self):
        super().__init__()
        self.divisors = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket is torch.ops.aten.div and args[0].is_meta:
            self.divisors.append(args[1])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CASES)
def test_divisors_are_on_the_device(name):
    """Where they are numbers, torch multiplies by their reciprocals on a GPU, and the last bits are others."""
    with Divisions() as mode:
        placed(name, Placement(torch.device("meta")))
    assert all(isinstance(divisor, torch.Tensor) and divisor.is_meta for divisor in mode.divisors)


@pytest.mark.parametrize("name", CASES)
def test_bytes_are_those_of_the_cpu(name, monkeypatch):
    expected = data(merge_tensors(*case(name), torch.float32))
    monkeypatch.setattr(pipeline, "WIDE", 1000)  # several chunks
    assert data(placed(name, Placement(CPU, copies=True))[0]) == expected


@CUDA
@pytest.mark.parametrize("name", CASES)
def test_bytes_on_cuda_are_those_of_the_cpu(name):
    assert data(placed(name, Placement(torch.device("cuda:0")))[0]) == data(merge_tensors(*case(name), torch.float32))


def test_densities_are_counted_on_the_device():
    recipe, base, inputs = case("ties")
    run = Pipeline(recipe.root.merge, InMemory(base, inputs), Store(), once=True)
    for name, tensor in base.items():
        run.write(name, torch.empty_like(tensor))
    assert placed("ties", Placement(CPU, copies=True), once=True)[1].densities() == run.densities() != {}


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "slerp"])
def test_slopes_on_the_device_are_those_of_the_cpu(name):
    recipe, base, inputs = case(name)
    numbers = []
    for placement in (None, Placement(CPU, copies=True)):
        gradient = MergeGradient(
            recipe.root.merge, Pipeline(recipe.root.merge, InMemory(base, inputs, placement), Store())
        )
        for key, tensor in base.items():
            pulled = gradient.pull(key, torch.linspace(-1, 1, tensor.numel()).reshape(tensor.shape))
            numbers.append((placement is None, dict(gradient.numbers(key, pulled))))
    host = [found for on_host, found in numbers if on_host]
    device = [found for on_host, found in numbers if not on_host]
    assert any(host)
    for one, other in zip(host, device, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
