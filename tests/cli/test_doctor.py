"""`evomerge doctor` looks at the machine and at a study, and says what to type."""

import resource
from types import SimpleNamespace

import pytest
import torch
from commands import evomerge

from evomerge.cli import doctor
from evomerge.errors import EvaluatorError


def usage(total, free):
    return SimpleNamespace(total=total, free=free)


GIB = 1 << 30


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine without anything to complain of."""
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(900 * GIB, 500 * GIB))
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda process: set(range(4)))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: name if name == "g++" else None)
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda kind: (65536, 65536))
    monkeypatch.setattr(doctor, "_available", lambda: 64 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    return monkeypatch


def complaints(what=None, *, ray=False):
    return [check for check in doctor.checks(what, ray=ray) if check.level != "ok"]


def test_a_fit_machine_has_no_complaint_and_exits_with_0(tmp_path):
    done = evomerge("doctor", tmp_path / "study.yaml", cwd=tmp_path, code=2)
    assert "no such study file" in done.stdout
    done = evomerge("doctor", cwd=tmp_path)
    assert {line.split()[0] for line in done.stdout.splitlines()} == {"ok"}
    assert f"torch {torch.__version__.partition('+')[0]}" in done.stdout


@pytest.mark.parametrize(("free", "level"), [(5 * GIB, "warning"), (GIB // 2, "problem")])
def test_little_disk_is_a_warning_and_less_a_problem(free, level, machine):
    machine.setattr(doctor.shutil, "disk_usage", lambda path: usage(900 * GIB, free))
    found = complaints()
    assert {check.level for check in found} == {level}
    assert len(found) == 4
    assert any("XDG_CACHE_HOME" in check.advice for check in found)


def test_small_shared_memory_says_what_docker_needs(machine):
    def small(path):
        return usage(GIB // 16 if str(path) == "/dev/shm" else 900 * GIB, 500 * GIB)

    machine.setattr(doctor.shutil, "disk_usage", small)
    (check,) = complaints()
    assert "--shm-size=1g" in check.advice


def test_few_open_files_name_the_limit_to_type(machine):
    machine.setattr(doctor.resource, "getrlimit", lambda kind: (1024, 524288))
    (check,) = complaints()
    assert check.advice == "type: ulimit -n 524288"
    machine.setattr(doctor.resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    assert complaints() == []


def test_more_threads_than_cores_are_a_warning(machine):
    machine.setattr(torch, "get_num_threads", lambda: 64)
    (check,) = complaints()
    assert check.advice == "type: export OMP_NUM_THREADS=4"


def test_without_a_compiler_merges_are_slow(machine):
    machine.setattr(doctor.shutil, "which", lambda name: None)
    (check,) = complaints()
    assert "C++" in check.what


def test_a_gpu_that_torch_does_not_see_is_a_warning(machine):
    machine.setattr(doctor.shutil, "which", lambda name: name if name in ("g++", "nvidia-smi") else None)
    (check,) = complaints()
    assert "sees no GPU" in check.what


def test_a_version_that_evomerge_refuses_is_a_problem(machine):
    machine.setattr(doctor.importlib.metadata, "requires", lambda name: ["torch>=999", 'absent>=1; extra == "x"'])
    (check,) = complaints()
    assert (check.level, check.advice) == ("problem", "type: pip install 'torch>=999'")


def test_a_folder_whose_files_cannot_be_locked_is_a_problem(machine, tmp_path):
    def refuse(file, how):
        raise OSError(37, "No locks available")

    machine.setattr(doctor.fcntl, "flock", refuse)
    (check,) = complaints()
    assert (check.level, "No locks available" in check.what) == ("problem", True)


def test_ray_is_started_only_if_asked_and_its_error_is_a_problem(machine):
    from evomerge.evaluate import ray

    def refuse():
        raise EvaluatorError("no Ray cluster; type --workers 1")

    machine.setattr(ray, "check_start", refuse)
    assert complaints() == []
    (check,) = complaints(ray=True)
    assert check == doctor.Check("problem", "Ray", "no Ray cluster; type --workers 1")


@pytest.mark.ray
def test_ray_starts(machine):
    machine.undo()
    assert not [check for check in complaints(ray=True) if "Ray" in check.what and check.level == "problem"]


def test_a_study_is_checked_for_its_folders_workers_and_memory(machine, pool_folder, tmp_path):
    file = tmp_path / "study.yaml"
    text = (
        f"pool: {{base: {pool_folder / 'base'}, experts: {{maths: {pool_folder / 'maths'}}}}}\nspace: task_arithmetic\n"
    )
    file.write_text(text)
    assert complaints(file) == []
    file.write_text(text.replace("/maths", "/absent") + "workers: 8\n")
    machine.setattr(
        doctor, "_available", lambda: 3 * sum(f.stat().st_size for f in (pool_folder / "base").glob("*.safetensors"))
    )
    levels = {check.level: check for check in complaints(file) if "memory" not in check.what}
    assert "absent is no folder" in levels["problem"].what
    assert [check.advice for check in complaints(file) if "workers" in check.what] == [
        "type --workers 4",
        f"{doctor.gib(doctor._available())} of memory are free: type --workers 3",
    ]
