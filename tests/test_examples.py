"""The examples for clusters, as far as they can be checked without one: what they start is checked by a dry run of that command."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml
from commands import evomerge

from evomerge import strict_yaml

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.sh"))
POD = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "spec": {
            "type": "object",
            "required": ["containers"],
            "properties": {
                "containers": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["name", "image", "resources", "volumeMounts"],
                        "properties": {
                            "resources": {"required": ["limits", "requests"]},
                            "volumeMounts": {"items": {"required": ["name", "mountPath"]}},
                        },
                    },
                },
                "volumes": {"type": "array", "items": {"required": ["name", "persistentVolumeClaim"]}},
            },
        }
    },
}
GROUP = {"type": "object", "required": ["template"], "properties": {"template": POD}}
RAY_JOB = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": {"required": ["name"], "properties": {"name": {"pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"}}},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["entrypoint", "rayClusterSpec"],
            "properties": {
                "entrypoint": {"type": "string"},
                "backoffLimit": {"type": "integer", "minimum": 0},
                "shutdownAfterJobFinishes": {"type": "boolean"},
                "ttlSecondsAfterFinished": {"type": "integer", "minimum": 0},
                "rayClusterSpec": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["headGroupSpec"],
                    "properties": {
                        "rayVersion": {"type": "string"},
                        "authOptions": {"properties": {"mode": {"enum": ["disabled", "token"]}}},
                        "headGroupSpec": GROUP,
                        "workerGroupSpecs": {
                            "type": "array",
                            "items": GROUP | {"required": ["groupName", "minReplicas", "maxReplicas", "template"]},
                        },
                    },
                },
            },
        },
    },
}
"""Those fields of KubeRay's RayJob (ray.io/v1) that the example has, and which of them it must have."""


@pytest.fixture
def shared(small_digits, tmp_path):
    """A folder in place of the one that all nodes see, with a study."""
    data = {"name": "night", "pool": small_digits.pool, "tasks": {"turned": small_digits.tasks["turned"]}}
    data |= {"space": "task_arithmetic", "evaluations": 20}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return tmp_path


@pytest.fixture
def started(tmp_path):
    """A function that runs a script of the examples, and returns how it started a program, which is not run."""

    def start(script, program, *arguments, **environment):
        stub, record = tmp_path / "bin" / program, tmp_path / "started"
        stub.parent.mkdir()
        stub.write_text(f'#!/bin/bash\nprintf "%s\\0" "$@" > {record}\n')
        stub.chmod(0o755)
        environment = os.environ | {"PATH": f"{stub.parent}:{os.environ['PATH']}"} | environment
        subprocess.run(["bash", EXAMPLES / script, *arguments], cwd=tmp_path, env=environment, check=True)
        return record.read_text().split("\0")[:-1]

    return start


def dry_run(*arguments):
    assert arguments[0] == "run"
    said = evomerge(*arguments, "--dry-run").stdout
    assert "20 evaluations" in said
    return said


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_script_is_bash_and_can_be_executed(script):
    assert subprocess.run(["bash", "-n", EXAMPLES / script], check=False).returncode == 0
    assert os.access(EXAMPLES / script, os.X_OK)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_script_without_arguments_starts_nothing(script):
    done = subprocess.run(
        ["bash", EXAMPLES / script], env={"PATH": os.environ["PATH"]}, capture_output=True, check=False
    )
    assert done.returncode
    assert b"unbound variable" in done.stderr


def test_the_study_of_a_slurm_array_is_its_first_task_and_the_others_are_workers(shared, started):
    command = started("slurm.sh", "evomerge", "study.yaml", "runs/night", SLURM_ARRAY_TASK_ID="0")
    assert command[-1] == "runs/night.queue"
    said = dry_run(command[0], shared / command[1], *command[2:-1], shared / command[-1])
    assert f"evomerge worker {shared / 'runs' / 'night.queue'}" in said


def test_the_job_of_a_ray_cluster_runs_the_study_by_paths_that_all_nodes_have(shared, started):
    command = started("ray_job.sh", "ray", "study.yaml", "runs/night", "2")
    assert command[:5] == ["job", "submit", "--no-wait", "--", "evomerge"]
    assert command[6:9] == [str(shared / "study.yaml"), "-o", str(shared / "runs" / "night")]
    assert "2 workers" in dry_run(*command[5:])


def test_the_job_of_kubernetes_has_the_fields_of_a_ray_job_and_runs_a_study_on_all_its_workers(shared):
    job = json.loads(json.dumps(strict_yaml.read(EXAMPLES / "kuberay.yaml")))
    jsonschema.Draft202012Validator(RAY_JOB).validate(job)
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token", "evomerge refuses other clusters"
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]
    for pod in (head["template"]["spec"], workers["template"]["spec"]):
        assert [mount["name"] for mount in pod["containers"][0]["volumeMounts"]] == [
            one["name"] for one in pod["volumes"]
        ]
    program, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert program == "evomerge"
    cpus = int(workers["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert arguments[-2:] == ["--workers", str(workers["replicas"] * cpus)]
    said = dry_run(*(word.replace("/shared", str(shared)) for word in arguments))
    assert f"{workers['replicas'] * cpus} workers" in said
