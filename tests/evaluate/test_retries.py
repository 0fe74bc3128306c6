"""When lost workers become a candidate's error."""

from evomerge.evaluate.losses import ATTEMPTS, DEADLINE, NODE, OUT_OF_MEMORY, final_error


def test_single_losses_are_tried_again():
    assert final_error(["ActorDiedError"], 1.0) is None
    assert final_error([OUT_OF_MEMORY, DEADLINE], 1.0) is None


def test_two_losses_by_memory_or_time_are_final():
    assert final_error([OUT_OF_MEMORY] * 2, 1.0).startswith("out of memory: the worker was killed twice")
    assert final_error([DEADLINE] * 2, 1.5) == "no result within the deadline of 1.5 seconds, twice"


def test_three_lost_workers_are_final():
    assert final_error(["ActorDiedError"] * ATTEMPTS, 1.0) == "worker died 3 times on this candidate: ActorDiedError"
    mixed = [OUT_OF_MEMORY, "ActorDiedError", DEADLINE]
    assert final_error(mixed, 1.0) == "worker died 3 times on this candidate: out of memory, ActorDiedError, deadline"


def test_lost_nodes_count_apart_and_end_only_what_may_be_their_cause():
    assert final_error([NODE] * 9 + ["ActorDiedError"] * 2, 1.0) is None
    assert final_error([NODE] * 10, 1.0) == "the worker's node left 10 times during this candidate"
