"""A search's candidates on a Ray cluster of tiny nodes on this machine, one of which joins and one of which leaves in mid-evaluation.

A program of its own, as a process is on one cluster at a time. It reads one JSON object, `setup` and `recipes`, the first of which
hangs once, and writes another to the file that its argument names: what came back, and the number of slots.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32}

import ray
from ray.cluster_utils import Cluster

from evomerge.evaluate import Fleet, Setup, make
from evomerge.recipe import Recipe
from evomerge.trial import Proposal

PLACE = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20}


def main():
    given = json.load(sys.stdin)
    recipes = [Recipe.parse(recipe) for recipe in given["recipes"]]
    cluster = Cluster(initialize_head=True, head_node_args=PLACE | {"node_ip_address": "127.0.0.2"})
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    said = []
    fleet = Fleet(1, 2, labels={"kind": "work"})  # not on the head
    evaluator = make(Setup(**given["setup"]), fleet, deadline=300.0, say=said.append)
    seen = {"slots": [evaluator.slots], "waited": evaluator._too_small}
    answers = []

    def submit(number):
        evaluator.submit(Proposal(number, recipes[number]))

    def collect():
        answers.append(evaluator.wait())
        return answers[-1][0]

    def join(address):
        return cluster.add_node(**PLACE, node_ip_address=address, labels={"kind": "work"})

    one = join("127.0.0.3")
    submit(1)
    collect()
    seen["slots"].append(evaluator.slots)

    two = join("127.0.0.4")
    while evaluator.slots < 2:
        submit(1)
        collect()
    seen["slots"].append(evaluator.slots)
    answers.clear()

    submit(0)
    for number in range(1, 4):
        submit(number)
    while len(answers) < 3:
        collect()
    holder = next(slot.node for slot in evaluator._slots if slot.proposal is not None and slot.proposal.number == 0)
    address = next(entry["NodeManagerAddress"] for entry in ray.nodes() if entry["NodeID"] == holder)
    cluster.remove_node(one if address == "127.0.0.3" else two, allow_graceful=False)
    for number in range(4, len(recipes)):
        submit(number)
    while len(answers) < len(recipes):
        collect()
    seen["slots"].append(evaluator.slots)
    seen["answers"] = [[number, evaluation.to_json()] for number, evaluation in answers]
    seen["said"] = said
    Path(sys.argv[1]).write_text(json.dumps(seen))
    evaluator.close()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
