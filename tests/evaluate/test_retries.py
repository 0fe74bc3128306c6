"""When lost workers are held against a candidate."""

from evomerge.evaluate.retries import ATTEMPTS, DEADLINE, OUT_OF_MEMORY, final_error


def test_a_candidate_may_lose_a_worker_of_each_kind():
    assert final_error(["ActorDiedError"], 1.0) is None
    assert final_error([OUT_OF_MEMORY, DEADLINE], 1.0) is None


def test_memory_and_time_run_out_after_two():
    assert final_error([OUT_OF_MEMORY] * 2, 1.0).startswith("out of memory: the worker was killed twice")
    assert final_error([DEADLINE] * 2, 1.5) == "no result within the deadline of 1.5 seconds, twice"


def test_three_lost_workers_are_the_end():
    assert final_error(["ActorDiedError"] * ATTEMPTS, 1.0) == "worker died 3 times on this candidate: ActorDiedError"
    mixed = [OUT_OF_MEMORY, "ActorDiedError", DEADLINE]
    assert final_error(mixed, 1.0) == "worker died 3 times on this candidate: out of memory, ActorDiedError, deadline"
