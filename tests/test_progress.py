"""Progress: a line every ten seconds when piped, one line that changes in a notebook."""

import io
import sys
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from evomerge.progress import Progress, duration, step_printer


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_piped_progress_prints_a_line_every_ten_seconds_and_at_the_end(clock):
    output = io.StringIO()
    with Progress("search", 10, Console(file=output, width=200)) as progress:
        for done in range(1, 11):
            clock[0] += 4
            progress(done)
    lines = output.getvalue().splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        "search: 3/10",
        "search: 6/10",
        "search: 9/10",
        "search: 10/10",
    ]
    assert lines[-1].endswith("done")


def test_progress_in_a_notebook_is_one_line_that_is_updated(clock, monkeypatch):
    shown, updates = [], []
    handle = SimpleNamespace(update=lambda data, raw: updates.append(data["text/plain"]))

    def display(data, raw, display_id):
        shown.append(data["text/plain"])
        return handle

    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    with Progress("search", 3, Console(file=io.StringIO(), force_jupyter=True)) as progress:
        for done in range(1, 4):
            clock[0] += 1
            progress(done)
    assert [line.partition(",")[0] for line in shown] == ["search: 1/3"]
    assert [line.partition(",")[0] for line in updates] == ["search: 2/3", "search: 3/3"]


@pytest.mark.parametrize(("seconds", "text"), [(0.24, "0.2 s"), (41, "41 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")])
def test_durations_are_read_at_a_glance(seconds, text):
    assert duration(seconds) == text


def test_notes_are_printed_as_they_are_whatever_brackets_they_have(clock):
    output = io.StringIO()
    note = "failed: cannot read [/tmp/x] or [bold]y"
    with Progress("search", 1, Console(file=output, width=200)) as progress:
        progress(1, note=note)
    assert note in output.getvalue()
    with Progress("search", 1, Console(file=output, width=200, force_terminal=True)) as progress:
        progress(1, note=note)
    step_printer(Console(file=output, width=200))("[/x]")
    assert "[/x]" in output.getvalue()


def test_the_time_left_is_estimated_without_the_time_before_the_first_result(clock):
    output = io.StringIO()
    with Progress("search", 120, Console(file=output, width=200)) as progress:
        clock[0] += 20  # start-up
        progress(80)  # the first result after a resume
        for done in (81, 82):
            clock[0] += 12
            progress(done)
    lines = output.getvalue().splitlines()
    assert "left" not in lines[0]
    assert lines[1:] == [
        "search: 81/120, 32 s elapsed, 7 min 48 s left",
        "search: 82/120, 44 s elapsed, 7 min 36 s left",
    ]


def test_the_time_left_of_a_second_phase_is_estimated_from_that_phase(clock):
    output = io.StringIO()
    with Progress("report", 4, Console(file=output, width=200)) as progress:
        for done in (1, 2, 3, 4):
            clock[0] += 100
            progress(done)
        for done in (1, 2):
            clock[0] += 20
            progress(done, 38)
    assert output.getvalue().splitlines()[-1] == "report: 2/38, 7 min 20 s elapsed, 12 min 0 s left"
