"""Damaged lines of `costs.jl` are skipped and counted."""

import json

import pytest

from evomerge import costs
from evomerge.recipe import base
from evomerge.trial import Evaluation, Proposal

LINE = b'{"number": 0, "split": "search", "seconds": {"merge": 1.0, "score": 2.0}}\n'


def test_seconds_are_summed_by_split_and_phase(tmp_path):
    path = tmp_path / "costs.jl"
    assert costs.totals(tmp_path) == ({}, 0)
    for number, split in enumerate(("search", "search", "report")):
        costs.append(tmp_path, Proposal(number, base(), split=split), Evaluation(seconds={"merge": 1.0, "score": 2.0}))
    assert path.read_bytes().startswith(LINE)
    assert costs.totals(tmp_path) == (
        {"search: merge": 2.0, "search: score": 4.0, "report: merge": 1.0, "report: score": 2.0},
        0,
    )


@pytest.mark.parametrize(
    "damage",
    [LINE[:-20], b"\xff\xfe\n", b"\n", b"3\n", b"[]\n", b"{}\n", LINE.replace(b"2.0", b"null"), b"[" * 100_000],
)
def test_damaged_lines_are_skipped_and_counted(damage, tmp_path):
    path = tmp_path / "costs.jl"
    path.write_bytes(LINE + damage)
    costs.append(tmp_path, Proposal(1, base()), Evaluation(seconds={"score": 2.0}))
    assert costs.totals(tmp_path) == ({"search: merge": 1.0, "search: score": 4.0}, 1)
    assert json.loads(path.read_bytes().splitlines()[-1])["number"] == 1


def test_a_run_whose_workers_change_has_the_seconds_of_each_number(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(costs.time, "monotonic", lambda: now)
    with costs.timed(tmp_path, 2, {"a": 4}, ["a/accuracy"]) as clock:
        now += 10
        clock.resize(4)
        clock.resize(4)
        now += 5
        clock.resize(1)
        now += 3
        assert clock.worker_hours == pytest.approx((2 * 10 + 4 * 5 + 1 * 3) / 3600)
    (run,), damaged = costs.runs(tmp_path)
    assert (run.slots, damaged, len((tmp_path / "costs.jl").read_bytes().splitlines())) == (1, 0, 4)
    assert run.slot_seconds() == pytest.approx(43)
    assert run.slot_seconds(5, 12) == pytest.approx(2 * 5 + 4 * 2)
    assert costs.Clock(tmp_path, 1, {}, []).worker_hours == pytest.approx(43 / 3600)
