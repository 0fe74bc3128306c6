"""Progress: a line every ten seconds when piped, one line that changes in a notebook."""

import io
import sys
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from evomerge import progress as shown
from evomerge.progress import Phases, Progress, duration, step_printer


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


@pytest.mark.parametrize(("terminal", "lines"), [(False, 2), (True, 1)])
def test_a_reminder_is_a_line_each_time_when_piped_and_one_line_on_a_terminal(clock, terminal, lines):
    output = io.StringIO()
    console = Console(file=output, width=200, force_terminal=terminal, force_interactive=False, highlight=False)
    with Progress("search", 10, console) as progress:
        progress.remind("no worker is here: type [this]")
        progress.remind("no worker is here: type [this]")
        assert output.getvalue().count("search: no worker is here: type [this]\n") == lines


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


def test_phases_are_a_line_each_when_piped_and_the_time_of_one_is_not_that_of_another(clock):
    output = io.StringIO()
    with Phases(Console(file=output, width=200)) as watch:
        watch("merging", 0, 100)
        clock[0] += 5
        watch("compiling", 0, 1)
        clock[0] += 60
        watch("merging", 1, 100)
        for done in (26, 51, 76, 100):
            clock[0] += 1
            watch("merging", done, 100)
    assert output.getvalue().splitlines() == ["compiling: 1 min 0 s", "merging: 9.0 s"]


def test_a_long_phase_says_each_minute_what_is_left_at_its_own_rate(clock):
    output = io.StringIO()
    with Phases(Console(file=output, width=200)) as watch:
        watch("merging", 0, 100)
        for _ in range(2):  # two passes
            watch("measuring", 0, 40)
            for done in (10, 20, 30, 40):
                clock[0] += 31
                watch("measuring", done, 40)
        watch("merging", 50, 100)
    lines = output.getvalue().splitlines()
    assert lines[0] == "measuring: 50%, 1 min 2 s elapsed, 1 min 2 s left"
    assert lines[1] == "measuring: 25%, 2 min 35 s elapsed, 1 min 33 s left"
    assert lines[-1] == "measuring: 4 min 8 s"


def test_a_phase_of_a_moment_is_not_worth_a_line(clock):
    output = io.StringIO()
    with Phases(Console(file=output, width=200)) as watch:
        watch("merging", 0, 1)
        watch("merging", 1, 1)
    assert output.getvalue() == ""


def test_phases_on_a_terminal_are_one_bar(clock):
    output = io.StringIO()
    with Phases(Console(file=output, width=200, force_terminal=True)) as watch:
        watch("merging", 0, 4)
        clock[0] += 1
        watch("merging", 1, 4)
    assert "merging" in output.getvalue()
    assert "3.0 s left" in output.getvalue()


def test_hidden_progress_prints_only_what_is_said(clock, monkeypatch):
    monkeypatch.setattr(shown, "_hidden", False)  # and again at the end
    shown.hide(hidden=True)
    output = io.StringIO()
    console = Console(file=output, width=200)
    step_printer(console)("checking base")
    with Progress("search", 2, console) as progress, Phases(console) as watch:
        progress.say("waiting for workers")
        for done in (1, 2):
            clock[0] += 100
            progress(done)
            watch("merge", done, 2)
    assert output.getvalue() == "search: waiting for workers\n"
