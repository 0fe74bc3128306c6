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
    "Box": "space",
    "Builder": "build",
    "Driver": "search",
    "Evaluation": "trial",
    "EvomergeError": "errors",
    "LiveModel": "models",
    "Pool": "checkpoints.pool",
    "Proposal": "trial",
    "Recipe": "recipe",
    "SearchSpace": "space",
    "Study": "study",
    "asks": "search",
    "create_study": "api",
    "driver": "search",
    "export": "api",
    "merge": "recipe",
    "pick": "api",
    "results": "api",
    "task": "api",
}
_OTHER_NAMES = {"driver": "make"}

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
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), _OTHER_NAMES.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
