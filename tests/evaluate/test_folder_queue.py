"""Workers that share a folder with the study's process give the scores of one process, though some of them die.

The workers are in this process, and run while it waits: `tests/cli/test_worker.py` has real ones.
"""

import dataclasses
import gc
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from evomerge import presence, recipe
from evomerge.errors import EvaluatorError
from evomerge.evaluate import CachingEvaluator, QueueEvaluator, Worker
from evomerge.evaluate.folder_queue import QueueFolder, QueueWorker
from evomerge.evaluate.losses import ATTEMPTS
from evomerge.testing import EvaluatorSuite
from evomerge.trial import Proposal


def merge(scale):
    return recipe.merge("task_arithmetic", ["turned", "inverted"], {"lambda": scale})


def serve(queue, most=None, restart=None):
    """Evaluate what is in the queue, or at most so many candidates of it, in this process."""
    most = len(queue.names("todo")) if most is None else most
    return QueueWorker(queue, queue.opened(), restart).serve(Worker.prepare, 60.0, most)


def age(path, seconds):
    """Make a file look as if it had been touched so long ago."""
    touched = path.stat().st_mtime - seconds
    os.utime(path, (touched, touched))


class Served(QueueEvaluator):
    """Evaluates what is in the queue before it waits."""

    def wait(self):
        if count := len(self._queue.names("todo")):
            assert serve(self._queue) == count
        return super().wait()


@pytest.fixture(scope="module")
def evaluator(setup, tmp_path_factory):
    """A queue that keeps candidates, which changes no score."""
    folder = tmp_path_factory.mktemp("queue")
    with Served(dataclasses.replace(setup, members=str(folder / "members")), folder / "queue") as evaluator:
        yield evaluator
    assert QueueFolder(folder / "queue").stopped(0.0)


class TestQueue(EvaluatorSuite):
    pass


@pytest.fixture
def queue(tmp_path):
    return QueueFolder(tmp_path / "queue")


@pytest.fixture(scope="module")
def expected(setup):
    """The evaluation of a candidate by a worker of this process, as JSON."""
    return Worker(setup).evaluate(merge(0.3)).to_json()


def test_generations_of_candidates_are_built_from_kept_ones_or_their_lineage(setup, generations, tmp_path, queue):
    kept = dataclasses.replace(setup, members=str(tmp_path / "members"))
    alone = Worker(dataclasses.replace(setup, members=str(tmp_path / "alone")))
    alone.members.lineage.update({one.id: one for one in generations})
    with QueueEvaluator(kept, queue.path) as evaluator:
        evaluator.lineage.update({one.id: one for one in generations})
        for number in (3, 5):  # that of generation 2 is in no folder
            evaluator.submit(Proposal(number, generations[number]))
            serve(queue)
            told, evaluation = evaluator.wait()
            assert told == number
            assert evaluation.to_json() == alone.evaluate(generations[number]).to_json()
        evaluator.retain([generations[5].id])
    assert [path.stem for path in (tmp_path / "members").iterdir()] == [generations[5].id]


def test_a_candidate_whose_workers_die_fails_after_three_and_says_why(setup, queue):
    with QueueEvaluator(setup, queue.path, lease=4.0) as evaluator:
        evaluator.submit(Proposal(0, merge(0.3)))
        for _ in range(ATTEMPTS):
            (name,) = queue.names("todo")
            claim = queue.claim(name, "dead")
            age(claim, 5.0)
            evaluator._look_for_lost()
            assert not claim.exists()
        number, evaluation = evaluator.wait()
    assert number == 0
    assert evaluation.error == "worker died 3 times on this candidate: no sign of life for 4 seconds"
    assert not queue.names("todo")


def test_a_claim_is_as_young_as_its_last_touch_however_old_the_job(setup, queue, expected):
    with QueueEvaluator(setup, queue.path, lease=4.0) as evaluator:
        evaluator.submit(Proposal(0, merge(0.3)))
        (name,) = queue.names("todo")
        age(queue.path / "todo" / name, 3600.0)
        claim = queue.claim(name, "alive")
        evaluator._look_for_lost()
        assert claim.exists()
        assert queue.claim(name, "late") is None
        queue.give_back(claim)
        serve(queue)
        assert evaluator.wait()[1].to_json() == expected


def test_a_late_result_of_a_lost_worker_is_told_once(setup, queue, expected):
    """It comes while another worker has the candidate, whose result comes when it is pending no more."""
    with QueueEvaluator(setup, queue.path, lease=4.0) as evaluator:
        evaluator.submit(Proposal(0, merge(0.3)))
        (name,) = queue.names("todo")
        age(queue.claim(name, "slow"), 5.0)
        evaluator._look_for_lost()
        serve(queue)
        result = (queue.path / "done" / name).read_bytes()
        assert evaluator.wait()[1].to_json() == expected
        evaluator.submit(Proposal(1, merge(0.4)))
        serve(queue)
        (queue.path / "done" / name).write_bytes(result)
        assert evaluator.wait()[0] == 1
        with pytest.raises(EvaluatorError, match="no proposal is pending"):
            evaluator.wait()


def test_damaged_and_foreign_results_are_evaluated_again(setup, queue, expected):
    with QueueEvaluator(setup, queue.path) as evaluator:
        evaluator.submit(Proposal(0, merge(0.3)))
        evaluator.submit(Proposal(1, merge(0.4)))
        serve(queue)
        first, second = (queue.path / "done" / name for name in queue.names("done"))
        content = json.loads(first.read_text())
        content["evaluation"]["scores"] = {}
        first.write_text(json.dumps(content))
        assert evaluator.wait()[0] == 1
        assert len(queue.names("todo")) == 1
        first.write_bytes(second.read_bytes())  # of another job
        serve(queue)
        assert evaluator.wait()[1].to_json() == expected


def test_a_resumed_process_takes_what_lies_there_and_drops_what_is_stale(setup, queue, expected):
    evaluator = QueueEvaluator(setup, queue.path)
    for number, scale in enumerate((0.3, 0.4, 0.5)):
        evaluator.submit(Proposal(number, merge(scale)))
    serve(queue, most=2)
    assert evaluator.wait()[0] == 0  # and the process dies before that is in the journal
    evaluator.__exit__(KeyboardInterrupt)
    assert not queue.stopped(0.0)
    with QueueEvaluator(setup, queue.path) as evaluator:
        for number, scale in ((0, 0.3), (2, 0.5)):
            evaluator.submit(Proposal(number, merge(scale)))
        number, evaluation = evaluator.wait()
        assert number == 0
        assert evaluation.to_json() == expected
        assert len(queue.names("todo")) == serve(queue) == 1
        assert evaluator.wait()[0] == 2
    assert not queue.names("todo")
    assert not queue.names("done")


class Clock:
    """A clock that only sleeping moves, in place of `time`; it calls `then` at each time that is named there."""

    def __init__(self, then):
        self.now, self._then = 0.0, dict(then)

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        for due in [due for due in self._then if due <= self.now]:
            self._then.pop(due)()


def test_a_queue_without_a_worker_says_so_once_a_minute_until_one_comes(setup, queue, expected, monkeypatch):
    said = []
    with QueueEvaluator(setup, queue.path, say=said.append) as evaluator:
        for number in range(2):
            evaluator.submit(Proposal(number, merge(0.3)))
        clock = Clock({200.0: lambda: queue.new_worker("here"), 500.0: lambda: serve(queue, most=1)})
        monkeypatch.setattr("evomerge.evaluate.folder_queue.evaluator.time", clock)
        assert evaluator.wait()[1].to_json() == expected
    assert clock.now == pytest.approx(500, abs=1)
    assert len(said) == 3, "at 60, 120 and 180 seconds; a worker comes at 200"
    assert said[0].startswith("2 candidates wait, and no worker has shown itself for 0.")
    assert said[0].endswith(f"type `evomerge worker {queue.path}`")


def test_the_time_without_a_worker_begins_when_the_last_one_is_taken_for_dead(setup, queue):
    said = []
    with QueueEvaluator(setup, queue.path, lease=4.0, say=said.append) as evaluator:
        evaluator.submit(Proposal(0, merge(0.3)))
        age(queue.new_worker("dead")[1], 5.0)
        evaluator._look_for_lost()
        evaluator._look_for_workers()
        age(queue.path / "workers", 3600.0)
        evaluator._look_for_workers()
        evaluator._queue.remove_job(*queue.names("todo"))
        evaluator._look_for_workers()
    first, second = (line.partition(" has shown itself for ")[2].partition(":")[0] for line in said)
    assert float(first.removesuffix(" s")) < 10
    assert second.startswith("1 h 0 min")


def test_a_worker_that_was_taken_for_dead_shows_itself_again(setup, queue):
    with QueueEvaluator(setup, queue.path, lease=4.0):
        worker = QueueWorker(queue, queue.opened())
        _, file, _ = queue.new_worker("slow")
        age(file, 5.0)
        assert not [*queue.expired(4.0)]
        assert presence.read(queue.path, 4.0).workers == 0
        turns = iter([False, True])
        worker._ended = SimpleNamespace(wait=lambda seconds: next(turns))
        worker._beat(file)
        assert presence.read(queue.path, 4.0).workers == 1


def test_a_candidate_past_its_deadline_is_given_up_by_a_new_process(faulty, plan_faults, queue):
    plan_faults({merge(0.3): "hang"})
    gc.disable()  # an exception of the signal would be lost in one of its callbacks
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    with QueueEvaluator(faulty, queue.path, lease=1.0, deadline=0.2) as evaluator:
        evaluator.submit(Proposal(0, merge(0.3)))
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                serve(queue, restart=lambda: os.kill(os.getpid(), signal.SIGUSR1))
            assert not [*queue.claims()]
            evaluation = None if evaluator._read(*queue.names("done")) is None else "an evaluation"
            assert evaluation is None
        assert evaluator.wait()[1].error == "no result within the deadline of 0.2 seconds, twice"
    signal.signal(signal.SIGUSR1, before)
    gc.enable()


def test_an_interrupted_worker_gives_its_candidate_back(faulty, plan_faults, queue):
    plan_faults({merge(0.3): "interrupt once"})
    with QueueEvaluator(faulty, queue.path) as evaluator:
        evaluator.submit(Proposal(0, merge(0.3)))
        with pytest.raises(KeyboardInterrupt):
            serve(queue)
        assert len(queue.names("todo")) == 1
        assert not [*queue.claims()]
        serve(queue)
        assert evaluator.wait()[1].to_json() == Worker(faulty).evaluate(merge(0.3)).to_json()


def test_a_queue_serves_one_process_of_one_study(setup, queue):
    first = QueueEvaluator(setup, queue.path, study=Path("first"))
    with pytest.raises(EvaluatorError, match=rf"process {os.getpid()} on .* runs a study on this queue"):
        QueueEvaluator(setup, queue.path, study=Path("first"))
    first.close()
    with pytest.raises(EvaluatorError, match="the queue of first, opened with another `study`; give a new folder"):
        QueueEvaluator(setup, queue.path, study=Path("second"))
    other = dataclasses.replace(setup, precision="bfloat16")
    with pytest.raises(EvaluatorError, match="opened with another `setup`"):
        QueueEvaluator(other, queue.path, study=Path("first"))
    QueueEvaluator(dataclasses.replace(setup, shared_mib=64), queue.path, study=Path("first")).close()


def test_python_functions_are_refused_by_name_before_anything_is_written(setup, queue):
    tasks = {"mine": {"kind": "python", "function": "f"}}
    with pytest.raises(EvaluatorError, match="task `mine` is a Python function"):
        QueueEvaluator(dataclasses.replace(setup, tasks=tasks), queue.path)
    assert not queue.path.exists()


def test_folders_that_are_links_are_refused(setup, queue, tmp_path):
    queue.path.mkdir()
    (queue.path / "todo").symlink_to(tmp_path)
    with pytest.raises(EvaluatorError, match="expected a folder of the queue"):
        QueueEvaluator(setup, queue.path)


def test_the_end_of_a_caching_evaluator_ends_the_search(setup, queue):
    with CachingEvaluator(QueueEvaluator(setup, queue.path)):
        assert not queue.stopped(0.0)
    assert queue.stopped(0.0)
