"""The status of a search: read from a study's folder alone, without locks, models and torch."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import evomerge
from prometheus_client.parser import text_string_to_metric_families

from evomerge import costs, status
from evomerge.cli import status as cli_status
from evomerge.errors import JournalError, StudyError
from evomerge.journal import Journal
from evomerge.recipe import Recipe, base
from evomerge.trial import Evaluation, Proposal

OBJECTIVES = ["maths/accuracy", "code/accuracy"]


def scores(maths, code, examples=2):
    return {
        "maths/accuracy": np.full(examples, maths, np.float32),
        "code/accuracy": np.full(examples, code, np.float32),
    }


def recipe(scale):
    return Recipe.parse(
        {"merge": {"method": "task_arithmetic", "inputs": [{"expert": "maths"}], "parameters": {"lambda": scale}}}
    )


class Search:
    """A study's folder, written as a search would, by a clock that the test sets."""

    def __init__(self, folder, patch, slots=1, budget=10, **settings):
        self.folder, self.slots, self.count = folder, slots, 0
        self.now = 0.0
        patch.setattr(costs.time, "monotonic", lambda: self.now)
        header = {"settings": {"name": "test", "evaluations": budget, **settings}}
        (folder / "study.json").write_text(json.dumps(header))

    def run(self, *evaluations, ended="done", proposals=None, objectives=OBJECTIVES):
        """Record a run of `(seconds from its start, Evaluation)`; one that did not end if `ended` is None."""
        clock = costs.Clock(self.folder, self.slots, {"maths": 2, "code": 2}, objectives)
        start = self.now
        with Journal(self.folder / "journal.jl") as record:
            for i, (at, evaluation) in enumerate(evaluations):
                proposal = proposals[i] if proposals else Proposal(self.count, recipe(0.1 * self.count))
                self.count += 1
                record.ask(proposal)
                record.tell(proposal.number, evaluation)
                self.now = start + at
                clock.add(proposal, evaluation)
        if ended is not None:
            clock.end(ended)

    def lock(self, process, host=None):
        (self.folder / "lock").write_text(f"process {process} on {host or socket.gethostname()}")

    @property
    def status(self):
        return status.read(self.folder)


@pytest.fixture
def search(tmp_path, monkeypatch):
    return lambda **settings: Search(tmp_path, monkeypatch, **settings)


def good(at, seconds=1.0, maths=0.5, code=0.5):
    return at, Evaluation(scores=scores(maths, code), seconds={"merge": 0.25 * seconds, "score": 0.75 * seconds})


def test_a_study_that_never_ran_has_not_started(search):
    found = search().status
    assert (found.state, found.spent, found.left, found.best) == ("not started", 0, None, None)


def test_done_failures_and_the_best_candidate_are_those_of_the_journal(search):
    study = search(budget=5)
    failures = [(4.0, Evaluation(error=f"ValueError: loss {number}")) for number in ("1.5", "2e-3")]
    study.run(good(1), good(2, maths=1.0, code=0.25), good(3, maths=0.0, code=0.75), *failures)
    found = study.status
    assert (found.state, found.spent, found.budget, found.evaluated, found.failed) == ("done", 5, 5, 5, 2)
    assert found.failures == (("ValueError: loss 1.5", 2),), "errors that differ only in numbers have one cause"
    assert found.best == status.Best(1, 0.625, {"maths/accuracy": 1.0, "code/accuracy": 0.25})
    assert found.bests == {"maths/accuracy": (1, 1.0), "code/accuracy": (2, 0.75)}
    assert found.curve == (0.5, 0.625, 0.625)


def test_seconds_are_by_part_and_the_drivers_are_apart(search):
    study = search()
    study.run(good(2), good(4))
    assert study.status.seconds == {"search: merge": 0.5, "search: score": 1.5, "search: driver": 0.0}


def test_different_metrics_have_no_mean(search):
    study = search()
    vectors = {"maths/accuracy": np.ones(2, np.float32), "code/log_likelihood": -np.ones(2, np.float32)}
    study.run((1, Evaluation(scores=vectors)), objectives=sorted(vectors))
    assert study.status.best is None
    assert study.status.bests == {"maths/accuracy": (0, 1.0), "code/log_likelihood": (0, -1.0)}
    assert study.status.curve == ()


def test_parts_count_as_shares_and_are_compared_once_all_of_them_are_there(search):
    study = search(budget=3)
    one, two = {"maths": (0,), "code": (0,)}, {"maths": (1,), "code": (1,)}
    parts = [Proposal(0, base(), examples=one), Proposal(1, base(), examples=two), Proposal(2, recipe(1), examples=one)]
    results = [(1.0, Evaluation(scores=scores(*pair, examples=1))) for pair in ((1, 0), (0, 0), (1, 1))]
    study.run(*results, proposals=parts)
    assert study.status.spent == 1.5
    assert study.status.best.number == 1
    assert study.status.best.scores == {"maths/accuracy": 0.5, "code/accuracy": 0.0}


def test_an_evaluation_with_slopes_counts_as_three(search):
    study = search(budget=9)
    examples = {"maths": (0, 1), "code": (0, 1)}
    study.run(good(1), proposals=[Proposal(0, base(), slopes=examples)])
    assert study.status.spent == 3


def test_the_time_left_leaves_out_the_start_and_is_none_until_it_is_known(search, monkeypatch):
    monkeypatch.setattr(status, "_locks", lambda process, path: True)
    study = search(slots=2, budget=12)
    study.lock(os.getpid())
    study.run(good(100, 90), good(101, 91), good(111, 10), ended=None)
    assert study.status.state == "running"
    assert study.status.left is None
    study.run(good(100, 90), good(101, 91), good(111, 10), good(111, 8), ended=None)
    # By hand: 2 candidates in 10 seconds after the first two, 5 are left of 12; 18 of 20 seconds of the two workers were work.
    assert study.status.left == pytest.approx(25)
    assert study.status.idle == pytest.approx(0.1)


def test_the_time_left_and_the_idle_share_leave_out_the_compilation_of_merges_wherever_it_falls(search, monkeypatch):
    monkeypatch.setattr(status, "_locks", lambda process, path: True)
    study = search(slots=2, budget=12)
    study.lock(os.getpid())
    late = Evaluation(scores=scores(0.5, 0.5), seconds={"merge": 1.0, "compile": 20.0, "score": 8.0})
    study.run(good(100, 90), good(101, 91), (121, late), good(121, 9), ended=None)
    # By hand: 2 candidates in 20 seconds of two workers, of which 20 of 40 compiled; 18 of the other 20 were work. 8 are left of 12.
    assert study.status.left == pytest.approx(40)
    assert study.status.idle == pytest.approx(0.1)
    assert study.status.seconds["search: compile"] == 20


@pytest.fixture
def queued(search, monkeypatch):
    """A search that runs, and its queue, with two candidates that wait, made ten minutes ago."""
    monkeypatch.setattr(status, "_locks", lambda process, path: True)
    study = search(workers={"queue": "q", "in_flight": 4, "lease": 60.0})
    queue = study.folder / "q"
    header = json.loads((study.folder / "study.json").read_text())
    header["settings"]["workers"]["queue"] = str(queue)
    (study.folder / "study.json").write_text(json.dumps(header))
    for name in ("todo", "workers"):
        (queue / name).mkdir(parents=True)
    for name in ("clock", "todo/1", "todo/2", "todo/.temporary"):
        (queue / name).touch()
    os.utime(queue / "workers", (time.time() - 600,) * 2)
    study.lock(os.getpid())
    study.run(good(1), ended=None)
    return study, queue


def test_a_queue_without_a_worker_is_said_with_what_to_type(queued):
    study, queue = queued
    assert (study.status.workers, study.status.queue.waiting) == (0, 2)
    assert study.status.queue.alone == pytest.approx(600, abs=60)
    said = evomerge("status", study.folder).stdout
    assert "2 candidates wait, and no worker has shown itself for 1" in said
    assert f"type `evomerge worker {queue}`" in said


def test_workers_of_a_queue_are_those_whose_files_are_younger_than_a_lease(queued):
    study, queue = queued
    for name, age in (("one", 0), ("two", 59), ("dead", 61)):
        (queue / "workers" / name).touch()
        os.utime(queue / "workers" / name, ((queue / "clock").stat().st_mtime - age,) * 2)
    assert (study.status.workers, study.status.queue.alone) == (2, None)
    assert f"2 at the queue {queue}; 2 candidates wait" in evomerge("status", study.folder).stdout


def test_a_queue_that_is_gone_or_of_another_study_version_is_left_out(queued):
    study, queue = queued
    shutil.rmtree(queue)
    assert study.status.queue is None
    assert study.status.workers == 1


def test_a_resumed_search_has_the_rate_of_the_run_before_for_its_own_workers(search, monkeypatch):
    monkeypatch.setattr(status, "_locks", lambda process, path: True)
    study = search(budget=10)
    study.lock(os.getpid())
    study.run(good(50), good(54), good(58), ended="terminated")
    study.slots = 2
    study.run(good(50), ended=None)
    assert study.status.left == pytest.approx(6 * 4 / 2)


@pytest.mark.parametrize(("budget", "left"), [({"hours": 0.01}, 16), ({"worker_hours": 0.01}, 16), ({"hours": 8}, 70)])
def test_the_time_left_ends_with_the_first_budget(budget, left, search, monkeypatch):
    monkeypatch.setattr(status, "_locks", lambda process, path: True)
    study = search(**budget)
    study.lock(os.getpid())
    study.run(good(0), good(10), good(20), ended=None)
    assert study.status.left == pytest.approx(left)
    ((name, whole),) = budget.items()
    assert study.status.times == {name: (pytest.approx(20 / 3600), whole)}
    assert f"0.00556 of {whole} {name.replace('_', '-')}" in evomerge("status", study.folder).stdout


@pytest.mark.parametrize(
    "ended", ["terminated", "interrupted", "hours", "StudyError: the first 8 candidates failed", None]
)
def test_a_search_that_no_process_runs_is_stopped_and_says_why(ended, search):
    study = search()
    study.lock(2**22 + 1)  # above the largest process of Linux
    study.run(good(1), ended=ended)
    assert (study.status.state, study.status.ended, study.status.left) == ("stopped", ended, None)
    said = evomerge("status", study.folder).stdout
    assert f"evomerge resume {study.folder}" in said
    assert {"terminated": "SIGTERM", None: "killed"}.get(ended, "stopped") in said


def test_a_search_whose_driver_proposes_no_more_is_done(search):
    study = search(budget=100)
    study.run(good(1), ended="done")
    assert study.status.state == "done"


def test_a_search_on_another_machine_runs_by_its_own_word(search):
    study = search()
    clock = costs.Clock(study.folder, 1, {}, [])
    study.lock(os.getpid(), "elsewhere")
    line = (study.folder / "costs.jl").read_text().replace(json.dumps(socket.gethostname()), '"elsewhere"')
    (study.folder / "costs.jl").write_text(line)
    assert (study.status.state, study.status.certain) == ("running", False)
    clock.end("terminated")
    assert study.status.state == "not started"


def test_the_lock_of_a_living_process_is_seen_and_not_touched(search):
    study = search()
    code = (
        "import fcntl, os, socket, sys, time\n"
        "file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print(f'process {os.getpid()} on {socket.gethostname()}', file=file, flush=True)\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, study.folder / "lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        assert study.status.state == "running"
        assert study.status.process == f"process {process.pid} on {socket.gethostname()}"
        process.stdin.close()
    assert study.status.state == "not started"


def test_a_study_from_before_runs_were_recorded_has_its_scores(search):
    study = search(budget=4)
    study.run(good(1), good(2, maths=1.0))
    lines = (study.folder / "costs.jl").read_text().splitlines()
    old = [json.loads(line) for line in lines if "number" in line]
    kept = [json.dumps({key: entry[key] for key in ("number", "split", "seconds")}) for entry in old]
    (study.folder / "costs.jl").write_text("\n".join(kept) + "\n")
    found = study.status
    assert (found.state, found.spent, found.best.number, found.idle, found.left) == ("stopped", 2, 1, None, None)
    assert found.seconds == {"search: merge": 0.5, "search: score": 1.5}


def test_a_torn_line_is_left_out_and_a_damaged_one_is_refused(search):
    study = search()
    study.run(good(1), good(2))
    journal = study.folder / "journal.jl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-5])
    assert (study.status.evaluated, study.status.pending) == (1, 1)
    journal.write_bytes(whole.replace(b'"tell":0', b'"tell":7', 1))
    with pytest.raises(JournalError, match="line 2 is damaged"):
        study.status  # noqa: B018  # it reads


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"{}", b'{"settings": {"name": "x"}}', b"[" * 100_000])
def test_a_folder_without_a_study_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / "study.json").write_bytes(content)
    with pytest.raises(StudyError, match=r"study\.json"):
        status.read(tmp_path)


def test_the_command_prints_json_and_writes_metrics_and_changes_nothing_in_the_folder(search, tmp_path_factory):
    study = search(budget=2)
    study.run(good(1), (2, Evaluation(error="boom")))
    before = {path.name: path.read_bytes() for path in study.folder.iterdir()}
    file = tmp_path_factory.mktemp("metrics") / "evomerge.prom"
    done = evomerge("status", study.folder, "--json", "--prometheus", file)
    data = json.loads(done.stdout)
    assert (data["state"], data["spent"], data["failures"]) == ("done", 2, [["boom", 1]])
    assert metrics(file.read_text(), study.folder)["evaluations_done", ()] == 2
    assert {path.name: path.read_bytes() for path in study.folder.iterdir()} == before


def metrics(text, folder):
    """Return the values of metrics by name and labels, as Prometheus' own client reads them; each is there once, of one study."""
    families = [*text_string_to_metric_families(text)]
    assert len({family.name for family in families}) == len(families)
    assert {family.type for family in families} == {"gauge"}
    assert all(family.documentation for family in families)
    found = {}
    for sample in (sample for family in families for sample in family.samples):
        labels = dict(sample.labels)
        assert (labels.pop("study"), labels.pop("folder")) == ("test", str(folder.resolve()))
        assert sample.timestamp is None, "the textfile collector refuses them"
        key = sample.name.removeprefix("evomerge_"), tuple(labels.values())
        assert key not in found
        found[key] = sample.value
    return found


def test_metrics_are_those_of_the_search_in_the_format_of_prometheus(search):
    study = search(budget=8)
    errors = [
        "ValueError: loss 1",
        "ValueError: loss 2",
        "worker died 3 times on this candidate: ActorDiedError",
        '"\\\n',
    ]
    failures = [(4, Evaluation(error=error)) for error in errors]
    study.run(good(1, maths=0.25), good(2, maths=1.0), good(3, maths=0.0, code=0.75), *failures)
    found = metrics(cli_status.metrics(study.status), study.folder)
    assert found["running", ()] == found["workers", ()] == 0
    assert (found["evaluations_done", ()], found["evaluations_budget", ()]) == (7, 8)
    assert found["evaluations_failed", ()] == 4
    causes = {labels[0]: value for (name, labels), value in found.items() if name == "failures"}
    assert causes == {"ValueError": 2, "worker died # times on this candidate": 1, errors[3]: 1}
    assert found["seconds", ("search: score",)] == 2.25
    assert found["best_score", ("maths/accuracy",)] == 1
    assert found["best_mean", ()] == 0.75
    # By hand: above (0, 0.5) the front, (1, 0.5) and (0, 0.75), dominates nothing.
    assert found["hypervolume", ()] == 0


def test_the_hypervolume_is_above_the_lowest_scores_of_the_first_eight_candidates(search):
    study = search(budget=20)
    study.run(*(good(at, maths=0.5, code=0.25 if at else 0.5) for at in range(8)), good(8, maths=0.75, code=0.75))
    # By hand: the reference is (0.5, 0.25).
    assert study.status.hypervolume == pytest.approx(0.25 * 0.5)
    study.run(good(1, maths=1.0, code=0.5), good(2, maths=0.0, code=0.0))
    assert study.status.hypervolume == pytest.approx(0.25 * 0.5 + 0.25 * 0.25)
    assert "hypervolume 0.1875 above" in evomerge("status", study.folder).stdout


def test_metrics_of_a_queue_say_how_many_wait_and_who_is_there(queued):
    study, queue = queued
    (queue / "workers" / "one").touch()
    found = metrics(cli_status.metrics(study.status), study.folder)
    assert (found["running", ()], found["workers", ()], found["queue_waiting", ()]) == (1, 1, 2)


def test_metrics_are_replaced_in_one_step_and_all_may_read_them(search, tmp_path_factory):
    study, folder = search(), tmp_path_factory.mktemp("metrics")
    file = folder / "evomerge.prom"
    for _ in range(2):
        file.touch()
        before = file.stat().st_ino
        os.link(file, folder.parent / "kept")
        evomerge("status", study.folder, "--prometheus", file)
        assert file.stat().st_ino != before
        (folder.parent / "kept").unlink()
        assert [path.name for path in folder.iterdir()] == ["evomerge.prom"]
        assert file.stat().st_mode & 0o777 == 0o644


def test_status_imports_neither_torch_nor_transformers(search):
    code = (
        f"import sys; sys.argv = ['evomerge', 'status', {str(search().folder)!r}]\n"
        "from evomerge.cli import main\n"
        "try: main()\n"
        "except SystemExit as exit: print(exit.code, sorted({'torch', 'transformers', 'ray', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("0 []\n")
