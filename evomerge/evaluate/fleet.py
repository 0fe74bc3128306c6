"""Fleet: how many workers a cluster is asked for, what each of them needs, and how many have room on its nodes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_SLACK = 1e-9
_UNITS = {"CPU": "CPUs", "GPU": "GPUs", "memory": "GB of memory"}


@dataclass(frozen=True, slots=True)
class Fleet:
    """Between `least` and `most` workers, as many as there is room for. Not to be confused with a queue's workers, which others start."""

    least: int
    """The search begins when so many workers have room."""
    most: int
    threads: int = 1
    """Threads of each worker."""
    cpus: float | None = None
    """CPUs of each worker; None for as many as it has threads."""
    gpus: float = 0.0
    """GPUs of each worker: a share of one, or several."""
    memory: int = 0
    """Bytes of memory of each worker that Ray reserves; 0 reserves none. A worker that uses more is not stopped."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that a worker's node must have, as Ray's `label_selector`: `value`, `!value`, `in(one,two)` or `!in(one,two)`."""

    @property
    def fixed(self) -> bool:
        """Whether the number of workers is fixed."""
        return self.least == self.most

    def places(self, nodes: Iterable[Mapping[str, Any]]) -> int:
        """Return how many workers have room on nodes, given as `ray.nodes()` returns them, when nothing else runs there."""
        return sum(min(self._room(node).values(), default=0) for node in self._fitting(nodes))

    def problem(self, nodes: Iterable[Mapping[str, Any]]) -> str | None:
        """Return what the nodes lack for `least` workers, with what to type; None if they have room."""
        nodes = [*nodes]
        fitting = self._fitting(nodes)
        places = self.places(nodes)
        if places >= self.least:
            return None
        fewer = self._fewer(max(places, 1))
        if self.labels and not fitting:
            there = sorted(
                {f"{key}: {value}" for node in nodes if node["Alive"] for key, value in _labels(node).items()}
            )
            return (
                f"no node of the Ray cluster has the labels {_listed(self.labels)} (it has {', '.join(there) or 'none'}); type others "
                "under `workers`, or start nodes with `ray start --labels`"
            )
        rooms = [self._room(node) for node in fitting]
        short = next((kind for kind in self._needs if sum(room[kind] for room in rooms) < self.least), None)
        if short is None:
            return f"the Ray cluster has room for {places} of {self.least} workers, each with {self}; type {fewer}"
        unit = 10**9 if short == "memory" else 1
        there = sum(node["Resources"].get(short, 0.0) for node in fitting) / unit
        needed = self.least * self._needs[short] / unit
        each = f"{self._named(short)}{' on one node' * (there >= needed)}"
        return (
            f"the Ray cluster has {there:g} {_UNITS[short]}, {self.least} workers with {each} need {needed:g}; "
            f"type {fewer}{self._otherwise(short, there)}"
        )

    def __str__(self) -> str:
        amounts = {kind: amount / (10**9 if kind == "memory" else 1) for kind, amount in self._needs.items()}
        parts = [f"{amount:g} {_UNITS[kind].removesuffix('s' * (amount == 1))}" for kind, amount in amounts.items()]
        return ", ".join([*parts, *([f"the labels {_listed(self.labels)}"] if self.labels else [])])

    @property
    def _needs(self) -> dict[str, float]:
        """What each worker needs, by Ray's names."""
        needs = {"GPU": self.gpus, "CPU": float(self.cpus or self.threads), "memory": float(self.memory)}
        return {kind: amount for kind, amount in needs.items() if amount}

    def _room(self, node: Mapping[str, Any]) -> dict[str, int]:
        """Return how many workers each resource of a node is enough for."""
        rooms = {kind: int(node["Resources"].get(kind, 0.0) / amount + _SLACK) for kind, amount in self._needs.items()}
        if 0 < self.gpus < 1:  # a worker is on one GPU
            rooms["GPU"] = int(node["Resources"].get("GPU", 0.0) + _SLACK) * int(1 / self.gpus + _SLACK)
        return rooms

    def _fitting(self, nodes: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return the nodes that are there and have the labels."""
        return [
            node
            for node in nodes
            if node["Alive"] and all(_matches(_labels(node).get(key), wish) for key, wish in self.labels.items())
        ]

    def _named(self, kind: str) -> str:
        """Return in words how much of a resource each worker needs."""
        if kind == "GPU":
            return f"`gpus: {self.gpus:g}`" if self.gpus <= 1 else f"`tensor_parallel_size: {self.gpus:g}`"
        if kind == "memory":
            return f"`memory_gb: {self.memory / 10**9:g}`"
        return (
            f"{self.threads} thread{'s' * (self.threads > 1)} each" if self.cpus is None else f"`cpus: {self.cpus:g}`"
        )

    @property
    def _plain(self) -> bool:
        """Whether a number of workers, as `--workers` takes it, says the same."""
        return self.fixed and self.cpus is None and not self.memory and not self.labels

    def _fewer(self, count: int) -> str:
        return f"--workers {count}" if self._plain else f"`min: {count}` under `workers`"

    def _otherwise(self, kind: str, there: float) -> str:
        if kind != "GPU":
            return ""
        if self.gpus > 1:
            return ", or a smaller `tensor_parallel_size`"
        return f"{f', or a smaller share, such as `gpus: {self.gpus / 2:g}`' if there else ''}, or `device: cpu`"


def _labels(node: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels of a node, without its own name."""
    return {key: value for key, value in node.get("Labels", {}).items() if key != "ray.io/node-id"}


def _matches(label: str | None, wish: str) -> bool:
    """Return whether a node's label, None where it has none, is as Ray's selector wishes."""
    negated, wish = wish.startswith("!"), wish.removeprefix("!")
    wanted = wish[3:-1].split(",") if wish.startswith("in(") else [wish]
    return (label in {value.strip() for value in wanted}) != negated


def _listed(labels: Mapping[str, str]) -> str:
    return ", ".join(f"`{key}: {value}`" for key, value in labels.items())
