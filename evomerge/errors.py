"""The exceptions of evomerge: one small tree, each also the builtin that a caller would expect.

Every message says what was expected, what came, and what to type. The command line prints it and exits with code 2.
"""

import difflib
from collections.abc import Iterable


class EvomergeError(Exception):
    """Something that the user can mend. Not to be confused with a bug, which is any other exception."""


class RecipeError(EvomergeError, ValueError):
    """A recipe, a method or one of its parameters is not valid."""


class SpaceError(EvomergeError, ValueError):
    """A search space is not valid, or a recipe does not lie in it."""


class CheckpointError(EvomergeError, ValueError):
    """A checkpoint on disk cannot be read safely and completely."""


class PoolError(EvomergeError, ValueError):
    """The models of a pool cannot be merged with each other."""


class ModelError(EvomergeError, ValueError):
    """A checkpoint cannot be made into a runnable model."""


class TaskError(EvomergeError, ValueError):
    """A task or its data is not valid."""


class DriverError(EvomergeError, ValueError):
    """A driver cannot search the given space with the given settings."""


class SurrogateError(EvomergeError, ValueError):
    """A response surface or an item-response model cannot be fitted to what is given, or a design cannot identify it."""


class JournalError(EvomergeError, RuntimeError):
    """A study's journal is damaged, or does not belong to the study."""


class StudyError(EvomergeError, RuntimeError):
    """A study cannot be started, resumed or reported."""


class EvaluatorError(EvomergeError, RuntimeError):
    """Candidates cannot be evaluated at all. Not to be confused with one candidate's failure, an `Evaluation.error`."""


class ZooError(EvomergeError, RuntimeError):
    """An embedded zoo is not built, or cannot be built here."""


class PluginError(EvomergeError, ImportError):
    """A plug-in cannot be loaded, or its name is taken."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the words that end an error about an unknown name: the nearest known one, or all of them."""
    names = sorted(known)
    longer = [other for other in names if name and other.startswith(name)]
    close = longer or difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean `{close[0]}`?"
    return f"known: {', '.join(names) or 'none'}"
