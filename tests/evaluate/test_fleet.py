"""How many workers have room on a cluster's nodes, and what is said where these are too few."""

import pytest

from evomerge.evaluate import Fleet


def node(*, alive=True, labels=(), **resources):
    return {"NodeID": "n", "Alive": alive, "Resources": resources, "Labels": {"ray.io/node-id": "n", **dict(labels)}}


NODES = [
    node(CPU=3.0, GPU=1.0, memory=8e9, labels={"zone": "one"}),
    node(CPU=3.0, GPU=2.0, memory=2e9, labels={"zone": "two"}),
    node(CPU=64.0, alive=False, labels={"zone": "one"}),
    node(CPU=0.0, memory=8e9),
]


@pytest.mark.parametrize(
    ("fleet", "places"),
    [
        (Fleet(1, 1), 6),
        (Fleet(1, 1, threads=2), 2),  # a worker is on one node
        (Fleet(1, 1, threads=2, cpus=0.5), 12),
        (Fleet(1, 1, memory=2 * 10**9), 4),
        (Fleet(1, 1, gpus=0.4), 5),  # two on each GPU; the CPUs of the second node are enough for three
        (Fleet(1, 1, gpus=2.0), 1),
        (Fleet(1, 1, labels={"zone": "one"}), 3),
        (Fleet(1, 1, labels={"zone": "!one"}), 3),
        (Fleet(1, 1, labels={"zone": "in(one, two)"}), 6),
        (Fleet(1, 1, labels={"zone": "!in(one,two)"}), 0),
    ],
)
def test_places_are_counted_node_by_node(fleet, places):
    assert fleet.places(NODES) == places


@pytest.mark.parametrize(
    ("fleet", "problem"),
    [
        (Fleet(6, 8), None),
        (Fleet(7, 7), "the Ray cluster has 6 CPUs, 7 workers with 1 thread each need 7; type --workers 6"),
        (Fleet(7, 9), "the Ray cluster has 6 CPUs, 7 workers with 1 thread each need 7; type `min: 6` under `workers`"),
        (
            Fleet(3, 3, threads=2),
            "the Ray cluster has 6 CPUs, 3 workers with 2 threads each on one node need 6; type --workers 2",
        ),
        (
            Fleet(2, 2, gpus=2.0),
            "the Ray cluster has 3 GPUs, 2 workers with `tensor_parallel_size: 2` need 4; type --workers 1, or a smaller `tensor_parallel_size`",
        ),
        (
            Fleet(6, 6, memory=2 * 10**9),
            "the Ray cluster has room for 4 of 6 workers, each with 1 CPU, 2 GB of memory; type `min: 4` under `workers`",
        ),
        (
            Fleet(2, 4, memory=10**10),
            "the Ray cluster has 18 GB of memory, 2 workers with `memory_gb: 10` need 20; type `min: 1` under `workers`",
        ),
        (
            Fleet(1, 4, labels={"zone": "three"}),
            (
                "no node of the Ray cluster has the labels `zone: three` (it has zone: one, zone: two); type others under `workers`, "
                "or start nodes with `ray start --labels`"
            ),
        ),
    ],
)
def test_what_is_missing_is_said_with_what_to_type(fleet, problem):
    assert fleet.problem(NODES) == problem
