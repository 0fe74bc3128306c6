"""History: the evaluations in a journal, with parts of a candidate's examples assembled. Not to be confused with the journal."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from evomerge import journal
from evomerge.errors import StudyError
from evomerge.trial import SLOPES_COST, Evaluation, Proposal, ScoreTable, Split

Completed = list[tuple[Proposal, Evaluation]]
"""Proposals with their evaluations, in order of number."""


@dataclass(frozen=True, slots=True)
class History:
    """The completed evaluations of a study, failures included."""

    completed: Completed
    """All evaluations, parts by themselves: the input of `digest`."""
    population: Completed
    """Full evaluations alone, since scores of a part cannot be compared with those of all examples."""
    partial: tuple[int, ...]
    """For each candidate that was stopped early, or is unfinished, the number of its last part. It is not in `population`."""
    spent: float
    """The used budget, in units of a full evaluation: see `cost`."""

    @classmethod
    def read(
        cls,
        path: Path,
        sizes: Mapping[Split, Mapping[str, int]] | None = None,
        *,
        retried: bool = False,
        merge: int = 0,
    ) -> "History":
        """Read the journal at `path`.

        When all examples of a recipe are scored, its parts become one evaluation under the number of the last part; a part
        that failed is a failed evaluation. `sizes` are the numbers of examples of each task, by split; without them, a
        journal with parts is a `StudyError`. `retried` is that of `journal.events`, `merge` that of `cost`.
        """
        return cls.of(journal.events(path, retried=retried), sizes, merge)

    @classmethod
    def of(
        cls, events: Iterable[journal.Event], sizes: Mapping[Split, Mapping[str, int]] | None = None, merge: int = 0
    ) -> "History":
        """Return the history of these events of a journal, in any order; see `read`."""
        completed = [(proposal, evaluation) for proposal, evaluation in events if evaluation is not None]
        completed.sort(key=lambda pair: pair[0].number)
        population: Completed = []
        tables: dict[tuple[str, Split], ScoreTable] = {}
        last: dict[tuple[str, Split], int] = {}
        for proposal, evaluation in completed:
            key = proposal.recipe.id, proposal.split
            if proposal.examples is not None and evaluation.error is None:
                if sizes is None:
                    msg = f"proposal {proposal.number} is of a part of the examples; expected `sizes`, such as `study.parts.sizes`"
                    raise StudyError(msg)
                table = tables.setdefault(key, ScoreTable(sizes[proposal.split]))
                if table.complete:
                    continue
                table.add(proposal.examples, evaluation)
                last[key] = proposal.number
                if not table.complete:
                    continue
                evaluation = table.take()  # noqa: PLW2901  # the parts are one evaluation
            last.pop(key, None)
            population.append((replace(proposal, examples=None), evaluation))
        full = 1 if sizes is None else sum(sizes["search"].values())
        spent = sum(cost(proposal, full, merge) for proposal, _ in completed) / (full + merge)
        return cls(completed, population, tuple(sorted(last.values())), spent)


def common_failure(population: Completed) -> tuple[str, int] | None:
    """Return the most frequent error of a population and its count; of equals the first."""
    counts = Counter(evaluation.error for _, evaluation in population if evaluation.error is not None)
    return next(iter(counts.most_common(1)), None)


def cost(proposal: Proposal | journal.Sketch, full: int, merge: int) -> int:
    """Return the number of examples that a proposal scores, of the `full` number of the search split, plus `merge`.

    An example with slopes counts `SLOPES_COST` times. `merge` is how many examples could be scored in the time of one merge,
    which each part of an evaluation makes again.
    """
    scored = full if proposal.examples is None else sum(map(len, proposal.examples.values()))
    return merge + scored + (SLOPES_COST - 1) * sum(map(len, (proposal.slopes or {}).values()))


def digest(completed: Completed) -> str:
    """Return the sha256 over recipe ids, examples and scores in order of number: equal for equal searches, with any workers."""
    total = hashlib.sha256()
    for proposal, evaluation in completed:
        total.update(proposal.recipe.id.encode())
        if proposal.examples is not None:
            total.update(json.dumps(dict(proposal.examples), sort_keys=True).encode())
        total.update(json.dumps(evaluation.to_json(), sort_keys=True).encode())
    return total.hexdigest()
