"""Embedded experts: real data, a base and experts of it, built in seconds to minutes and cached.

`build` makes a zoo, `load` reads one that was made, `find_or_build` does what is needed. Each is an ordinary set of
checkpoint folders and JSONL files; a study treats it like any other pool.
"""

from pathlib import Path

from evomerge.errors import ZooError, nearest
from evomerge.zoo import digits, language
from evomerge.zoo import text as text_zoo
from evomerge.zoo.store import Plan, Progress, TaskConfig, Zoo, cache_folder, publish, read
from evomerge.zoo.training import fast_precision

__all__ = ["Progress", "TaskConfig", "Zoo", "build", "cache_folder", "fast_precision", "find_or_build", "load", "names"]


def names() -> list[str]:
    """Return the names of the zoos that can be built; the default of the demo comes first."""
    return ["text", "text4", "digits", "language"]


def build(
    name: str,
    *,
    folder: Path | None = None,
    seed: int = 0,
    progress: Progress = lambda done, doing: None,
    small: bool = False,
    text: Path | None = None,
) -> Zoo:
    """Build the zoo `name` anew, whether or not it is there already, and return it.

    `folder` is where zoos are kept (by default `cache_folder()`); each lies in a folder of its own there, named by a
    digest of what determines its contents. `small` asks for less training, for tests. `text` is a folder of German
    plain text for the zoo `language`. Raises `ZooError` naming the package to install where data is missing.
    """
    return publish(_plan(name, small, text), _parent(folder), seed, progress)


def load(name: str, *, folder: Path | None = None, seed: int = 0, small: bool = False, text: Path | None = None) -> Zoo:
    """Return a zoo that was built before with the same arguments. Raises `ZooError` saying how to build it."""
    plan = _plan(name, small, text)
    place = plan.folder(_parent(folder), seed)
    if not place.exists():
        msg = f"the zoo `{name}` (seed {seed}) is not built: expected it at `{place}`; type: evomerge zoo build {name}"
        raise ZooError(msg + (f" --seed {seed}" if seed else ""))
    return read(place)


def find_or_build(
    name: str,
    *,
    folder: Path | None = None,
    seed: int = 0,
    progress: Progress = lambda done, doing: None,
    small: bool = False,
    text: Path | None = None,
) -> Zoo:
    """Return the zoo `name`, building it only where it is not there yet."""
    plan, parent = _plan(name, small, text), _parent(folder)
    place = plan.folder(parent, seed)
    return read(place) if place.exists() else publish(plan, parent, seed, progress)


def _parent(folder: Path | None) -> Path:
    return cache_folder() if folder is None else Path(folder)


def _plan(name: str, small: bool, text: Path | None) -> Plan:
    match name:
        case "digits":
            return digits.plan(small=small)
        case "text":
            return text_zoo.plan(small=small)
        case "text4":
            return text_zoo.plan(small=small, four=True)
        case "language":
            return language.plan(text, small=small)
        case _:
            msg = f"there is no zoo `{name}`; {nearest(name, names())}"
            raise ZooError(msg)
