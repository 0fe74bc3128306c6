"""Plug-ins: drivers, tasks, methods and stages that other installed distributions add by entry points.

A distribution declares them in its `pyproject.toml`:

    [project.entry-points."evomerge.drivers"]
    my_driver = "my_package.drivers:MY_DRIVER"

The groups are `evomerge.drivers` (an entry of `evomerge.search.KINDS`), `evomerge.tasks` (of `evomerge.tasks.KINDS`),
`evomerge.methods` (of `evomerge.merging.METHODS`) and `evomerge.stages` (of `evomerge.merging.STAGES`).
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from pydantic import BaseModel

from evomerge.errors import PluginError

T = TypeVar("T")


class Table(Mapping[str, T]):
    """Built-in entries by name, and those of plug-ins.

    Entry points are read only when a name is not built in or when the names are listed; a plug-in is imported when its
    entry is first used. Raises `PluginError` for a name that is taken, and for a plug-in that cannot be loaded.
    """

    def __init__(self, group: str, built_in: Mapping[str, T], expected: str, accepts: Callable[[Any], bool]) -> None:
        """Take the entry points of `group`, whose objects `accepts` checks and `expected` describes."""
        self._group = group
        self._entries = dict(built_in)
        self._built_in = frozenset(built_in)
        self._expected = expected
        self._accepts = accepts

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            self._entries[name] = self._load(self._points[name])
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._points

    def __iter__(self) -> Iterator[str]:
        yield from (*(name for name in self._entries if name in self._built_in), *self._points)

    def __len__(self) -> int:
        return len(self._built_in) + len(self._points)

    @cached_property
    def _points(self) -> dict[str, EntryPoint]:
        points: dict[str, EntryPoint] = {}
        for point in entry_points(group=self._group):
            if point.name in self._built_in or point.name in points:
                other = "evomerge" if point.name in self._built_in else _distribution(points[point.name])
                msg = (
                    f"plug-in `{point.name}` of {_distribution(point)} ({self._group}): {other} has that name already; "
                    "uninstall one of them, or rename its entry point"
                )
                raise PluginError(msg)
            points[point.name] = point
        return points

    def _load(self, point: EntryPoint) -> T:
        try:
            entry: T = point.load()
        except Exception as error:
            msg = (
                f"plug-in `{point.name}` of {_distribution(point)} ({self._group}): cannot load `{point.value}` "
                f"({type(error).__name__}: {error}); repair or uninstall that distribution"
            )
            raise PluginError(msg) from error
        if not self._accepts(entry):
            msg = (
                f"plug-in `{point.name}` of {_distribution(point)} ({self._group}): expected `{point.value}` to be "
                f"{self._expected}, got {entry!r}"
            )
            raise PluginError(msg)
        return entry


def is_settings_and_factory(entry: Any) -> bool:
    """Tell whether an entry is `(settings model, function)`, as those of drivers and tasks are."""
    return (
        isinstance(entry, tuple)
        and len(entry) == 2  # settings, function
        and isinstance(entry[0], type)
        and issubclass(entry[0], BaseModel)
        and callable(entry[1])
    )


def _distribution(point: EntryPoint) -> str:
    return (
        "an unnamed distribution" if point.dist is None else f"the distribution {point.dist.name} {point.dist.version}"
    )
