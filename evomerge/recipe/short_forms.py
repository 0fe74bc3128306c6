"""Short forms of stacks, in plain data: a `path` (`LayerPath`) or a `swap` (`LayerSwap`) in place of `slots`.

`spell_out` makes slots of short forms, `fit` keeps paths within their bounds.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from evomerge.errors import RecipeError, nearest
from evomerge.recipe.form import ShortForm, depth
from evomerge.recipe.layer_path import LayerPath
from evomerge.recipe.layer_swap import LayerSwap
from evomerge.recipe.validation import describe

_FORMS: dict[str, type[ShortForm]] = {"path": LayerPath, "swap": LayerSwap}


def form_of(stack: Mapping[str, Any]) -> ShortForm | None:
    """Return the short form in a stack, with or without holes; None if there is none. Raises `RecipeError`."""
    known = ("slots", "rest", "stitch", *_FORMS)
    for key in stack:
        if key not in known:
            raise RecipeError(f"stack: unknown key `{key}`; {nearest(str(key), known)}")
    names = [name for name in _FORMS if name in stack]
    if not names:
        return None
    if len(names) > 1 or "slots" in stack:
        msg = f"stack: has {' and '.join(key for key in stack if key not in ('rest', 'stitch'))}; expected one of slots, path and swap"
        raise RecipeError(msg)
    schema = _FORMS[names[0]]
    try:
        return schema.model_validate(stack[names[0]])
    except ValidationError as error:
        raise RecipeError(describe(error, f"stack {names[0]}", {"": tuple(schema.model_fields)})) from None


def mappings(data: Any) -> Iterator[Mapping[str, Any]]:
    """Yield each mapping in nested data, outer ones first."""
    if isinstance(data, Mapping):
        yield data
    for value in data.values() if isinstance(data, Mapping) else data if isinstance(data, list | tuple) else ():
        yield from mappings(value)


def stacks(data: Any) -> list[Mapping[str, Any]]:
    """Return the content of each stack in a recipe's data, or in a template."""
    return [entry["stack"] for entry in mappings(data) if isinstance(entry.get("stack"), Mapping)]


def spell_out(data: Any, blocks: int) -> Any:
    """Return a recipe's data with slots in place of every short form, for a model of `blocks` layers.

    Raises `RecipeError` for a short form that is not valid or out of its bounds, and for a layer that does not exist.
    """

    def spelled(stack: Mapping[str, Any], form: ShortForm | None) -> dict[str, Any]:
        if form is not None:
            first = {"rest": form.sources[0]} if isinstance(form, LayerPath) else {}
            return {**first, **{key: stack[key] for key in stack if key not in _FORMS}, "slots": form.slots(blocks)}
        for number, slot in enumerate(stack["slots"] if isinstance(stack.get("slots"), list) else ()):
            if isinstance(slot, Mapping) and isinstance(slot.get("layer"), int):
                layers = depth(slot.get("source"), blocks)
                if slot["layer"] >= layers:
                    msg = f"stack: `slots[{number}]` has no layer {slot['layer']}: its source has {layers} layers; type 0 to {layers - 1}"
                    raise RecipeError(msg)
        return dict(stack)

    return _each_stack(data, blocks, spelled)


def fit(data: Any, blocks: int) -> Any:
    """Return a recipe's data with every path made to keep its bounds. Raises `RecipeError` for invalid data."""

    def fitted(stack: Mapping[str, Any], form: ShortForm | None) -> dict[str, Any]:
        return {key: form.fit(blocks) if form is not None and key in _FORMS else stack[key] for key in stack}

    return _each_stack(data, blocks, fitted)


def _each_stack(data: Any, blocks: int, change: Callable[[Mapping[str, Any], ShortForm | None], dict[str, Any]]) -> Any:
    """Return `data` with every stack changed, inner ones first."""
    if isinstance(data, Mapping):
        inner = {key: _each_stack(value, blocks, change) for key, value in data.items()}
        if isinstance(stack := inner.get("stack"), Mapping):
            if blocks < 1:
                raise RecipeError("stack: the model has no stack of blocks, whose tensors are named like `layers.0.…`")
            inner["stack"] = change(stack, form_of(stack))
        return inner
    if isinstance(data, list | tuple):
        return [_each_stack(value, blocks, change) for value in data]
    return data
