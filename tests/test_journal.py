"""The journal: acknowledged records survive every kill, and damage is never read as data."""

import contextlib
import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import evaluations, genomes, plain, recipes

from evomerge import journal
from evomerge.errors import JournalError
from evomerge.journal import Journal, Tell
from evomerge.recipe import Recipe, base, expert
from evomerge.trial import Evaluation, Proposal


def filled(path, count=4):
    """Write `count` asks and tells; return the bytes after each record."""
    sizes = [0]
    with Journal(path) as record:
        for number in range(count):
            record.ask(Proposal(number, expert(f"expert {number}")))
            sizes.append(path.stat().st_size)
            record.tell(number, Evaluation(scores={"task/accuracy": np.array([number, 0.5], np.float32)}))
            sizes.append(path.stat().st_size)
    return sizes


def content(path):
    """Return the records in a form that can be compared."""
    return [
        (r.number, r.recipe.json, r.split)
        if isinstance(r, Proposal)
        else (r.number, json.dumps(r.evaluation.to_json()))
        for r in journal.read(path)
    ]


def test_missing_journal_is_empty(tmp_path):
    assert journal.read(tmp_path / "none.jl") == []


@given(st.lists(st.tuples(recipes(), evaluations, st.sampled_from(["search", "report"]), genomes(3)), max_size=4))
def test_records_read_back(tmp_path_factory, entries):
    path = tmp_path_factory.mktemp("journal") / "journal.jl"
    with Journal(path) as record:
        for number, (data, scores, split, genome) in enumerate(entries):
            record.ask(Proposal(number, Recipe.parse(data), genome, split))
            record.tell(number, Evaluation(scores=scores))
    records = journal.read(path)
    for number, (data, scores, split, genome) in enumerate(entries):
        ask, tell = records[2 * number : 2 * number + 2]
        assert isinstance(ask, Proposal)
        assert isinstance(tell, Tell)
        assert (ask.number, ask.recipe, ask.split) == (number, Recipe.parse(data), split)
        assert ask.genome.dtype == np.float64
        assert ask.genome.tobytes() == genome.tobytes()
        assert tell.number == number
        assert {name: v.tobytes() for name, v in tell.evaluation.scores.items()} == {
            n: v.tobytes() for n, v in scores.items()
        }


def test_only_proposals_of_a_part_have_examples(tmp_path):
    with Journal(tmp_path / "a.jl") as record:
        record.ask(Proposal(0, expert("maths")))
        record.ask(Proposal(1, expert("maths"), examples={"t": (7, 2), "a": (0,)}))
    one, other = (line[9:] for line in (tmp_path / "a.jl").read_text().splitlines())
    assert one == '{"ask":0,"recipe":{"expert":"maths"}}'
    assert other == '{"ask":1,"recipe":{"expert":"maths"},"examples":{"a":[0],"t":[7,2]}}'
    assert [ask.examples for ask in journal.read(tmp_path / "a.jl")] == [None, {"a": (0,), "t": (7, 2)}]


def test_bytes_depend_on_nothing_but_what_was_recorded(tmp_path):
    filled(tmp_path / "one.jl")
    time.sleep(0.01)
    filled(tmp_path / "two.jl")
    assert (tmp_path / "one.jl").read_bytes() == (tmp_path / "two.jl").read_bytes()


def test_lines_do_not_depend_on_the_order_of_arrival(tmp_path):
    filled(tmp_path / "one.jl", 3)
    with Journal(tmp_path / "two.jl") as record:
        for number in range(3):
            record.ask(Proposal(number, expert(f"expert {number}")))
        for number in (2, 0, 1):
            record.tell(number, Evaluation(scores={"task/accuracy": np.array([number, 0.5], np.float32)}))
    one, two = ((tmp_path / name).read_bytes().splitlines() for name in ("one.jl", "two.jl"))
    assert sorted(one) == sorted(two)


@pytest.fixture
def synced(monkeypatch):
    """Sizes of the file at each sync."""
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    return sizes


def test_results_are_on_disk_before_tell_returns(tmp_path, synced):
    with Journal(tmp_path / "a.jl") as record:
        synced.clear()  # of the folder, when the file is new
        record.ask(Proposal(0, expert("maths")))
        assert synced == []
        record.tell(0, Evaluation(error="killed"))
        assert synced == [(tmp_path / "a.jl").stat().st_size]


def test_results_of_one_second_are_synced_together_whatever_follows(tmp_path, synced, monkeypatch):
    monkeypatch.setattr(journal, "_SYNC_INTERVAL", 0.2)
    path = tmp_path / "a.jl"
    with Journal(path) as record:
        record.tell(0, Evaluation(error="killed"))
        synced.clear()
        for number in range(1, 50):
            record.tell(number, Evaluation(error="killed"))
            assert len(journal.read(path)) == number + 1  # with the operating system: a kill cannot take it
        deadline = time.monotonic() + 20
        while synced[-1:] != [path.stat().st_size] and time.monotonic() < deadline:
            time.sleep(0.01)  # without another record
        assert synced[-1] == path.stat().st_size
        assert len(synced) < 25


def test_last_results_are_synced_when_the_journal_closes(tmp_path, synced, monkeypatch):
    monkeypatch.setattr(journal, "_SYNC_INTERVAL", 3600)
    with Journal(tmp_path / "a.jl") as record:
        record.tell(0, Evaluation(error="killed"))
        record.tell(1, Evaluation(error="killed"))
        assert synced[-1] < (tmp_path / "a.jl").stat().st_size
    assert synced[-1] == (tmp_path / "a.jl").stat().st_size


def tell_on(record):
    for number in range(2, 1000):
        time.sleep(0.01)
        record.tell(number, Evaluation(error="killed"))


def test_failure_of_a_late_sync_is_raised_by_the_next_record_or_on_closing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.EIO, "broken disk")

    for closes in (False, True):
        monkeypatch.undo()
        monkeypatch.setattr(journal, "_SYNC_INTERVAL", 3600 if closes else 0.01)
        record = Journal(tmp_path / f"{closes}.jl")
        record.tell(0, Evaluation(error="killed"))
        monkeypatch.setattr(os, "fsync", full)
        record.tell(1, Evaluation(error="killed"))
        with pytest.raises(JournalError, match=r"cannot write \(broken disk\)"):
            record.__exit__(None, None, None) if closes else tell_on(record)
        with contextlib.suppress(JournalError):
            record.__exit__(None, None, None)


def test_torn_tail_is_cut_at_every_byte(tmp_path):
    """Cut anywhere in the last record (or in the one before): all earlier records stay, and appending goes on."""
    sizes = filled(tmp_path / "whole.jl")
    whole = (tmp_path / "whole.jl").read_bytes()
    expected = content(tmp_path / "whole.jl")
    path = tmp_path / "torn.jl"
    for size in range(sizes[-3], sizes[-1]):
        path.write_bytes(whole[:size])
        kept = sum(size >= end for end in sizes[1:])
        assert content(path) == expected[:kept]  # readers need no repair
        with Journal(path) as record:
            record.tell(9, Evaluation(error="killed"))
        assert content(path) == [*expected[:kept], (9, '{"error": "killed"}')]


def test_every_flipped_bit_in_the_middle_is_refused_with_its_line(tmp_path):
    sizes = filled(tmp_path / "whole.jl", 2)
    whole = (tmp_path / "whole.jl").read_bytes()
    path = tmp_path / "damaged.jl"
    for at in range(sizes[1], sizes[2]):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        for attempt in (journal.read, Journal):
            with pytest.raises(JournalError, match=r"damaged.jl: line [23] is damaged; restore the file from a copy"):
                attempt(path)
        assert path.read_bytes() == bytes(damaged)  # nothing is repaired by guessing


def test_records_of_a_later_version_are_refused(tmp_path):
    body = b'{"prune":3}'
    (tmp_path / "a.jl").write_bytes(b"%08x %s\n" % (zlib.crc32(body), body))
    with pytest.raises(JournalError, match=r"line 1 is of a kind unknown to this version \(prune\)"):
        journal.read(tmp_path / "a.jl")


def framed(*bodies):
    """Return the lines of a journal with these bodies and the right checksums."""
    return b"".join(b"%08x %s\n" % (zlib.crc32(body), body) for body in map(str.encode, bodies))


ASK, TELL = '{"ask":%d,"recipe":"base"}', '{"tell":%d,"error":"x"}'


def test_genomes_are_little_endian_float64_and_journals_without_them_go_on(tmp_path):
    path = tmp_path / "a.jl"
    path.write_bytes(framed(ASK % 0, TELL % 0))  # format 1
    with Journal(path) as record:
        record.ask(Proposal(1, expert("maths"), np.array([1.0, -2.0])))
    # 1.0 is 3ff0000000000000, -2.0 is c000000000000000 (IEEE 754), lowest byte first
    assert path.read_bytes().endswith(b'{"ask":1,"recipe":{"expert":"maths"},"genome":"AAAAAAAA8D8AAAAAAAAAwA=="}\n')
    first, _, second = journal.read(path)
    assert first.genome is None
    assert second.genome.tolist() == [1, -2]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("1.5", "of a kind unknown to this version"),
        ("[1]", "of a kind unknown"),
        ("{", "no valid record"),
        ("[" * 100_000, "no valid record"),
        ('{"ask":2}', "`recipe` is missing"),
        (
            '{"ask":true,"recipe":"base"}',
            "`ask`: expected an integer, got True",
        ),
        ('{"ask":-1,"recipe":"base"}', "greater than or equal to 0"),
        ('{"ask":0,"recipe":{"marge":1}}', "did you mean `merge`"),
        ('{"ask":0,"recipe":"base","split":"test"}', "`split`"),
        ('{"ask":0,"recipe":"base","examples":{"t":"ab"}}', "`examples.t`"),
        ('{"ask":0,"recipe":"base","genome":[1]}', "`genome`: expected a word"),
        ('{"ask":0,"recipe":"base","genome":"AAAA"}', "no valid record"),
        ('{"ask":0,"recipe":"base","genom":"AAAA"}', "unknown key `genom`"),
        ('{"tell":0}', "expected either `scores` or `error`"),
        ('{"tell":0,"scores":1}', "`scores`: expected a mapping"),
        ('{"tell":0,"scores":{"t/score":"base"}}', "no valid record"),
        ('{"tell":0,"scores":{"t/score":"ba%e"}}', "no valid record"),
        ('{"tell":0,"scores":{},"outputs":{"t/o":{"columns":3,"rows":"AAAAAA=="}}}', "no valid record"),
        ('{"tell":0,"error":5}', "`error`: expected a word"),
    ],
)
def test_records_that_no_version_writes_are_refused_with_their_line(tmp_path, body, message):
    path = tmp_path / "a.jl"
    path.write_bytes(framed(ASK % 0, body))
    for attempt in (journal.read, lambda path: list(journal.events(path))):
        with pytest.raises(JournalError, match=f"line 2 is .*({message})"):
            attempt(path)


@given(plain | st.fixed_dictionaries({"tell": st.integers() | plain}, optional={"scores": plain, "error": plain}))
def test_any_record_with_the_right_checksum_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("journal") / "journal.jl"
    path.write_bytes(framed(json.dumps(data)))
    with contextlib.suppress(JournalError):
        journal.read(path)


@pytest.mark.parametrize(
    ("bodies", "line"),
    [
        ((TELL % 0,), 1),  # its ask is missing
        ((ASK % 1,), 1),
        ((ASK % 0, ASK % 2), 2),
        ((ASK % 0, ASK % 0), 2),  # doubled
        ((ASK % 0, TELL % 0, TELL % 0), 3),
        ((ASK % 0, TELL % 0, ASK % 0), 3),
        ((ASK % 0, TELL % 1, ASK % 1), 2),  # swapped
    ],
)
def test_missing_doubled_and_swapped_lines_are_refused(tmp_path, bodies, line):
    (tmp_path / "a.jl").write_bytes(framed(*bodies))
    with pytest.raises(JournalError, match=rf"a.jl: line {line} is .*; lines are missing, doubled or swapped: restore"):
        list(journal.events(tmp_path / "a.jl"))


@pytest.mark.parametrize("spoilt", ["flipped", "lost", "doubled", "nonsense"])
def test_repair_keeps_the_lines_before_the_first_that_is_not_valid_and_a_copy_of_all(tmp_path, spoilt):
    path = tmp_path / "a.jl"
    lines = [framed(body) for body in (ASK % 0, TELL % 0, ASK % 1, TELL % 1, ASK % 2)]
    changed = {
        "flipped": [*lines[:2], lines[2].replace(b"base", b"bape"), *lines[3:]],
        "lost": [*lines[:2], *lines[3:]],
        "doubled": [*lines[:2], lines[1], *lines[2:]],
        "nonsense": [*lines[:2], framed('{"ask":1}'), *lines[3:]],
    }[spoilt]
    path.write_bytes(b"".join(changed))
    assert journal.repair(path) == (2, len(changed) - 2)
    assert path.read_bytes() == b"".join(lines[:2])
    assert (tmp_path / "a.jl.damaged").read_bytes() == b"".join(changed)
    assert [evaluation is not None for _, evaluation in journal.events(path)] == [False, True]
    assert journal.repair(path) is None
    path.write_bytes(b"".join(changed))
    with pytest.raises(JournalError, match="from an earlier repair"):
        journal.repair(path)
    assert path.read_bytes() == b"".join(changed)


def test_events_give_each_proposal_again_with_its_evaluation(tmp_path):
    path = tmp_path / "a.jl"
    path.write_bytes(framed(ASK % 0, ASK % 1, TELL % 1, TELL % 0))
    events = [(proposal.number, evaluation and evaluation.error) for proposal, evaluation in journal.events(path)]
    assert events == [(0, None), (1, None), (1, "x"), (0, "x")]


def test_replay_reads_only_records_that_are_not_those_of_their_proposals(tmp_path, monkeypatch):
    path = tmp_path / "journal.jl"
    filled(path)
    read, matched = [], []
    record = journal._record
    monkeypatch.setattr(journal, "_record", lambda *args: read.append(args[1]) or record(*args))

    def match(recorded, proposal):
        matched.append((recorded.recipe, proposal))
        return proposal

    same = iter([Proposal(number, expert(f"expert {number}")) for number in range(4)])
    events = list(journal.replay(path, lambda: next(same), match))
    assert (read, matched) == ([2, 4, 6, 8], []), "results alone"
    assert [(p.number, p.recipe, done is None) for p, done in events] == [
        (i // 2, expert(f"expert {i // 2}"), i % 2 == 0) for i in range(8)
    ]
    others = [Proposal(0, expert("expert 0"), np.zeros(1)), None]
    [(first, _), (told, _)] = itertools.islice(journal.replay(path, iter(others).__next__, match), 2)
    assert first is told is others[0]
    assert matched == [(expert("expert 0"), others[0])]
    assert list(journal.replay(tmp_path / "none.jl", lambda: None, match)) == []


def test_events_of_many_records_are_not_all_in_memory(tmp_path):
    path = tmp_path / "journal.jl"
    filled(path, 3)
    path.write_bytes(path.read_bytes() + b"00000000 damaged\n")
    events = journal.events(path)
    assert len([next(events) for _ in range(6)]) == 6
    with pytest.raises(JournalError, match="line 7 is damaged"):
        next(events)


def test_interrupted_report_may_ask_again_for_what_has_no_result(tmp_path):
    path = tmp_path / "a.jl"
    path.write_bytes(framed(ASK % 0, ASK % 1, TELL % 0, '{"ask":1,"recipe":{"expert":"maths"}}', TELL % 1, ASK % 2))
    recipes = [proposal.recipe for proposal, evaluation in journal.events(path, retried=True) if evaluation]
    assert recipes == [base(), expert("maths")]


def test_error_text_that_is_no_unicode_is_recorded_escaped(tmp_path):
    path = tmp_path / "a.jl"
    with Journal(path) as record:
        record.tell(0, Evaluation(error="x \ud800 é"))
    assert journal.read(path)[0].evaluation.error == "x \\ud800 é"


def run(code, *arguments, **more):
    """Run Python code in another process, up to its end or its kill."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **more,
    )


def test_full_disk_keeps_what_was_acknowledged(tmp_path):
    """A limit on the file's size stands for the disk: writes come back short, then not at all."""
    path = tmp_path / "journal.jl"
    result = run(
        """
        import resource, sys
        from pathlib import Path
        import numpy as np
        from evomerge.errors import JournalError
        from evomerge.journal import Journal
        from evomerge.recipe import base
        from evomerge.trial import Evaluation, Proposal
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        record = Journal(Path(sys.argv[1]))
        evaluation = Evaluation(scores={"a": np.zeros(20, np.float32)})
        done = 0
        try:
            while True:
                record.ask(Proposal(done, base()))
                record.tell(done, evaluation)
                done += 1
        except JournalError as error:
            print(done, error)
        try:
            record.tell(done, evaluation)
        except JournalError:
            print("still full")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        record.tell(done, evaluation)
        """,
        path,
    )
    assert result.returncode == 0, result.stderr
    done = int(result.stdout.split()[0])
    assert done > 2
    assert "cannot write" in result.stdout
    assert "nothing acknowledged is lost" in result.stdout
    assert "still full" in result.stdout
    found = journal.read(path)
    assert [r.number for r in found if isinstance(r, Tell)] == list(range(done + 1))  # with space again, it went on


def test_kill_in_the_middle_of_appending_keeps_what_was_acknowledged(tmp_path):
    """SIGKILL at random moments: at most what was never acknowledged is missing, and the next writer goes on."""
    code = """
        import sys
        from pathlib import Path
        import numpy as np
        from evomerge import journal
        from evomerge.journal import Journal
        from evomerge.recipe import base
        from evomerge.trial import Evaluation, Proposal
        path = Path(sys.argv[1])
        number = len(journal.read(path))
        record = Journal(path)
        evaluation = Evaluation(scores={"a": np.zeros(20000, np.float32)})
        while True:
            record.tell(number, evaluation)
            print(number, flush=True)
            number += 1
    """
    path = tmp_path / "journal.jl"
    generator = np.random.default_rng(0)
    acknowledged = -1
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(path)], stdout=subprocess.PIPE, text=True
        ) as process:
            lines = [process.stdout.readline() for _ in range(3)]
            time.sleep(generator.uniform(0, 0.02))
            os.kill(process.pid, signal.SIGKILL)
            lines += process.stdout.readlines()
        acknowledged = max(int(line) for line in lines if line.endswith("\n"))
        numbers = [record.number for record in journal.read(path)]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > acknowledged
    assert acknowledged > 6
