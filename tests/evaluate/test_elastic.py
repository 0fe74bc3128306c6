"""Workers come and go with the nodes of a real Ray cluster, and the scores stay those of one process."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge import recipe
from evomerge.evaluate import Worker

pytestmark = pytest.mark.ray
PROGRAM = Path(__file__).parent / "elastic_cluster.py"
RECIPES = [recipe.merge("task_arithmetic", ["turned", "inverted"], {"lambda": scale / 10}) for scale in range(1, 8)]


@pytest.fixture(scope="module")
def seen(faulty, plan_faults, tmp_path_factory):
    """What happened: a search for at most two workers begins without any, a node joins, another joins, one leaves in mid-evaluation."""
    plan_faults({RECIPES[0]: "hang once"})
    given = {"setup": dataclasses.asdict(faulty), "recipes": [json.loads(one.json) for one in RECIPES]}
    out = tmp_path_factory.mktemp("elastic") / "seen.json"
    done = subprocess.run(
        [sys.executable, PROGRAM, out],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def test_a_search_waits_for_a_cluster_that_is_still_without_its_nodes(seen):
    assert seen["waited"].startswith("no node of the Ray cluster has the labels `kind: work`")


def test_the_number_of_slots_follows_the_nodes(seen):
    assert seen["slots"] == [1, 1, 2, 1]


def test_each_candidate_comes_back_once_with_the_bytes_of_one_process(seen, faulty, plan_faults):
    plan_faults({})
    worker = Worker(faulty)
    assert sorted(number for number, _ in seen["answers"]) == [*range(len(RECIPES))]
    for number, answer in seen["answers"]:
        assert answer == worker.evaluate(RECIPES[number]).to_json()
