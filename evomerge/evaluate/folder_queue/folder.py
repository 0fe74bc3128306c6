"""QueueFolder: the files of a queue, and the moves by which candidates pass between a study's process and its workers.

    setup.json         what a worker loads: written when a study opens the queue
    lock               held by the study's process
    todo/JOB           a proposal that no worker has
    claimed/JOB@WORKER a proposal that a worker evaluates
    done/JOB           a result
    workers/WORKER     one file per worker, whose time shows that it lives
    stop               the search is over: workers end
    clock              touched to read the time of the file system

All content is JSON, written to a temporary file and renamed. A job is named by its proposal's number and a digest of what is to
be scored: a result can belong to no other proposal, and a study that is resumed finds its own results again.

A worker claims a job by a rename from `todo` to `claimed`, of which the file system lets one worker succeed. It touches the file
before, and then at least four times in each lease. A claim that is older than a lease is that of a dead worker. Its age is the
difference of two times of this file system, that of the claim and that of a file touched now: the clocks of machines do not
matter. The study's process writes a lost job to `todo` again; should the lost worker finish all the same, the first result counts,
and the second is deleted.

Results carry their sha256, against damage by disks and networks. It is no signature: who can write to the folder can write scores.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

from evomerge import files
from evomerge.errors import EvaluatorError
from evomerge.evaluate.setup import Setup
from evomerge.presence import listed, time_of
from evomerge.recipe import Json, canonical_json, describe
from evomerge.trial import Evaluation, Examples, Proposal, Split

_JOB = re.compile(r"\d{8,}-[0-9a-f]{32}")
_FOLDERS = ("todo", "claimed", "done", "workers")


class Opened(BaseModel):
    """The content of `setup.json`.

    `study` is the study's directory. `lease` is in seconds. `same` has the digests of models, data and code, and `versions` those of
    packages, where the study runs.
    """

    format: Literal[1] = 1
    study: str
    lease: float
    setup: Setup
    same: dict[str, dict[str, Any]] = {}
    versions: dict[str, str] = {}


class Job(BaseModel):
    """The content of a job: a proposal, with the recipes of its ancestors by id, and the seconds that it may take."""

    recipe: Any
    split: Split
    examples: dict[str, tuple[int, ...]] | None
    slopes: dict[str, tuple[int, ...]] | None
    lineage: dict[str, Any]
    deadline: float | None


@dataclass(frozen=True, slots=True)
class Result:
    """What a worker says of a job: the evaluation of the recipe of this id, or why it has none."""

    recipe: str
    evaluation: Evaluation | None = None
    lost: str = ""


def job_name(proposal: Proposal) -> str:
    """Return the name of a proposal's job. Names sort by number."""

    def listed(examples: Examples | None) -> Any:
        return None if examples is None else [[task, list(indices)] for task, indices in examples.items()]

    scored = [proposal.recipe.id, proposal.split, listed(proposal.examples), listed(proposal.slopes)]
    return f"{proposal.number:08d}-{hashlib.sha256(canonical_json(scored).encode()).hexdigest()[:32]}"


class QueueFolder:
    """The files of a queue in the folder `path`. Holds no state."""

    def __init__(self, path: Path) -> None:
        """Touch nothing yet."""
        self.path = path

    def create(self) -> None:
        """Make the folders. Raises `EvaluatorError` where one of them is a link or a file."""
        for name in _FOLDERS:
            folder = self.path / name
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                raise EvaluatorError(
                    f"{folder}: expected a folder of the queue; remove it, or give another folder by --queue"
                )
            folder.mkdir(parents=True, exist_ok=True)

    def opened(self) -> Opened | None:
        """Return what a study has written when it opened the queue, None if no study has. Raises `EvaluatorError`."""
        path = self.path / "setup.json"
        try:
            return Opened.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            reason = describe(error, str(path), {})
            raise EvaluatorError(
                f"{reason}; expected a queue that `evomerge run STUDY.yaml --queue DIR` has opened"
            ) from None

    def open(self, opened: Opened) -> None:
        """Open the queue for workers; a search that ended here before is forgotten.

        Raises `EvaluatorError` for the queue of another study, or of one whose models, tasks or settings were others.
        """
        before = self.opened()
        if before is not None:
            was, now = (
                {**one.model_dump(mode="json", exclude={"lease", "versions"}), "setup": _scoring(one.setup)}
                for one in (before, opened)
            )
            if was != now:
                changed = ", ".join(f"`{key}`" for key in now if now[key] != was[key])
                raise EvaluatorError(
                    f"{self.path}: the queue of {before.study}, opened with another {changed}; "
                    "give a new folder by --queue, or remove this one"
                )
        if before != opened:
            files.write(self.path / "setup.json", opened.model_dump_json(indent=2) + "\n")
        (self.path / "stop").unlink(missing_ok=True)

    def stop(self) -> None:
        """Tell the workers that the search is over."""
        files.write(self.path / "stop", "the search is over\n")

    def stopped(self, since: float) -> bool:
        """Return whether a search ended after the time `since`, of the file system."""
        written = time_of(self.path / "stop")
        return written is not None and written >= since

    def names(self, folder: Literal["todo", "done"]) -> list[str]:
        """Return the jobs in a folder, those of low numbers first."""
        return sorted(name for name in listed(self.path / folder) if _JOB.fullmatch(name))

    def claims(self) -> Iterator[tuple[str, Path]]:
        """Yield the name and the file of each claimed job."""
        for entry in listed(self.path / "claimed"):
            name, at, _ = entry.partition("@")
            if at and _JOB.fullmatch(name):
                yield name, self.path / "claimed" / entry

    def write_job(self, name: str, proposal: Proposal, lineage: Mapping[str, Json], deadline: float | None) -> None:
        """Write a job for workers to claim."""
        job = {
            "recipe": proposal.recipe.data,
            "split": proposal.split,
            "examples": proposal.examples and dict(proposal.examples),
            "slopes": proposal.slopes and dict(proposal.slopes),
            "lineage": lineage,
            "deadline": deadline,
        }
        files.write(self.path / "todo" / name, json.dumps(job) + "\n")

    def remove_job(self, name: str) -> None:
        """Remove a job wherever workers may find it or have it; its result stays."""
        (self.path / "todo" / name).unlink(missing_ok=True)
        for claimed, path in self.claims():
            if claimed == name:
                path.unlink(missing_ok=True)

    def claim(self, name: str, worker: str) -> Path | None:
        """Claim a job for a worker and return the claim's file, None if another has it."""
        job, claim = self.path / "todo" / name, self.path / "claimed" / f"{name}@{worker}"
        try:
            os.utime(job)  # before the rename, which does not change it: a claim is never as old as its job
            job.replace(claim)
        except FileNotFoundError:  # NFS may say so of a rename that it has done, when it was told twice
            return claim if claim.exists() else None
        return claim

    def read_job(self, claim: Path) -> Job:
        """Return a claimed job. Raises ValueError for one that is damaged, and FileNotFoundError for one taken back."""
        return Job.model_validate_json(claim.read_bytes())

    def give_back(self, claim: Path) -> None:
        """Return a claimed job to `todo`, unless it has been taken back."""
        name = claim.name.partition("@")[0]
        try:
            claim.replace(self.path / "todo" / name)
        except FileNotFoundError:
            return

    def write_result(self, claim: Path, result: Result) -> None:
        """Write the result of a claimed job, then end the claim."""
        name = claim.name.partition("@")[0]
        content: dict[str, Any] = {"job": name, "recipe": result.recipe}
        if result.evaluation is None:
            content["lost"] = result.lost
        else:
            content |= {"evaluation": result.evaluation.to_json(), "seconds": dict(result.evaluation.seconds)}
        content["sha256"] = _digest(content)
        files.write(self.path / "done" / name, json.dumps(content) + "\n")
        claim.unlink(missing_ok=True)

    def read_result(self, name: str) -> Result:
        """Return the result of a job. Raises ValueError for one that is damaged, or of another job."""
        content = json.loads((self.path / "done" / name).read_bytes())
        if not isinstance(content, dict) or content.pop("sha256", None) != _digest(content) or content["job"] != name:
            raise ValueError("not the content that a worker wrote")
        if "lost" in content:
            return Result(content["recipe"], lost=content["lost"])
        evaluation = Evaluation.from_json(content["evaluation"])
        return Result(content["recipe"], replace(evaluation, seconds=content["seconds"]))

    def remove_result(self, name: str) -> None:
        """Remove the result of a job, if there is one."""
        (self.path / "done" / name).unlink(missing_ok=True)

    def new_worker(self, host: str) -> tuple[str, Path, float]:
        """Return the name and the file of a new worker, and the time of the file system."""
        plain = re.sub(r"[^\w.-]|^\.", "_", host)
        handle, name = tempfile.mkstemp(prefix=f"{plain}-{os.getpid()}-", dir=self.path / "workers")
        with os.fdopen(handle) as file:
            return Path(name).name, Path(name), os.fstat(file.fileno()).st_mtime

    def expired(self, lease: float) -> Iterator[tuple[str, Path]]:
        """Yield the name and the file of each claim that is older than a lease. Remove the files of workers that are."""
        clock = self.path / "clock"
        clock.touch()
        now = clock.stat().st_mtime
        for name in listed(self.path / "workers"):
            if _older(path := self.path / "workers" / name, now - lease):
                path.unlink(missing_ok=True)
        for name, claim in self.claims():
            if _older(claim, now - lease):
                yield name, claim


def touch(path: Path) -> None:
    """Give a file the present time of the file system, if it is still there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return


def _scoring(setup: Setup) -> dict[str, Any]:
    """Return a setup as JSON data without what changes no score."""
    data: dict[str, Any] = TypeAdapter(Setup).dump_python(setup, mode="json")
    return {key: value for key, value in data.items() if key not in ("shared_mib", "gpus")}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _older(path: Path, time: float) -> bool:
    touched = time_of(path)
    return touched is not None and touched < time
