"""What the tasks of a study share: `defaults`, and the settings of another task."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from evomerge.errors import nearest
from evomerge.tasks.data import task_error


def complete(
    listed: Mapping[str, Mapping[str, Any]],
    defaults: Mapping[str, Any],
    embedded: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> dict[str, dict[str, Any]]:
    """Return the settings of the `listed` tasks with all that is left out there.

    It is taken from the task that `same_as` names, then from `defaults`, then from the task of that name, or else of its own, in
    a zoo. Raises `TaskError` where `same_as` names no task.
    """
    completed = {}
    for name, own in listed.items():
        other = own.get("same_as")
        known = {*listed, *embedded} - {name}
        if other is not None and not (isinstance(other, str) and other in known):
            msg = f"`same_as` is `{other}`, and there is no such other task; {nearest(str(other), known)}"
            raise task_error(name, msg)
        same = {} if other is None else listed.get(other, {})
        if "same_as" in same:
            raise task_error(
                name, f"`same_as` is `{other}`, which is itself the same as `{same['same_as']}`; type that"
            )
        entry = {**embedded.get(other or name, {}), **defaults, **same, **own}
        entry.pop("same_as", None)
        completed[name] = entry
    return completed
