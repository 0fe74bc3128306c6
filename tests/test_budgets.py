"""Budgets of time and SIGTERM end a search early: the same prefix of the same search, and its evaluations are kept."""

import signal
from pathlib import Path

import numpy as np
import pytest

from evomerge import costs, interrupts
from evomerge.errors import EvaluatorError
from evomerge.evaluate import Evaluator
from evomerge.settings import StudySettings
from evomerge.study import Study
from evomerge.trial import Evaluation


class Slow(Evaluator):
    """Takes half an hour for each candidate, by the clock of `now`, and scores it by its recipe's id."""

    slots = 1

    def __init__(self, now, at=lambda count: None):
        self.lineage, self.count = {}, 0
        self._now, self._at, self._waiting = now, at, []

    def submit(self, proposal):
        self._waiting.append(proposal)

    def wait(self):
        self.count += 1
        self._at(self.count)
        self._now[0] += 1800
        proposal = self._waiting.pop(0)
        rng = np.random.default_rng(int(proposal.recipe.id[:8], 16))
        names = [f"{task}/{metric}" for task in ("turned", "inverted") for metric in ("log_likelihood", "accuracy")]
        scores = {name: rng.random(5, dtype=np.float32) for name in names}
        return proposal.number, Evaluation(scores=scores, seconds={"score": 1800.0})

    def seed(self, *_):
        """Keep no cache."""


@pytest.fixture
def now(monkeypatch):
    """Seconds of the clock by which runs are timed."""
    now = [0.0]
    monkeypatch.setattr(costs.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def start(small_digits, tmp_path):
    def start(name="run", **changes):
        data = {
            "pool": small_digits.pool,
            "tasks": dict(list(small_digits.tasks.items())[:2]),
            "space": "task_arithmetic",
            "evaluations": 12,
            "driver": {"kind": "nsga2", "population": 4},
        }
        return Study.create(tmp_path / name, StudySettings.parse(data | changes, "test", Path.cwd()))

    return start


@pytest.fixture
def signals():
    """Handlers of signals as the command line has them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}
    interrupts.install()
    yield
    interrupts.install()  # forgets the signals of the test
    for number, handler in before.items():
        signal.signal(number, handler)


def asked(study):
    return [line for line in study.journal_path.read_bytes().splitlines() if b'{"ask"' in line]


@pytest.mark.parametrize("budget", [{"hours": 2}, {"worker_hours": 2}])
def test_a_budget_of_time_ends_the_search_and_a_larger_one_goes_on_with_the_same_search(budget, start, now):
    whole, study = start("whole"), start(**budget)
    whole.run(Slow(now))
    assert whole.stopped is None
    study.run(Slow(now))
    assert study.stopped == next(iter(budget))
    assert study.spent == 4
    assert asked(study) == asked(whole)[:4]
    study.run(again := Slow(now))
    assert again.count == 0, "hours are summed over all runs"
    settings = study.settings.model_copy(update=dict.fromkeys(budget, 100.0))
    resumed = Study.open(study.folder, settings)
    resumed.run(Slow(now))
    assert resumed.stopped is None
    assert resumed.journal_path.read_bytes() == whole.journal_path.read_bytes()


def test_the_replay_of_the_journal_uses_no_hours(start, now, monkeypatch):
    study = start(hours=1)
    study.run(Slow(now))
    replay = Study.replay

    def slow(self, driver):
        now[0] += 36000
        yield from replay(self, driver)

    monkeypatch.setattr(Study, "replay", slow)
    resumed = Study.open(study.folder, study.settings.model_copy(update={"hours": 2.0}))
    resumed.run(Slow(now))
    assert resumed.spent == 4


def test_worker_hours_count_each_slot(start, now):
    study, evaluator = start(worker_hours=2), Slow(now)
    evaluator.slots = 4
    study.run(evaluator)
    assert evaluator.count == 4, "those of the first half hour, which end after it"


def test_runs_are_recorded_with_their_time_and_end(start, now):
    study = start(hours=1)
    study.run(Slow(now))
    (run,), damaged = costs.runs(study.folder)
    assert (run.ended, run.elapsed, run.slots, damaged) == ("hours", 3600, 1, 0)
    assert run.finished == [(0, 1800, 1800), (1, 3600, 1800)]
    assert run.examples == study.parts.sizes["search"]
    assert costs.totals(study.folder) == ({"search: score": 3600}, 0), "not the driver's"


def test_sigterm_keeps_what_ends_within_the_grace(start, now, signals):
    study = start()
    study.run(Slow(now, lambda count: count == 3 and signal.raise_signal(signal.SIGTERM)))
    assert study.stopped == "terminated"
    assert study.spent == 3
    assert costs.runs(study.folder)[0][-1].ended == "terminated"
    interrupts.install()
    study.run(Slow(now))
    assert study.stopped is None
    assert study.spent == 12


def test_a_candidate_that_outlasts_the_grace_is_interrupted(start, now, signals):
    def hang(count):
        if count == 3:
            signal.raise_signal(signal.SIGTERM)
            signal.pause()

    study = start()
    with pytest.raises(KeyboardInterrupt):
        study.run(Slow(now, hang), grace=0.05)
    assert len(study.population()) == 2
    assert costs.runs(study.folder)[0][-1].ended == "terminated"
    assert interrupts.terminated()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_interrupts_at_once(number, start, now, signals):
    def twice(count):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt):
        start().run(Slow(now, twice), grace=1000)


def test_workers_that_end_by_the_same_sigterm_are_no_error(start, now, signals):
    def lose(count):
        if count == 2:
            signal.raise_signal(signal.SIGTERM)
            raise EvaluatorError("all workers are lost")

    study = start()
    study.run(Slow(now, lose))
    assert study.stopped == "terminated"


def test_an_error_ends_a_run_by_its_text(start, now):
    def lose(count):
        raise EvaluatorError("all workers are lost")

    study = start()
    with pytest.raises(EvaluatorError):
        study.run(Slow(now, lose))
    assert costs.runs(study.folder)[0][-1].ended == "EvaluatorError: all workers are lost"
