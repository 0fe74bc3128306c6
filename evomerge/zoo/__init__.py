"""Embedded experts: a base, experts and tasks on real data, built in seconds to minutes and cached.

`build` builds a zoo, `load` reads an existing one, `find_or_build` does either. A zoo consists of ordinary checkpoint folders
and JSONL files; to a study it is a pool like any other.
"""

from collections.abc import Callable
from pathlib import Path

from evomerge.errors import ZooError, nearest
from evomerge.zoo import digits, language
from evomerge.zoo import text as text_zoo
from evomerge.zoo.store import Plan, Progress, TaskConfig, Zoo, cache_folder, publish, read
from evomerge.zoo.training import fast_precision

__all__ = ["Progress", "TaskConfig", "Zoo", "build", "cache_folder", "fast_precision", "find_or_build", "load", "names"]

_PLANS: dict[str, Callable[[bool, Path | None], Plan]] = {
    "text": lambda small, text: text_zoo.plan(small=small),
    "text4": lambda small, text: text_zoo.plan(small=small, four=True),
    "digits": lambda small, text: digits.plan(small=small),
    "language": lambda small, text: language.plan(text, small=small),
}


def names() -> list[str]:
    """Return the names of the zoos; the default of the demo is the first."""
    return list(_PLANS)


def build(
    name: str,
    *,
    folder: Path | None = None,
    seed: int = 0,
    progress: Progress = lambda done, doing: None,
    small: bool = False,
    text: Path | None = None,
) -> Zoo:
    """Build the zoo `name`, replacing an existing one, and return it.

    `folder` is the parent of all zoos, by default `cache_folder()`; each has a subfolder named by the digest of its plan.
    `small` reduces data and training, for tests. `text` is a folder of German plain text for the zoo `language`. Raises
    `ZooError` with the package to install if data is missing.
    """
    return publish(_plan(name, small, text), folder or cache_folder(), seed, progress)


def load(name: str, *, folder: Path | None = None, seed: int = 0, small: bool = False, text: Path | None = None) -> Zoo:
    """Return an existing zoo, built with the same arguments. Raises `ZooError` with the command to build it."""
    plan = _plan(name, small, text)
    place = plan.folder(folder or cache_folder(), seed)
    if not place.exists():
        msg = f"the zoo `{name}` (seed {seed}) is not built: expected it at `{place}`; type: evomerge zoo build {name}"
        raise ZooError(msg + (f" --seed {seed}" if seed else ""))
    return read(place, plan.group)


def find_or_build(
    name: str,
    *,
    folder: Path | None = None,
    seed: int = 0,
    progress: Progress = lambda done, doing: None,
    small: bool = False,
    text: Path | None = None,
) -> Zoo:
    """Return the zoo `name`; build it unless it exists."""
    plan, parent = _plan(name, small, text), folder or cache_folder()
    place = plan.folder(parent, seed)
    return read(place, plan.group) if place.exists() else publish(plan, parent, seed, progress)


def _plan(name: str, small: bool, text: Path | None) -> Plan:
    if name not in _PLANS:
        raise ZooError(f"there is no zoo `{name}`; {nearest(name, _PLANS)}")
    return _PLANS[name](small, text)
