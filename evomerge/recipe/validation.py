"""What all validated data shares: frozen pydantic models that refuse unknown keys, and their errors as one sentence."""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, ValidationError

from evomerge.errors import nearest

TAG = "\0"
"""First character of every union tag. Pydantic puts tags into the location of an error, but they are no keys of the data."""


class FrozenModel(BaseModel):
    """Frozen data that refuse unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def describe(error: ValidationError, what: str, fields: Mapping[str, Sequence[str]]) -> str:
    """Return pydantic's first `error` about `what` as one sentence, with the nearest known key where a key is unknown.

    `fields` maps the name of an enclosing key (or "" for the top) to the keys known inside it.
    """
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"] if not str(part).startswith(TAG) and part != "root"]
    where = ".".join(path)
    if first["type"] == "extra_forbidden":
        *outer, key = map(str, first["loc"])
        known = fields.get(next((part for part in reversed(outer) if part in fields), ""), ())
        return f"{what}: unknown key `{where or key}`; {nearest(key, known)}"
    if first["type"] == "value_error":
        return f"{what}{f' `{where}`' if where else ''}: {first['ctx']['error']}"
    if first["type"] == "missing":
        return f"{what}: `{where}` is missing"
    expected = _EXPECTED.get(first["type"], f"{first['msg'][0].lower()}{first['msg'][1:]}")
    return f"{what} `{where}`: {expected}, got {first['input']!r}"


_EXPECTED = {
    "tuple_type": "expected a list",
    "too_short": "expected at least one entry",
    "dict_type": "expected a mapping",
    "model_type": "expected a mapping",
    "string_type": "expected a word",
    "string_too_short": "expected a word",
    "int_parsing": "expected an integer",
    "int_type": "expected an integer",
    "int_from_float": "expected an integer",
    "finite_number": "expected a finite number",
}
"""Pydantic's types of error in the terms of a YAML file."""
