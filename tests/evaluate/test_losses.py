"""When lost workers are held against a candidate."""

from evomerge.evaluate.losses import ATTEMPTS, DEADLINE, OUT_OF_MEMORY, verdict


def test_a_candidate_may_lose_a_worker_of_each_kind():
    assert verdict(["ActorDiedError"], 1.0) is None
    assert verdict([OUT_OF_MEMORY, DEADLINE], 1.0) is None


def test_memory_and_time_run_out_after_two():
    assert verdict([OUT_OF_MEMORY] * 2, 1.0).startswith("out of memory: the worker was killed twice")
    assert verdict([DEADLINE] * 2, 1.5) == "no result within the deadline of 1.5 seconds, twice"


def test_three_lost_workers_are_the_end():
    assert verdict(["ActorDiedError"] * ATTEMPTS, 1.0) == "worker died 3 times on this candidate: ActorDiedError"
    mixed = [OUT_OF_MEMORY, "ActorDiedError", DEADLINE]
    assert verdict(mixed, 1.0) == "worker died 3 times on this candidate: out of memory, ActorDiedError, deadline"
