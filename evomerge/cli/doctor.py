"""doctor: whether this machine is fit for a long search, before it starts."""

import fcntl
import importlib.metadata
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import typer
from packaging.requirements import Requirement

from evomerge import files, header, placement
from evomerge.checkpoints import hub
from evomerge.errors import EvomergeError, printable
from evomerge.parts import versions
from evomerge.progress import duration, gib
from evomerge.settings import StudySettings

_GIB = 1 << 30
_DISK = 1 * _GIB, 10 * _GIB  # free: less is a problem, or a warning
_MEMORY = 2 * _GIB
_SHARED = _GIB // 2  # of /dev/shm: twice the object store that a search asks Ray for
_OPEN_FILES = 4096
_COMPILERS = ("c++", "g++", "clang++")


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, whether it is as it should be, and otherwise what to type."""

    level: Literal["ok", "warning", "problem"]
    what: str
    advice: str = ""


def print_checks(what: Path | None, *, ray: bool) -> bool:
    """Print all checks of this machine and of a study's file or directory. Return whether there is no problem."""
    fit = True
    for check in checks(what, ray=ray):
        fit &= check.level != "problem"
        typer.echo(printable(f"{check.level:<8}  {check.what}{f': {check.advice}' * bool(check.advice)}"))
    return fit


def checks(what: Path | None, *, ray: bool) -> Iterator[Check]:
    """Yield the checks; those of a study, if one is given, after the others. With `ray`, Ray is started."""
    folder = Path("runs") if what is None or what.is_file() else what
    yield from _packages()
    yield from _processors()
    yield from _memory()
    disks = {"cache": (files.cache(), "XDG_CACHE_HOME"), "temporary files": (Path(tempfile.gettempdir()), "TMPDIR")}
    disks |= {"models of the hub": (_hub_cache(), "HF_HOME")}
    yield from _disk("runs", folder, "give another directory by `-o`")
    for name, (path, variable) in disks.items():
        yield from _disk(name, path, f"set {variable} to a folder on another disk")
    yield _locks(folder)
    yield from _limits()
    if ray:
        yield _ray()
    if what is not None:
        yield from _study(what)


def _packages() -> Iterator[Check]:
    found = versions()
    yield Check("ok", f"{', '.join(f'{name} {version}' for name, version in found.items())}, {platform.platform()}")
    for line in importlib.metadata.requires("evomerge") or ():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        if version is None or not wanted.specifier.contains(version, prereleases=True):
            yield Check(
                "problem",
                f"{wanted.name} {version or 'is missing'}",
                f"type: pip install '{wanted.name}{wanted.specifier}'",
            )


def _processors() -> Iterator[Check]:
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    if threads > cores:
        yield Check(
            "warning", f"torch uses {threads} threads on {cores} cores", f"type: export OMP_NUM_THREADS={cores}"
        )
    else:
        yield Check("ok", f"{cores} cores, {threads} threads of torch")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        yield Check("ok", f"devices: {', '.join(names)}")
    elif shutil.which("nvidia-smi"):
        advice = "install the torch of this machine's CUDA, see https://pytorch.org/get-started"
        yield Check("warning", f"a GPU's driver is there, but torch {torch.__version__} sees no GPU", advice)
    else:
        yield Check("ok", "no GPU: candidates run on the CPU")
    compilers = [name for name in (os.environ.get("CXX", ""), *_COMPILERS) if name and shutil.which(name)]
    if compilers:
        yield Check("ok", f"C++ compiler: {compilers[0]}")
    else:
        yield Check("warning", "no C++ compiler: merges take several times as long", "type: apt-get install g++")


def _available() -> int | None:
    """Return the bytes of memory that processes here may still take, None where the system does not tell."""
    return placement.free(torch.device("cpu"))


def _memory() -> Iterator[Check]:
    free = _available()
    if free is not None:
        low = free < _MEMORY
        advice = "stop other programs, or use a larger machine" if low else ""
        yield Check("warning" if low else "ok", f"{gib(free)} of memory are free", advice)


def _disk(name: str, path: Path, advice: str) -> Iterator[Check]:
    there = _existing(path)
    free = shutil.disk_usage(there).free
    what = f"{name}: {gib(free)} are free at {path}"
    if not os.access(there, os.W_OK):
        yield Check("problem", f"{name}: {there} cannot be written to", advice)
    elif free < _DISK[1]:
        yield Check("problem" if free < _DISK[0] else "warning", what, f"free some, or {advice}")
    else:
        yield Check("ok", what)


def _locks(folder: Path) -> Check:
    """Check that a file can be locked where studies are: two processes must not write one journal."""
    there = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return Check(
            "problem", f"files in {there} cannot be locked ({error.strerror})", "put studies on another disk by `-o`"
        )
    return Check("ok", f"files in {there} can be locked")


def _limits() -> Iterator[Check]:
    shared = Path("/dev/shm")  # noqa: S108  # only looked at
    if shared.exists():
        size = shutil.disk_usage(shared).total
        if size < _SHARED:
            advice = "in a container: --shm-size=1g; without it Ray uses the disk"
            yield Check("warning", f"{shared} has {gib(size)}, for Ray's workers", advice)
        else:
            yield Check("ok", f"{shared} has {gib(size)}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _OPEN_FILES:
        most = 65536 if hard == resource.RLIM_INFINITY else hard
        yield Check("warning", f"{soft} open files are allowed, few for Ray", f"type: ulimit -n {most}")
    else:
        yield Check("ok", "enough open files are allowed")


def _ray() -> Check:
    from evomerge.evaluate.ray import check_start

    start = time.monotonic()
    try:
        cpus = check_start()
    except EvomergeError as error:
        return Check("problem", "Ray", str(error))
    return Check("ok", f"Ray starts in {duration(time.monotonic() - start)}, with {cpus} CPUs in all for this test")


def _study(what: Path) -> Iterator[Check]:
    try:
        settings = header.read(what).settings if what.is_dir() else StudySettings.read(what)
    except EvomergeError as error:
        yield Check("problem", "the study", str(error))
        return
    cores, threads = len(os.sched_getaffinity(0)), settings.processes * settings.threads
    if threads > cores and "RAY_ADDRESS" not in os.environ:
        yield Check(
            "warning",
            f"{settings.processes} workers with {settings.threads} threads each on {cores} cores",
            f"type --workers {max(cores // settings.threads, 1)}",
        )
    for name, model in settings.models.items():
        if hub.hub_id(model) is None and not Path(model).is_dir():
            yield Check("problem", f"{name}: {model} is no folder", "correct it under `pool`")
    base, free = settings.models.get("base"), _available()
    weights = sum(file.stat().st_size for file in Path(base).glob("*.safetensors")) if base else 0
    if weights:
        need = weights * settings.processes
        what_ = f"{settings.processes} workers with {gib(weights)} of weights each"
        if free is not None and need > free:
            advice = f"{gib(free)} of memory are free: type --workers {max(free // weights, 1)}"
            yield Check("warning" if free >= weights else "problem", what_, advice)
        else:
            yield Check("ok", what_)


def _hub_cache() -> Path:
    """Return where huggingface_hub keeps models, by its documented variables."""
    home = os.environ.get("HF_HOME") or files.cache().parent / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")


def _existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
