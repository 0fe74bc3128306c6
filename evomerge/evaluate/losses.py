"""Losses: when a candidate that has lost workers is tried again, and when it fails."""

from collections.abc import Sequence

ATTEMPTS = 3
"""Number of lost workers after which a candidate fails."""
OUT_OF_MEMORY, DEADLINE = "out of memory", "deadline"
"""Causes for which two lost workers are enough, because each attempt is expensive."""
NODE = "node left"
"""The cause where a whole node is lost, which says little about the candidate."""
_NODES = 10  # of a candidate: by then it may be what kills them


def final_error(causes: Sequence[str], deadline: float) -> str | None:
    """Return the error of a candidate that lost workers for these `causes`, or None if it is to be tried again.

    `deadline` is in seconds.
    """
    if causes.count(OUT_OF_MEMORY) > 1:
        return f"{OUT_OF_MEMORY}: the worker was killed twice on this candidate; use fewer workers"
    if causes.count(DEADLINE) > 1:
        return f"no result within the {DEADLINE} of {deadline:g} seconds, twice"
    if causes.count(NODE) >= _NODES:
        return f"the worker's {NODE} {_NODES} times during this candidate"
    own = [cause for cause in causes if cause != NODE]
    if len(own) >= ATTEMPTS:
        return f"worker died {len(own)} times on this candidate: {', '.join(dict.fromkeys(own))}"
    return None
