"""mergekit's settings of a parameter: one value, a gradient over layers, or values by a part of the tensor's name."""

from collections.abc import Iterator, Mapping
from typing import Any

from evomerge.errors import RecipeError, nearest

_CONDITION = ("filter", "value")


def check(setting: Any, where: str) -> None:
    """Raise `RecipeError` unless `setting` is a value, a list of values, or conditions `{filter, value}`."""
    conditions = [setting] if isinstance(setting, Mapping) else setting
    if _is_value(setting) or (isinstance(setting, list) and all(map(_is_value, setting))):
        return
    for condition in conditions if isinstance(conditions, list) else [conditions]:
        if not isinstance(condition, Mapping):
            msg = f"{where}: {condition!r}; expected a number, a list of numbers, or a list of {{filter, value}}"
            raise RecipeError(msg)
        for key in condition:
            if key not in _CONDITION:
                raise RecipeError(f"{where}: unknown key `{key}`; {nearest(str(key), _CONDITION)}")
        value = condition.get("value")
        if not (_is_value(value) or (isinstance(value, list) and all(map(_is_value, value)))):
            raise RecipeError(f"{where} `value`: {value!r}; expected a number, or a list of numbers")


def at(setting: Any, tensor: str, t: float) -> Any:
    """Return a setting's value for a tensor at the share `t` of its slice; None where no filter is part of its name."""
    if not isinstance(setting, Mapping | list):
        return setting
    if isinstance(setting, list) and all(map(_is_value, setting)):
        return along(setting, t) if setting else None
    for condition in [setting] if isinstance(setting, Mapping) else setting:
        part = condition.get("filter")
        if part is None or part == "*" or part in tensor:
            return at(condition["value"], tensor, t)
    return None


def along(values: list[Any], t: float) -> Any:
    """Return a gradient's value at the share `t`: interpolated between numbers, else the one at or below."""
    place = t * (len(values) - 1)
    if abs(place - round(place)) < 1e-9:  # a third of three is one, whatever the rounding
        return values[round(place)]
    low = int(place)
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return values[low]
    return (1 - (place - low)) * values[low] + (place - low) * values[low + 1]


def curves(setting: Any) -> Iterator[list[float]]:
    """Yield the gradients in a setting."""
    if isinstance(setting, Mapping):
        yield from curves(setting["value"])
    elif isinstance(setting, list) and len(setting) > 1 and all(map(_is_value, setting)):
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in setting):
            yield setting
    elif isinstance(setting, list):
        for condition in setting:
            if isinstance(condition, Mapping):
                yield from curves(condition)


def _is_value(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)
