"""Studies whose workers are other processes: the tasks of `examples/slurm.sh`, some of which are killed."""

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import yaml
from commands import evomerge

from evomerge.study import Study

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm.sh"


def wait_for(condition):
    due = time.monotonic() + 120.0
    while not condition():
        assert time.monotonic() < due
        time.sleep(0.01)


def test_a_study_whose_driver_and_workers_are_killed_has_the_digest_of_one_process(finished, study_file, tmp_path):
    data = yaml.safe_load(study_file.read_text()) | {"workers": {"queue": "q", "lease": 2, "in_flight": 4}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with ExitStack() as stack:

        def task(number):
            environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(number), "PATH": path}
            command = ["bash", SCRIPT, "study.yaml", "out"]
            child = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
            stack.callback(child.wait)
            stack.callback(child.kill)
            return child

        driver, first, second = map(task, range(3))
        journal = tmp_path / "out" / "journal.jl"
        wait_for(lambda: journal.exists() and len(journal.read_bytes().splitlines()) > 6)
        driver.kill()
        first.kill()
        driver.wait()
        assert task(0).wait(timeout=120) == 0
        assert second.wait(timeout=60) == 0
    assert Study.open(tmp_path / "out").digest() == Study.open(finished[0]).digest()


def test_the_script_is_bash():
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0


def test_a_queue_goes_without_a_number_of_workers(study_file, tmp_path):
    said = evomerge("run", study_file, "--queue", tmp_path, "--workers", 2, code=2).stderr
    assert "`--queue` goes without `--workers`" in said


def test_a_worker_without_a_study_ends_after_its_idle_time_and_writes_nothing(tmp_path):
    assert "no study has opened this queue" in evomerge("worker", tmp_path / "none", "--idle", 0, code=2).stderr
    assert not (tmp_path / "none").exists()
