"""What it means for a candidate that the processes which evaluated it were lost."""

from collections.abc import Sequence

ATTEMPTS = 3
"""How many workers a candidate may lose before the fault is the candidate's."""

OUT_OF_MEMORY, DEADLINE = "out of memory", "deadline"
"""Causes for which two lost workers are enough: a third would cost as much again."""


def final_error(lost: Sequence[str], deadline: float) -> str | None:
    """Return the error of a candidate that lost workers for these causes, or None while it may try again.

    `deadline` is in seconds.
    """
    if lost.count(OUT_OF_MEMORY) > 1:
        return f"{OUT_OF_MEMORY}: the worker was killed twice on this candidate; use fewer workers"
    if lost.count(DEADLINE) > 1:
        return f"no result within the {DEADLINE} of {deadline:g} seconds, twice"
    if len(lost) >= ATTEMPTS:
        return f"worker died {len(lost)} times on this candidate: {', '.join(dict.fromkeys(lost))}"
    return None
