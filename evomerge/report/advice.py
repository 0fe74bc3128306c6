"""advice: what to try next, each line with the numbers it rests on and how sure it is. What has no evidence is not said."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import numpy as np

from evomerge import files
from evomerge.checkpoints import task_vectors
from evomerge.checkpoints.pool import Pool
from evomerge.report import wording
from evomerge.report.bootstrap import LEVEL
from evomerge.report.data import Gains
from evomerge.report.results import Advice, Candidate, Choice
from evomerge.report.scorer import Scorer

_PER_GENE, _NOISY = 10, 0.5
"""Search examples per gene below which, and share of noise above which, more examples come first."""
_ALIKE, _APART, _OPPOSED = 0.5, 0.1, -0.1
"""Cosines from which two task vectors repeat each other, below which all are nearly orthogonal, and from which they undo each other."""
_MOST = 16 << 30
"""Bytes of the pool's files from which task vectors are not compared: reading them would take minutes."""
_SPACES = {"linear_mixture": "linear", "ties_per_block": "ties", "task_arithmetic": "task_arithmetic"}
"""Shipped spaces that are advised, and the method of each."""


def advise(
    scorer: Scorer,
    picked: Candidate,
    choice: Choice,
    references: Mapping[str, Candidate],
    searched: Any,
    counted: Gains | None,
    *,
    climbed: bool,
) -> tuple[Advice, ...]:
    """Return the advice on a study of real experts, none of one whose experts are shuffled.

    `searched` is the study's space as data: what it is already is not advised. `counted` says what one expert more would add, where
    that was measured. `climbed` says that the search followed slopes, for which a rule on examples per gene does not hold.
    """
    parts = scorer.parts
    if parts.pool.shuffled is not None:
        return ()
    examples = sum(task.size("search") for task in parts.tasks.values())
    lines = (
        *_on_averages(scorer, picked, choice, references),
        *_on_examples(len(parts.space.genes), examples, choice.noise, climbed=climbed),
        *_on_experts(list(parts.pool.experts), _alike(parts.pool)),
        *_on_another(counted),
    )
    return tuple(line for line in lines if not _is_searched(line, searched))


def _is_searched(line: Advice, space: Any) -> bool:
    """Return whether a line names a space whose method the study's own `space` has."""
    words = json.dumps(space)
    return any(f"`space: {name}`" in line.text and f'"{method}"' in words for name, method in _SPACES.items())


def _on_averages(
    scorer: Scorer, picked: Candidate, choice: Choice, references: Mapping[str, Candidate]
) -> Sequence[Advice]:
    """Compare the pick with the best weighted average of the experts."""
    name = next((name for name in references if name.startswith("best mixture")), None)
    if name is None:
        return []
    shares = "the shares of a plain average, `space: linear_mixture`"
    if picked.recipe_id == references[name].recipe_id:
        evidence = f"the {name} is picked, and the best candidate is better with probability {choice.probability:.2f} by the search examples"
        sure: Literal["likely", "a guess"] = "likely" if choice.probability < 1 - choice.needed else "a guess"
        return [
            Advice(text=f"search {shares}, or another method, before more of this space", evidence=evidence, sure=sure)
        ]
    difference = scorer.difference(picked.recipe_id, references[name].recipe_id, LEVEL)
    metric = wording.common_metric(task.report_metric for task in scorer.parts.tasks.values()) or wording.SCALED
    evidence = f"the pick minus the {name}: {wording.interval(difference, metric, sign=True)} on {wording.SPLITS[scorer.split]}"
    if difference[1] > 0:
        return [
            Advice(text="go on with this space: it gives more than plain averages do", evidence=evidence, sure="shown")
        ]
    if difference[2] < 0:
        return [
            Advice(text=f"search {shares}: such an average is better than the pick", evidence=evidence, sure="shown")
        ]
    return [
        Advice(
            text=f"search {shares}, which has fewer genes: the pick is not shown better",
            evidence=evidence,
            sure="a guess",
        )
    ]


def _on_examples(genes: int, examples: int, noise: float, *, climbed: bool) -> Sequence[Advice]:
    few = examples < _PER_GENE * genes and not climbed
    if not few and noise <= _NOISY:
        return []
    evidence = f"{genes} genes, {examples} search examples, and {noise:.0%} of the variance between the better candidates is noise"
    text = "give the tasks more search examples, or tile more coarsely, such as `per: [expert]`"
    return [Advice(text=text, evidence=evidence, sure="likely" if noise > _NOISY else "a guess")]


def _on_experts(names: Sequence[str], alike: Mapping[str, Any] | None) -> Sequence[Advice]:
    if alike is None:
        return []
    found = [Advice(text="leave an expert out", evidence=said, sure="shown") for said in alike["duplicates"]]
    cosines, conflicts = (np.array(alike[key], dtype=float) for key in ("cosines", "conflicts"))
    pairs = [
        (cosines[i, j], conflicts[i, j], f"{names[i]} and {names[j]}") for j in range(len(names)) for i in range(j)
    ]
    pairs = [pair for pair in pairs if np.isfinite(pair[:2]).all()]
    if found or not pairs:
        return found
    most, least = max(pairs), min(pairs)
    if most[0] >= _ALIKE:
        text = "search without one of two experts that repeat each other, and `evomerge compare` both runs"
        shown = most
    elif least[0] <= _OPPOSED:
        text, shown = "try a method that elects signs, `space: ties_per_block`", least
    elif max(most[0], -least[0]) < _APART:
        text = "start with one weight for each expert, `space: task_arithmetic`: signs tell little"
        shown = max(pairs, key=lambda pair: abs(pair[0]))
    else:
        return found
    cosine, conflict, who = shown
    evidence = f"task vectors of {who}: cosine {cosine:.2f}, opposite signs in {conflict:.0%} of the elements that both change (50% by chance)"
    return [Advice(text=text, evidence=evidence, sure="a guess")]


def _on_another(counted: Gains | None) -> Sequence[Advice]:
    if counted is None or counted.refused is not None:
        return []
    _, low, high = counted.more
    text = (
        "add another expert"
        if low > 0
        else "add no other expert, or leave some out"
        if high < 0
        else "search with these experts before you add another: it is not shown to be worth it"
    )
    step = wording.interval(counted.more, counted.metric, sign=True)
    evidence = (
        f"an average of {counted.experts + 1} experts minus that of all {counted.experts}: {step} mean {counted.metric}, predicted by "
        f"floor + c / k, which misses the measured means by {wording.value(counted.residual, counted.metric)}"
    )
    clear = (low > 0 or high < 0) and counted.residual < abs(counted.more[0])
    return [Advice(text=text, evidence=evidence, sure="likely" if clear else "a guess")]


def _alike(pool: Pool) -> dict[str, Any] | None:
    """Return `similarity` of a pool, None of one that takes minutes to read."""
    return similarity(pool) if _size(pool) < _MOST else None


def _size(pool: Pool) -> int:
    return sum(file.stat().st_size for model in (pool.base, *pool.experts.values()) for file in model.files)


def similarity(pool: Pool) -> dict[str, Any]:
    """Return `cosines`, `conflicts` (lists of lists, None for what is not defined) and `duplicates`, read once per pool and cached."""
    key = hashlib.sha256(
        json.dumps(["similarity 1", sorted(pool.digests.items()), list(pool.experts)]).encode()
    ).hexdigest()
    path = files.cache() / "task_vectors" / f"{key}.json"
    with suppress(OSError, ValueError):
        known: dict[str, Any] = json.loads(path.read_bytes())
        return known
    vectors = task_vectors.measure(pool)
    tables = {"cosines": vectors.cosines(), "conflicts": vectors.conflicts()}
    measured: dict[str, Any] = {
        name: [[None if np.isnan(value) else float(value) for value in row] for row in table]
        for name, table in tables.items()
    }
    measured["duplicates"] = vectors.duplicates()
    with suppress(OSError):  # without a cache, the next report reads the pool again
        files.write(path, json.dumps(measured))
    return measured
