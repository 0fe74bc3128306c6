"""Advice: each line from evidence, with how sure it is, and none without."""

import numpy as np
import pytest
import torch
from pools import Models, write_pool

from evomerge import space
from evomerge.checkpoints.pool import Pool
from evomerge.report import advice, tables
from evomerge.report.results import Advice


def alike(cosine, conflict, duplicates=()):
    table = [[1.0, cosine], [cosine, 1.0]], [[0.0, conflict], [conflict, 0.0]]
    return {"cosines": table[0], "conflicts": table[1], "duplicates": [*duplicates]}


@pytest.mark.parametrize(
    ("cosine", "conflict", "words"),
    [(0.8, 0.1, "without one of two"), (-0.4, 0.7, "elects signs"), (0.03, 0.49, "one weight for each")],
)
def test_experts_are_spoken_of_with_their_cosine_and_their_signs(cosine, conflict, words):
    (one,) = advice._on_experts(["a", "b"], alike(cosine, conflict))
    assert words in one.text
    assert f"cosine {cosine:.2f}" in one.evidence
    assert f"{conflict:.0%}" in one.evidence
    assert one.sure == "a guess"


def test_nothing_is_said_of_experts_between_these_or_without_a_direction():
    assert not advice._on_experts(["a", "b"], alike(0.3, 0.4))
    assert not advice._on_experts(["a", "b"], alike(None, None))
    assert not advice._on_experts(["a"], {"cosines": [[1.0]], "conflicts": [[0.0]], "duplicates": []})


def test_copies_are_shown_and_leave_no_room_for_guesses():
    (one,) = advice._on_experts(["a", "b"], alike(1.0, 0.0, ["`b` has the weights of `a`"]))
    assert (one.sure, one.evidence) == ("shown", "`b` has the weights of `a`")


@pytest.mark.parametrize(
    ("genes", "examples", "noise", "climbed", "sure"),
    [
        (4, 400, 0.2, False, None),
        (4, 400, 0.6, False, "likely"),
        (41, 400, 0.2, False, "a guess"),
        (41, 400, 0.2, True, None),
    ],
)
def test_more_examples_are_advised_by_noise_and_by_genes(genes, examples, noise, climbed, sure):
    said = advice._on_examples(genes, examples, noise, climbed=climbed)
    assert [one.sure for one in said] == ([] if sure is None else [sure])
    assert all(f"{genes} genes, {examples} search examples" in one.evidence for one in said)


def test_a_space_that_was_searched_is_not_advised():
    assert {*advice._SPACES} <= {*space.shipped()}
    line = Advice(text="try a method that elects signs, `space: ties_per_block`", evidence="", sure="a guess")
    assert advice._is_searched(line, {"recipe": {"merge": {"method": "ties", "inputs": "experts"}}})
    assert not advice._is_searched(line, {"recipe": {"merge": {"method": "linear", "inputs": "experts"}}})


def test_similarity_is_read_once_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    models = Models.random(2)
    write_pool(tmp_path, models)
    pool = Pool(tmp_path / "base", {name: tmp_path / name for name in models.experts})
    found = advice.similarity(pool)
    rows = torch.stack(
        [
            torch.cat([(tensors[name].double() - models.base[name].double()).flatten() for name in pool.merged])
            for tensors in models.experts.values()
        ]
    )
    both = (rows[0] != 0) & (rows[1] != 0)
    expected = float(((rows[0] * rows[1]) < 0)[both].double().mean())
    assert found["conflicts"][0][1] == pytest.approx(expected)
    assert found["cosines"][0][1] == pytest.approx(float(np.corrcoef(rows)[0, 1]), abs=0.05)
    monkeypatch.setattr("evomerge.checkpoints.task_vectors.measure", None)
    assert advice.similarity(pool) == found


def test_pools_that_take_minutes_to_read_are_not_compared(tmp_path, monkeypatch):
    models = Models.random(2)
    write_pool(tmp_path, models)
    pool = Pool(tmp_path / "base", {name: tmp_path / name for name in models.experts})
    files = [file for model in (pool.base, *pool.experts.values()) for file in model.files]
    assert advice._size(pool) == sum(len(file.read_bytes()) for file in files)
    monkeypatch.setattr(advice, "similarity", lambda pool: pytest.fail("read"))
    monkeypatch.setattr(advice, "_MOST", advice._size(pool))
    assert advice._alike(pool) is None


def test_a_line_has_its_evidence_and_how_sure_it_is(build):
    one = Advice(text="do this", evidence="1 of 2", sure="likely")
    results = build(2).model_copy(update={"advice": (one,)})
    (line,) = tables.advice(results)
    assert line == "What to try next (likely): do this. Evidence: 1 of 2."
    assert line in tables.sentences(results)
    assert results.public()["advice"] == [one.model_dump()]
