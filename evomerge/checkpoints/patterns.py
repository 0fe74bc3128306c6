"""matches, first_match: regular expressions of untrusted files, matched within a bounded number of steps.

Python's `re` backtracks: a pattern such as `(a+)+!` may never finish. Here each part of a pattern maps a set of
positions in the text to the set of positions where its match may end.
"""

import re
from collections.abc import Mapping
from re import _compiler, _constants, _parser  # type: ignore[attr-defined]  # no public module parses a pattern
from typing import Any, TypeVar

_Number = TypeVar("_Number", int, float)
_CHARACTERS = (_constants.LITERAL, _constants.NOT_LITERAL, _constants.ANY, _constants.IN, _constants.AT)
_MOST_STEPS = 100_000  # some hundred are usual


def matches(pattern: str, text: str) -> bool:
    """Return whether `pattern` matches all of `text`, as `re.fullmatch` does.

    Raises `ValueError` for what is not a regular expression, takes more than 100,000 steps, or needs backtracking:
    references to groups, look-around, atomic groups, and flags within the pattern.
    """
    try:
        return len(text) in _Matcher(text).ends(_parser.parse(pattern), {0})
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from None


def first_match(patterns: Mapping[str, _Number] | None, module: str, default: _Number) -> _Number:
    """Return the value of the first pattern that the name `module` matches, or the part of it after a dot.

    Raises `ValueError` for a pattern that is not safe to match.
    """
    for pattern, value in (patterns or {}).items():
        plain = re.fullmatch(r"[\w.-]*", pattern)  # most are: PEFT may write one for each module
        try:
            if (re.fullmatch if plain else matches)(rf"(.*\.)?({pattern})", module):
                return value
        except ValueError as error:
            raise ValueError(f"expected regular expressions, got `{pattern[:80]}` ({error})") from None
    return default


class _Matcher:
    def __init__(self, text: str) -> None:
        self._text = text
        self._compiled: dict[int, re.Pattern[str]] = {}
        self._steps = 0

    def ends(self, parts: Any, starts: set[int]) -> set[int]:
        """Return where matches of a sequence of parts may end that begin at one of `starts`."""
        for part in parts:
            self._steps += len(starts)
            if self._steps > _MOST_STEPS:
                raise re.error("it takes too many steps")
            kind, what = part
            if kind in _CHARACTERS:
                if id(part) not in self._compiled:
                    self._compiled[id(part)] = _compiler.compile(_parser.SubPattern(parts.state, [part]))
                match = self._compiled[id(part)].match
                starts = {end.end() for start in starts if (end := match(self._text, start))}
            elif kind is _constants.BRANCH:
                starts = {end for branch in what[1] for end in self.ends(branch, starts)}
            elif kind is _constants.SUBPATTERN and what[1:3] == (0, 0):  # without flags
                starts = self.ends(what[3], starts)
            elif kind in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
                least, most, body = what
                starts = self._repeated(least, most, body, starts)
            else:
                msg = str(kind)
                raise re.error(msg)
        return starts

    def _repeated(self, least: int, most: int, body: Any, starts: set[int]) -> set[int]:
        ends: set[int] = set()
        before = None
        for count in range(most + 1):
            if starts == before or not starts:  # further repeats change nothing
                return ends | starts
            if count >= least:
                if starts <= ends:
                    break
                ends |= starts
            before, starts = starts, self.ends(body, starts)
        return ends
