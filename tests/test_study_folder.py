"""A study's folder: written by an earlier version, damaged, or in use.

`data/format1` was written at commit ee9f08c, whose journals have no genomes: a search of 12 evaluations and its report.
"""

import contextlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import changed

from evomerge import costs, header, search, space
from evomerge.errors import EvomergeError, StudyError
from evomerge.evaluate import CachingEvaluator, Evaluator
from evomerge.history import digest
from evomerge.report import measure, tables
from evomerge.settings import StudySettings
from evomerge.study import Study
from evomerge.trial import Evaluation

DATA = Path(__file__).parent / "data" / "format1"
DIGESTS = {
    12: "2158dff162c6f7fcb18307e93786ff32ba765a2a25d6590fd679301284293687",
    24: "8319ab6e26480dec24f99173532fc325c62c104347581d62a0e935d3e404b5c4",
}
"""Digests by budget, of this search at commit ee9f08c."""


class FromIds(Evaluator):
    """Scores derived from the recipe's id alone; some fail."""

    slots = 1

    def __init__(self):
        self.lineage = {}
        self.queue = []
        self.count = 0

    def submit(self, proposal):
        self.queue.append(proposal)

    def wait(self):
        self.count += 1
        proposal = self.queue.pop(0)
        if int(proposal.recipe.id, 16) % 7 == 0 and proposal.number > 6 and proposal.split == "search":
            return proposal.number, Evaluation(error="made to fail")
        rng = np.random.default_rng(int(proposal.recipe.id[:8], 16))
        scores = {f"{task}/score": rng.random(3, dtype=np.float32) for task in ("first", "second")}
        return proposal.number, Evaluation(scores)


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(DATA, tmp_path / "old")
    header = (DATA / "study.json").read_text().replace("POOL", str(DATA))
    (tmp_path / "old" / "study.json").write_text(header)
    return tmp_path / "old"


def _resume(folder, evaluations, evaluator=None):
    study = Study.open(folder)
    study = Study.open(folder, study.settings.model_copy(update={"evaluations": evaluations}))
    evaluator = evaluator or FromIds()
    study.run(CachingEvaluator(evaluator, study.parts.sizes))
    return study, evaluator.count


def test_an_old_study_resumes_with_the_digest_of_the_old_version(folder):
    journal = (folder / "journal.jl").read_bytes()
    study, count = _resume(folder, 12)
    assert (digest(study.history().completed), count) == (DIGESTS[12], 0)
    study, count = _resume(folder, 24)
    assert (digest(study.history().completed), count) == (DIGESTS[24], 12)
    assert study.journal_path.read_bytes().startswith(journal)
    study, count = _resume(folder, 24)
    assert (digest(study.history().completed), count) == (DIGESTS[24], 0), "both kinds of records are replayed"


def test_a_study_whose_settings_named_no_driver_keeps_the_one_it_started_with(folder, tmp_path):
    """As one from before `mixtures` and `most` were the default, of which `study.json` records `{"kind": "front"}`."""

    def settings(evaluations, driver=None):
        update = {"driver": driver, "evaluations": evaluations, "space": space.read("linear")}
        return Study.open(folder).settings.model_copy(update=update)

    def run(study):
        study.run(CachingEvaluator(FromIds(), study.parts.sizes))
        return study.journal_path.read_bytes()

    old = Study.create(tmp_path / "front", settings(12, {"kind": "front", "mixtures": False}))
    content = run(old)
    header = old.folder / "study.json"
    said = json.loads(header.read_text())
    identity = said["identity"] | {"driver": {"kind": "front"}}
    header.write_text(json.dumps(said | {"identity": identity, "settings": settings(12).model_dump(mode="json")}))
    lines = content.splitlines(keepends=True)
    for cut in (0, 5, len(lines) - 2, len(lines)):
        old.journal_path.write_bytes(b"".join(lines[:cut]))
        assert run(Study.create(old.folder, settings(12))) == content
    assert run(Study.create(old.folder, settings(14))).startswith(content)
    assert Study.open(old.folder).parts.driver == {"kind": "front"}, "also after the header was saved again"


def test_a_new_study_draws_mixtures_and_a_driver_that_was_typed_cannot_be_left_out(folder, tmp_path):
    settings = Study.open(folder).settings.model_copy(update={"driver": None, "space": space.read("linear")})
    new = Study.create(tmp_path / "new", settings)
    assert new.parts.driver == {"kind": "front", "mixtures": True, "most": 1000}
    assert Study.open(new.folder).parts.driver == new.parts.driver
    typed = Study.create(tmp_path / "typed", settings.model_copy(update={"driver": {"kind": "random"}}))
    with pytest.raises(StudyError, match=r'driver.kind: was "random", is "front"'):
        Study.open(typed.folder, settings)


@pytest.mark.parametrize("objectives", [1, 2])
def test_random_draws_mixtures_in_new_studies_and_what_it_drew_before_in_old_ones(folder, tmp_path, objectives):
    settings = Study.open(folder).settings
    tasks = dict([*settings.tasks.items()][:objectives])
    update = {"driver": {"kind": "random"}, "space": space.read("linear"), "tasks": tasks, "evaluations": 12}
    settings = settings.model_copy(update=update)

    def run(study):
        study.run(CachingEvaluator(FromIds(), study.parts.sizes))
        return study.journal_path.read_bytes()

    new = Study.create(tmp_path / "new", settings)
    assert new.parts.driver == {"kind": "random", "mixtures": True}
    content = run(new)
    assert run(Study.create(new.folder, settings)) == content

    old = Study.create(
        tmp_path / "before", settings.model_copy(update={"driver": {"kind": "random", "mixtures": False}})
    )
    before = run(old)
    header = old.folder / "study.json"  # as one of the last version, in which `mixtures` was false by default
    recorded = json.loads(header.read_text())
    recorded["identity"]["driver"] = {"kind": "random"}
    header.write_text(json.dumps(recorded | {"settings": settings.model_dump(mode="json")}))
    old.journal_path.write_bytes(b"".join(before.splitlines(keepends=True)[:7]))
    assert run(Study.create(old.folder, settings)) == before
    assert before != content


def test_the_default_budget_is_recorded_and_resuming_keeps_it(folder, tmp_path, monkeypatch):
    data = Study.open(folder).settings.model_dump(mode="json", exclude={"evaluations"})
    settings = StudySettings.model_validate(data)
    new = Study.create(tmp_path / "new", settings)
    expected, _ = search.budget(new.parts.new_driver(0), new.parts.space)
    assert new.settings.evaluations == expected
    monkeypatch.setattr(search, "budget", lambda *_: (1, "another rule"))
    assert Study.create(new.folder, settings).settings.evaluations == expected
    assert Study.open(new.folder).settings.evaluations == expected


def test_an_old_report_is_shown_without_scoring_anything(folder):
    results = measure.measure(Study.open(folder), _Refusing())
    assert (results.digest, results.evaluations) == (DIGESTS[12], 12)
    assert [point.recipe_id[:12] for point in results.front] == ["f83609a520b9", "17cb036505cd", "3bac2d3f5c22"]
    assert {name: model.recipe_id[:12] for name, model in results.references.items()} == {
        "average": "0955be87c922",
        "base": "751bbc009e4c",
        "best scale 0.4": "2ba004e437b2",
        "expert code": "9935d8aa5548",
        "expert maths": "5342d75b8c03",
    }
    assert results.references["base"].report["first"][0] == pytest.approx(0.38342390457789105)
    assert results.hypervolume.search == pytest.approx(0.24842695721027364)


class _Refusing(FromIds):
    def submit(self, proposal):
        raise AssertionError(proposal)


def test_damaged_costs_are_left_out_with_a_note(folder):
    path = folder / "costs.jl"
    os.truncate(path, path.stat().st_size - 30)
    before, damaged = costs.totals(folder)
    assert damaged == 1
    study, _ = _resume(folder, 16)
    results = measure.measure(study, FromIds())
    assert results.damaged_costs == 1
    assert results.costs.keys() >= before.keys()
    assert "1 lines of costs.jl are damaged: the times leave them out." in tables.sentences(results)


def test_a_refused_run_leaves_the_header_as_it_was(folder):
    header = (folder / "study.json").read_bytes()
    with Study.open(folder).lock(), pytest.raises(StudyError, match=r"in use by process \d+ on "):
        _resume(folder, 24)
    assert (folder / "study.json").read_bytes() == header
    other = header.replace(b'"seed": 0', b'"seed": 5')  # as another version would: other proposals
    (folder / "study.json").write_bytes(other)
    with pytest.raises(StudyError, match=r"replaying proposal \d+ gave another recipe"):
        _resume(folder, 24)
    assert (folder / "study.json").read_bytes() == other
    (folder / "study.json").write_bytes(header)
    _resume(folder, 24)
    assert json.loads((folder / "study.json").read_text())["settings"]["evaluations"] == 24


def _in_child(work):
    """Return the exit code of a copy of this process that does some work."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class _Poison(FromIds):
    """One candidate ends the process that evaluates it."""

    def wait(self):
        if self.queue[0].number == 15:
            os._exit(9)
        return super().wait()


def test_a_candidate_that_kills_the_process_again_and_again_fails_and_the_search_goes_on(folder):
    deaths = 0
    while (status := _in_child(lambda: _resume(folder, 24, _Poison()))) == 9:
        deaths += 1
        assert deaths < 5
    assert (status, deaths) == (0, 3)
    study, count = _resume(folder, 24, _Poison())
    assert count == 0
    errors = {proposal.number: evaluation.error for proposal, evaluation in study.population()}
    assert len(errors) == 24
    assert "the process died at this candidate" in errors[15]
    assert "--retry-failed" in errors[15]
    assert not (folder / "attempt.json").exists()


def test_an_interrupted_candidate_is_tried_again_any_number_of_times(folder):
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            _resume(folder, 13, _Interrupted())
    study, _ = _resume(folder, 13)
    assert digest(study.history().completed[:12]) == DIGESTS[12]
    assert study.population()[12][1].error in (None, "made to fail")


class _Interrupted(FromIds):
    def wait(self):
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["lock", "costs.jl", "journal.jl", "report.jl", "members", "other"])
def test_links_out_of_a_studys_folder_are_refused_and_what_they_lead_to_is_not_touched(name, folder, tmp_path):
    target = tmp_path / "mine"
    target.write_text("mine")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)
    with pytest.raises(StudyError, match=f"{name}: links to .*mine, outside of the study"):
        Study.open(folder)
    assert target.read_text() == "mine"


def test_changed_configuration_or_tokenizer_of_the_base_is_refused_with_the_file(folder, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(DATA / "base", base)
    (base / "tokenizer.json").write_text("{}")
    settings = Study.open(folder).settings
    pool = settings.pool.model_copy(update={"base": str(base)})
    new = Study.create(tmp_path / "new", settings.model_copy(update={"pool": pool}))
    for name in ("config.json", "tokenizer.json"):
        before = (base / name).read_text()
        (base / name).write_text(before + "\n")
        with pytest.raises(StudyError, match=f'text_digests.{name}: was "'):
            Study.open(new.folder)
        (base / name).write_text(before)
    (base / "notes.json").write_text("{}")  # no score depends on it
    Study.open(new.folder)
    path = new.folder / "study.json"
    older = json.loads(path.read_text())
    del older["identity"]["text_digests"]
    path.write_text(json.dumps(older))
    (base / "tokenizer.json").write_text("{} ")
    Study.open(new.folder)  # an older version recorded none


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda header: b"", "expected JSON"),
        (lambda header: header[:200], "expected JSON"),
        (lambda header: b"\xff" + header, "expected JSON"),
        (lambda header: b"[" * 100_000, "expected JSON"),
        (lambda header: b"[]", "expected a mapping"),
        (lambda header: b"{}", "`format` is missing"),
        (lambda header: header.replace(b'"format": 1', b'"format": 2'), "`format`: input should be 1, got 2"),
        (lambda header: header.replace(b'"settings": {', b'"others": {'), "`settings` is missing"),
        (lambda header: header.replace(b'"seed": 0', b'"sed": 0'), "did you mean `seed`"),
        (
            lambda header: header.replace(b'"versions": {', b'"versions": 3, "then": {'),
            "`versions`: expected a mapping",
        ),
    ],
)
def test_a_damaged_header_is_one_clear_error(damage, reason, folder):
    path = folder / "study.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StudyError) as error:
        Study.open(folder)
    assert str(error.value).startswith(str(path))
    assert reason in str(error.value)
    assert "restore the file from a copy" in str(error.value)


@settings(derandomize=True, max_examples=100)
@given(st.data())
def test_any_header_is_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("study")
    content = json.loads((DATA / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(data.draw(changed(content))))
    with contextlib.suppress(StudyError):
        header.read(folder)


@settings(derandomize=True, max_examples=100)
@given(changed({"pool": {"base": "b", "experts": {"a": "x"}}, "space": "linear", "tasks": {"t": {"kind": "callable"}}}))
def test_any_settings_are_read_or_refused(data):
    with contextlib.suppress(EvomergeError):
        StudySettings.parse(data, "settings", Path("here"))
