"""A source follows a journal that grows: each line is read once."""

import shutil
from types import SimpleNamespace

import pytest

from evomerge import pareto
from evomerge.errors import JournalError
from evomerge.study import Study
from evomerge.view.source import Source


@pytest.fixture
def growing(finished, tmp_path):
    """A study whose journal grows by `more(lines)`; returns its folder and that function."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder, ignore=lambda _, names: [n for n in names if n.startswith(("report", "journal"))])
    lines = (finished / "journal.jl").read_bytes().splitlines(keepends=True)

    def more(count, part=None):
        with (folder / "journal.jl").open("ab") as file:
            for _ in range(count):
                line = lines.pop(0)
                file.write(line if part is None else line[:part])
                if part is not None:
                    lines.insert(0, line[part:])

    return folder, more


def numbers(source):
    source.update()
    return [proposal.number for proposal, _ in source.rows]


def test_rows_grow_with_the_journal(growing):
    folder, more = growing
    source = Source(folder)
    assert numbers(source) == []
    more(5)
    early = numbers(source)
    assert early
    more(7)
    assert numbers(source)[: len(early)] == early
    assert sorted(numbers(source)) == Study.open(folder).trials()["number"].tolist()


def test_a_line_that_is_being_written_is_read_when_it_is_whole(growing):
    folder, more = growing
    source = Source(folder)
    more(1)
    more(1, part=30)
    before = numbers(source)
    more(1)
    assert len(numbers(source)) == len(before) + 1


def test_what_was_read_is_not_read_again(growing):
    folder, more = growing
    source = Source(folder)
    more(6)
    before = numbers(source)
    content = bytearray((folder / "journal.jl").read_bytes())
    content[12] ^= 1  # damage in what was read: whoever reads it again refuses it
    with (folder / "journal.jl").open("r+b") as file:
        file.write(content)
    more(6)
    assert len(numbers(source)) > len(before)
    with pytest.raises(JournalError):
        numbers(Source(folder))


def test_another_journal_in_its_place_begins_anew(growing):
    folder, more = growing
    source = Source(folder)
    more(12)
    many = numbers(source)
    generation = source.generation
    lines = (folder / "journal.jl").read_bytes().splitlines(keepends=True)[:4]
    (folder / "journal.jl").rename(folder / "journal.jl.damaged")
    (folder / "journal.jl").write_bytes(b"".join(lines))
    assert len(numbers(source)) < len(many)
    assert source.generation == generation + 1


def test_the_status_is_that_of_one_reading(growing):
    folder, more = growing
    source = Source(folder)
    found = []
    for _ in range(4):
        more(4)
        found.append(source.status().evaluated)
    assert found == sorted(found)
    assert found[-1] == Source(folder).status().evaluated == len(numbers(source))


def test_hypervolumes_are_those_of_all_candidates_and_only_new_ones_are_added(growing, monkeypatch):
    folder, more = growing
    source, added, add = Source(folder), [], pareto.Growing.add
    monkeypatch.setattr(pareto.Growing, "add", lambda self, point: added.append(point) or add(self, point))
    corner, counts = [0.0, 0.0], []
    for _ in range(3):
        more(8)
        source.update()
        found = source.volumes(corner)
        counts.append(len(added))
        assert found == pareto.hypervolume_history(source.means(source.good), corner).tolist()
        del added[:]
    assert counts[-1] < len(source.good) == sum(counts)
    assert source.volumes(corner) == found
    assert not added
    assert source.volumes([0.1, 0.1]) == pareto.hypervolume_history(source.means(source.good), [0.1, 0.1]).tolist()


def test_what_takes_seconds_is_made_again_for_a_tenth_more_candidates_and_at_the_end(growing):
    folder, _ = growing
    source, state, made = Source(folder), SimpleNamespace(state="running"), []
    source.status = lambda: state

    def look(rows):
        source.rows = [None] * rows
        return source.lately("fits", lambda: made.append(rows) or rows)

    assert [look(rows) for rows in (20, 20, 21, 22, 24, 25)] == [20, 20, 20, 22, 22, 25]
    state.state = "done"
    assert look(26) == look(26) == 26
    source.generation += 1
    state.state = "running"
    assert look(26) == 26
    assert made == [20, 22, 25, 26, 26]
