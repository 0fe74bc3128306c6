"""The exceptions of evomerge: one small tree, in which each is also a builtin exception.

Every message gives what was expected, what came, and what to type. The command line prints it and exits with code 2.
"""

import difflib
import re
from collections.abc import Iterable


class EvomergeError(Exception):
    """An error that the user can fix. Not to be confused with a bug, which is any other exception."""


class RecipeError(EvomergeError, ValueError):
    """A recipe, a method or one of its parameters is not valid."""


class SpaceError(EvomergeError, ValueError):
    """A search space is not valid, or a recipe is not in it."""


class CheckpointError(EvomergeError, ValueError):
    """A checkpoint on disk cannot be read safely and completely."""


class PoolError(EvomergeError, ValueError):
    """The models of a pool cannot be merged with each other."""


class DeviceError(EvomergeError, ValueError):
    """A device to run on is not there."""


class ModelError(EvomergeError, ValueError):
    """A checkpoint cannot be loaded as a runnable model."""


class TaskError(EvomergeError, ValueError):
    """A task or its data is not valid."""


class DriverError(EvomergeError, ValueError):
    """A driver cannot search the given space with the given settings."""


class SurrogateError(EvomergeError, ValueError):
    """A surrogate cannot be fitted to the data, or the design cannot identify it."""


class JournalError(EvomergeError, RuntimeError):
    """A study's journal is damaged, or does not belong to the study."""


class StudyError(EvomergeError, RuntimeError):
    """A study cannot be started, resumed or reported."""


class StudyInUseError(StudyError):
    """Another process searches or reports the study now."""


class EvaluatorError(EvomergeError, RuntimeError):
    """No candidate can be evaluated. Not to be confused with the failure of one candidate, an `Evaluation.error`."""


class ZooError(EvomergeError, RuntimeError):
    """An embedded zoo is not built, or cannot be built here."""


class PluginError(EvomergeError, ImportError):
    """A plug-in cannot be loaded, or its name is taken."""


_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls that a terminal acts on, directions of text, and lone surrogates, which are not valid Unicode."""
_LISTED = 30
"""How many of many names a message lists."""


def printable(text: str) -> str:
    """Return a text that may come from others so that it can be encoded, and printed to a terminal: controls are escaped."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known name, or the known ones."""
    names = sorted(known)
    longer = [other for other in names if name and other.startswith(name)]
    close = longer or difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean `{close[0]}`?"
    more = [f"and {len(names) - _LISTED} more"] * (len(names) > _LISTED)
    return f"known: {', '.join([*(names[:_LISTED] if more else names), *more]) or 'none'}"
