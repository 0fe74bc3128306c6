"""Placement: on which device candidates are merged and run, and every copy of a merge's tensors to it.

The models of a pool are mapped files on the host. On an accelerator they stay where they fit, beside the candidate and its
largest batch; those that do not fit are copied for each candidate, one tensor ahead of the merge. Merging is the same fp32
arithmetic on every device, operation by operation, so a recipe has the same bytes everywhere. Scores do not: other kernels
have other last bits, so a study keeps its device.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import torch

from evomerge.errors import DeviceError
from evomerge.progress import gib

Precision: TypeAlias = Literal["float32", "bfloat16", "float16"]

PRECISIONS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The dtypes in which candidates run, by name."""

Key: TypeAlias = tuple[str, str, int | None]
"""A model of the pool, one of its tensors, and the number of a matrix of it."""

T = TypeVar("T")

_MARGIN = 512 << 20
"""Bytes of a device that are left free: what libraries allocate for themselves, and fragments."""

_AMPERE = (8, 0)
"""The compute capability from which bfloat16 is as fast as float16."""


def available() -> dict[str, str]:
    """Return the names of this process's devices, by what to type for each; the CPU is last."""
    devices = {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    return {**devices, "cpu": ""}


def find(device: str) -> torch.device:
    """Return the device `auto` (an accelerator, if there is one), `cpu`, `cuda`, `cuda:1` or `mps`. Raises `DeviceError`."""
    there = available()
    wanted = {"auto": next(iter(there)), "cuda": "cuda:0"}.get(device, device)
    if wanted in there:
        return torch.device(wanted)
    known = ", ".join(f"`{key}` ({name})" if name else f"`{key}`" for key, name in there.items())
    version = f"torch {torch.__version__}"
    why = f"{version} is built without CUDA" if wanted.startswith("cuda") and torch.version.cuda is None else version
    raise DeviceError(f"device `{device}`: not here ({why}); expected one of {known}, or `auto`")


def free(device: torch.device) -> int | None:
    """Return the bytes of memory that processes here may still take on a device, None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    sizes = []
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        sizes.append(int(lines["MemAvailable"].split()[0]) << 10)
        group = Path("/sys/fs/cgroup")
        sizes.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError, KeyError):  # no Linux, no limit
        pass
    return min(sizes, default=None)


def describe(device: torch.device) -> str:
    """Return what a score depends on of a device of this process: its kind and its name, such as `cuda NVIDIA H100`."""
    return f"{device.type} {available()[str(device)]}".strip()


def described(device: str) -> str:
    """Return `describe` of a device; of one that is not here, the kind alone."""
    try:
        return describe(find(device))
    except DeviceError:
        return device.partition(":")[0]


def fastest(device: torch.device) -> Precision:
    """Return the dtype in which a device multiplies fastest; of those as fast as each other, the one of widest range."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= _AMPERE else "float16"
    if device.type == "mps":
        return "float16"
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001  # no public function exists
    return "bfloat16" if supported else "float32"


def room_left(limit: int, model: int, peak: int) -> int:
    """Return the bytes of a device that models may take, beside a candidate of `model` bytes that needed `peak` at most.

    `limit` is what this process may allocate. A quarter more than was needed is left for longer batches.
    """
    return max(limit - peak - (peak - model) // 4 - _MARGIN, 0)


class Placement:
    """The device of one process's merges, and the tensors of the pool that are on it. Not to be confused with a recipe's `Place`.

    All copies of tensors of merges from the host to the device are made here, and counted in `sent`.
    """

    def __init__(self, device: torch.device | None = None, *, share: float = 1.0, copies: bool | None = None) -> None:
        """Merge on `device`, by default the CPU, of whose memory this process may use a `share`.

        `copies` says whether tensors are copied to it; not on the CPU.
        """
        self.device = torch.device("cpu") if device is None else device
        self.copies = self.device.type != "cpu" if copies is None else copies
        self.room: int | None = None
        """Bytes for tensors that stay; None until `settle`."""
        self.sent = 0
        """Bytes that were copied to the device, or are on the way."""
        self.held_bytes = 0
        self._share = share
        self._held: dict[Key, torch.Tensor] = {}
        self._next: dict[tuple[Key, ...], tuple[Key, ...]] = {}  # what was fetched after what, the last time
        self._last: tuple[Key, ...] = ()
        self._coming: tuple[list[Key], Future[list[torch.Tensor]]] | None = None
        self._copier = ThreadPoolExecutor(1, "copy") if self.copies else None
        self._stream: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else its sums are not reproducible
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]  # the library has no types here
            if share < 1:
                torch.cuda.set_per_process_memory_fraction(share, self.device)

    def fetch(self, keys: Sequence[Key], load: Callable[[Key], torch.Tensor]) -> list[torch.Tensor]:
        """Return tensors on the device, and begin to copy those that followed them the last time.

        `load` returns a tensor on the host, a view of a file where possible: it is copied in another thread.
        """
        wanted = tuple(keys)
        arrived = self._arrived(wanted)
        tensors = []
        for key in wanted:
            tensor = self._held.get(key, arrived.get(key))
            if tensor is None:
                tensor = self.send(load(key))
            if key not in self._held and self.held_bytes + tensor.nbytes <= (self.room or 0):
                self._held[key] = tensor
                self.held_bytes += tensor.nbytes
            tensors.append(tensor)
        self._next[self._last] = wanted
        self._last = wanted
        missing = [key for key in dict.fromkeys(self._next.get(wanted, ())) if key not in self._held]
        if missing and self._copier is not None:
            following = [load(key) for key in missing]
            self.sent += sum(tensor.nbytes for tensor in following)
            self._coming = missing, self._copier.submit(self._copied, following)
        return tensors

    def send(self, value: T) -> T:
        """Return a tensor on the device, or a list or mapping with its tensors there; anything else as it is."""
        if not self.copies:
            return value
        if isinstance(value, torch.Tensor):
            self.sent += value.nbytes
            (tensor,) = self._copied([value])
            self._await([tensor])
            return tensor  # type: ignore[return-value]  # a tensor for a tensor
        if isinstance(value, list):
            return [self.send(entry) for entry in value]  # type: ignore[return-value]  # a list for a list
        if isinstance(value, dict):
            return {key: self.send(entry) for key, entry in value.items()}  # type: ignore[return-value]  # likewise
        return value

    def settle(self) -> None:
        """Let tensors stay on the device from now on, in the room that a whole candidate, merged and scored, has left."""
        if self.room is None:
            self.room = 0
            if self.device.type == "cuda":
                used = torch.cuda.memory_allocated(self.device)
                self.room = room_left(self.limit, used, torch.cuda.max_memory_allocated(self.device))

    def release(self) -> None:
        """Let no tensor stay any more, after the device ran out of memory."""
        self._drop()
        self._held.clear()
        self.held_bytes = self.room = 0
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()

    @property
    def limit(self) -> int:
        """Bytes that this process may allocate on the device, those it has among them; 0 where that is not known."""
        if self.device.type != "cuda":
            return 0
        free, total = torch.cuda.mem_get_info(self.device)
        return min(free + torch.cuda.memory_reserved(self.device), int(total * self._share))

    def summary(self, pool: int) -> str:
        """Return in words, after a candidate, how much memory it took, and whether `pool` bytes of models stay on the device."""
        if self.device.type != "cuda":
            return "the models of the pool are copied to it for each candidate"
        needed = torch.cuda.max_memory_allocated(self.device) - self.held_bytes
        stay = (
            "stay on it"
            if pool <= (self.room or 0)
            else f"are copied for each candidate, but for {gib(self.room or 0)}"
        )
        return (
            f"{gib(self.limit)} for a worker; a candidate takes {gib(needed)}; the pool's models, {gib(pool)}, {stay}"
        )

    def _arrived(self, wanted: Sequence[Key]) -> dict[Key, torch.Tensor]:
        """Return the tensors whose copies were begun; those that are not wanted are dropped."""
        if self._coming is None:
            return {}
        (keys, future), self._coming = self._coming, None
        tensors = future.result()
        self._await(tensors)
        return {key: tensor for key, tensor in zip(keys, tensors, strict=True) if key in wanted}

    def _drop(self) -> None:
        if self._coming is not None:
            self._coming[1].exception()
            self._coming = None

    def _copied(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copy tensors to the device; on CUDA from pinned memory, without waiting for the last byte."""
        if self._stream is None:
            return [tensor.to(self.device, copy=True) for tensor in tensors]
        with torch.cuda.stream(self._stream):
            return [
                (tensor.pin_memory() if tensor.is_cpu else tensor).to(self.device, non_blocking=True)
                for tensor in tensors
            ]

    def _await(self, tensors: Sequence[torch.Tensor]) -> None:
        """Let the device's later work wait for copies."""
        if self._stream is not None:
            now = torch.cuda.current_stream(self.device)
            now.wait_stream(self._stream)
            for tensor in tensors:
                tensor.record_stream(now)
