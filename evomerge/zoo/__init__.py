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

_PLANS: dict[str, Callable[[Path | None], Plan]] = {
    "text": lambda text: text_zoo.plan(),
    "text4": lambda text: text_zoo.plan(four=True),
    "digits": lambda text: digits.plan(),
    "language": language.plan,
}


def names() -> list[str]:
    """Return the names of the zoos; the default of the demo is the first."""
    return list(_PLANS)


def build(name: str, *, seed: int = 0, progress: Progress = lambda done, doing: None, text: Path | None = None) -> Zoo:
    """Build the zoo `name` in `cache_folder()`, replacing an existing one, and return it.

    `text` is a folder of German plain text for the zoo `language`. Raises `ZooError` with the package to install if data is
    missing.
    """
    return publish(_plan(name, text), cache_folder(), seed, progress)


def load(name: str, *, seed: int = 0) -> Zoo:
    """Return an existing zoo. Raises `ZooError` with the command to build it."""
    plan = _plan(name)
    place = plan.folder(cache_folder(), seed)
    if not place.exists():
        msg = f"the zoo `{name}` (seed {seed}) is not built: expected it at `{place}`; type: evomerge zoo build {name}"
        raise ZooError(msg + (f" --seed {seed}" if seed else ""))
    return read(place, plan.group)


def find_or_build(
    name: str, *, seed: int = 0, progress: Progress = lambda done, doing: None, text: Path | None = None
) -> Zoo:
    """Return the zoo `name`; build it unless it exists."""
    plan = _plan(name, text)
    place = plan.folder(cache_folder(), seed)
    return read(place, plan.group) if place.exists() else publish(plan, cache_folder(), seed, progress)


def _plan(name: str, text: Path | None = None) -> Plan:
    if name not in _PLANS:
        raise ZooError(f"there is no zoo `{name}`; {nearest(name, _PLANS)}")
    return _PLANS[name](text)
