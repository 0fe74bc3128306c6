"""Plug-ins: drivers, tasks, methods and stages that other installed distributions add by entry points (see CONTRIBUTING.md).

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
        self._built_in = built_in
        self._entries = dict(built_in)
        self._expected = expected
        self._accepts = accepts

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            self._entries[name] = self._load(self._points[name])
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._points

    def __iter__(self) -> Iterator[str]:
        return iter((*self._built_in, *self._points))

    def __len__(self) -> int:
        return len(self._built_in) + len(self._points)

    @cached_property
    def _points(self) -> dict[str, EntryPoint]:
        points: dict[str, EntryPoint] = {}
        for point in entry_points(group=self._group):
            if point.name in self._built_in or point.name in points:
                other = "evomerge" if point.name in self._built_in else _distribution(points[point.name])
                msg = f"{other} has that name already; uninstall one of them, or rename the entry point"
                raise self._error(point, msg)
            points[point.name] = point
        return points

    def _load(self, point: EntryPoint) -> T:
        try:
            entry: T = point.load()
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise self._error(point, f"cannot load `{point.value}` ({why}); repair or uninstall it") from error
        if not self._accepts(entry):
            raise self._error(point, f"expected `{point.value}` to be {self._expected}, got {entry!r}")
        return entry

    def _error(self, point: EntryPoint, message: str) -> PluginError:
        return PluginError(f"plug-in `{point.name}` of {_distribution(point)} ({self._group}): {message}")


def is_settings_and_factory(entry: Any) -> bool:
    """Return whether an entry is `(settings model, function)`, as those of drivers and tasks are."""
    match entry:
        case (type() as settings, function):
            return issubclass(settings, BaseModel) and callable(function)
    return False


def _distribution(point: EntryPoint) -> str:
    source = point.dist
    return "an unnamed distribution" if source is None else f"the distribution {source.name} {source.version}"
