"""References: what a user writes for a model. A folder, or `org/name` or `org/name@revision` on the hub."""

import re
from dataclasses import dataclass
from pathlib import Path

_ID = re.compile(r"(?P<repository>\w[\w.-]{0,95}/\w[\w.-]{0,95})(@(?P<revision>\w[\w./+-]{0,254}))?", re.ASCII)
_SCHEME = re.compile(r"hf://?")  # a `Path` has one slash
_FILES = (".yaml", ".yml", ".json", ".jsonl", ".safetensors", ".gguf", ".bin", ".py")
"""Ends of names of files, which no model on the hub is taken to have."""


@dataclass(frozen=True, slots=True)
class HubId:
    """A model on the hub. Its revision is a branch, a tag or a commit."""

    repository: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}"


def hub_id(reference: str | Path) -> HubId | None:
    """Return the id that `hf://org/name@revision` names, None for any other reference."""
    text = str(reference)
    scheme = _SCHEME.match(text)
    match = _ID.fullmatch(text[scheme.end() :]) if scheme else None
    return None if match is None else HubId(match["repository"], match["revision"] or "main")


def locate(reference: str | Path, folder: Path | None = None) -> str:
    """Return what `reference`, which stands in a file of `folder`, names: a path, or `hf://org/name@revision`.

    Anything of that name in `folder`, by default the current one, goes before the hub. Nothing is looked up there.
    """
    path = Path(reference) if folder is None else folder / reference
    found = hub_id(reference)
    if found is None and not path.exists() and not str(reference).endswith(_FILES):
        found = hub_id(f"hf://{reference}")
    return str(path) if found is None else f"hf://{found}"
