"""evomerge: searches for the recipe by which models that share a base merge into one, or into a front of trade-offs.

The public API. Each name is imported when it is first used, so that `import evomerge` is fast and imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evomerge.api import create_study, export, pick, results, task
    from evomerge.build import Builder
    from evomerge.checkpoints.pool import Pool
    from evomerge.errors import EvomergeError
    from evomerge.models import LiveModel
    from evomerge.recipe import Recipe, merge
    from evomerge.search import Driver, asks
    from evomerge.search import make as driver
    from evomerge.space import Box, SearchSpace
    from evomerge.study import Study
    from evomerge.trial import Evaluation, Proposal

_HOMES = {
    "api": ("create_study", "export", "pick", "results", "task"),
    "build": ("Builder",),
    "checkpoints.pool": ("Pool",),
    "errors": ("EvomergeError",),
    "models": ("LiveModel",),
    "recipe": ("Recipe", "merge"),
    "search": ("Driver", "asks", "driver"),
    "space": ("Box", "SearchSpace"),
    "study": ("Study",),
    "trial": ("Evaluation", "Proposal"),
}

__all__ = [  # noqa: RUF022  # in the order in which a user meets them
    "create_study",
    "task",
    "results",
    "pick",
    "export",
    "Study",
    "driver",
    "asks",
    "Box",
    "Driver",
    "Proposal",
    "Evaluation",
    "SearchSpace",
    "Pool",
    "Recipe",
    "merge",
    "Builder",
    "LiveModel",
    "EvomergeError",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{home}"), "make" if name == "driver" else name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
