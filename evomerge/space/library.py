"""Search spaces to start from: those shipped with evomerge, and one for each merge method."""

import json
import os
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from evomerge import merging, strict_yaml
from evomerge.errors import SpaceError, nearest


def shipped() -> dict[str, Traversable]:
    """Return the shipped search spaces by name."""
    folder = files("evomerge.search_spaces")
    return {
        entry.name.removesuffix(".yaml"): entry
        for entry in sorted(folder.iterdir(), key=lambda e: e.name)
        if entry.name.endswith(".yaml")
    }


def from_method(name: str) -> str:
    """Return the YAML of a search space with a hole for each parameter of a method that has a range to search.

    Raises `SpaceError` for an unknown method, and for one without such parameters.
    """
    if name not in merging.METHODS:
        raise SpaceError(f"no merge method `{name}`; {nearest(name, merging.METHODS)}")
    method = merging.METHODS[name]
    parameters = {key: spec for key, spec in method.parameters.items() if key != "reduce"}
    if not any(spec.search for spec in parameters.values()):
        raise SpaceError(f"the method `{name}` has no parameter to search; use it in a recipe")
    lines = [
        f"about: {json.dumps(f'Parameters of {name}: {method.about}.', ensure_ascii=False)}",
        "recipe:",
        "  merge:",
        f"    method: {name}",
    ]
    lines.append(f"    inputs: experts{f'  # the pool must have exactly {method.inputs}' if method.inputs else ''}")
    lines.append("    parameters:")
    for key, spec in parameters.items():
        default = int(spec.default) if spec.integer else spec.default
        if spec.search is None:
            options = f" ({' | '.join(spec.choices)})" if spec.choices else ""
            lines.append(f"      {key}: {default}  # {spec.about}{options}")
            continue
        kind = "int" if spec.integer else "float"
        low, high = (f"{bound:g}" for bound in spec.search)
        inside = isinstance(default, int | float) and spec.search[0] <= default <= spec.search[1]
        parts = [f"{kind}: [{low}, {high}]"]
        parts += [f"init: {default}"] if inside else []
        parts += ["log: true"] if spec.log else []
        parts += ["per: [expert]"] if spec.per_input else []
        lines.append(f"      {key}: {{{', '.join(parts)}}}  # {spec.about}")
    return "\n".join(lines) + "\n"


def read(source: str | Path) -> Any:
    """Return the parsed content of a space file: a shipped one by name, or any by path. Raises `SpaceError`."""
    spaces = shipped()
    if str(source) in spaces:
        return strict_yaml.parse(spaces[str(source)].read_text(encoding="utf-8"), str(source))
    path = Path(source)
    if not os.path.exists(path):  # noqa: PTH110  # False also for a name that is too long
        raise SpaceError(f"no search space `{source}`: neither a file nor shipped; {nearest(str(source), spaces)}")
    return strict_yaml.read(path)
