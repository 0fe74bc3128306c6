"""The sham control: the same search over shuffled experts, beside the study, resumable, and what real experts give beyond it."""

import json
import shutil

import numpy as np
import pytest
import yaml
from commands import evomerge

from evomerge import control
from evomerge.errors import PoolError, StudyError
from evomerge.evaluate import Worker
from evomerge.recipe import Recipe
from evomerge.report import measure, tables
from evomerge.report.export import export
from evomerge.study import Study


@pytest.fixture(scope="module")
def controlled(finished, tmp_path_factory):
    """A copy of the small study's directory with its control, what the command printed, and the study's files before."""
    folder = tmp_path_factory.mktemp("control") / "run"
    shutil.copytree(finished[0], folder)
    before = {name: (folder / name).read_bytes() for name in ("journal.jl", "study.json", "report.jl")}
    return folder, evomerge("control", folder).stdout, before


def test_a_control_is_the_same_search_over_other_experts_in_a_folder_of_its_own(controlled):
    folder, _, before = controlled
    assert {name: (folder / name).read_bytes() for name in before} == before
    study, sham = Study.open(folder), Study.open(folder / "sham")
    assert (study.parts.pool.shuffled, sham.parts.pool.shuffled) == (None, study.settings.seed)
    for key in ("evaluations", "seed", "space", "tasks", "report"):
        assert getattr(sham.settings, key) == getattr(study.settings, key)
    assert sham.parts.driver == study.parts.driver
    assert len(sham.population()) == len(study.population())
    initial = [proposal.recipe.id for proposal, _ in study.population()][:4]
    assert [proposal.recipe.id for proposal, _ in sham.population()][:4] == initial, "the same known recipes first"
    assert sham.digest() != study.digest()


def test_the_report_says_what_the_real_pick_gives_beyond_the_pick_of_the_control(controlled):
    folder, printed, _ = controlled
    study, sham = Study.open(folder), Study.open(folder / "sham")
    ours, theirs = measure.measure(study), measure.measure(sham)
    means = [
        Worker(one.parts.setup).evaluate(Recipe.parse(results.pick.recipe), "report").means(one.parts.reported).mean()
        for one, results in ((study, ours), (sham, theirs))
    ]
    found = ours.control
    value, low, high = found.difference
    assert value == pytest.approx(means[0] - means[1], abs=1e-6)
    assert low < value < high
    assert (found.picked, found.mean[0]) == (theirs.pick.name, pytest.approx(means[1], abs=1e-6))
    assert value > 0.1 < low, "experts on digits have learned something"
    sentence = tables.control(ours)
    assert " ".join(sentence.split()) in " ".join(printed.split())
    assert sentence in tables.sentences(ours)
    assert sentence.replace("'", "&#x27;") in (folder / "report.html").read_text()
    assert json.loads(evomerge("show", folder, "--json").stdout)["control"]["difference"] == list(found.difference)
    assert "shuffled" in tables.control(theirs)
    assert not theirs.advice


def test_the_report_says_what_to_try_next_by_the_best_mixture(controlled):
    study = Study.open(controlled[0])
    ours = measure.measure(study)
    (mixture,) = (one for name, one in ours.references.items() if name.startswith("best mixture"))
    (line,) = (one for one in ours.advice if "best mixture" in one.evidence)
    if ours.picked == mixture.recipe_id:
        assert f"{ours.choice.probability:.2f}" in line.evidence
    else:
        evaluated = [
            Worker(study.parts.setup).evaluate(Recipe.parse(one.recipe), "report").means(study.parts.reported).mean()
            for one in (ours.pick, mixture)
        ]
        assert f"{100 * (evaluated[0] - evaluated[1]):+.1f} [" in line.evidence


def test_a_control_that_was_stopped_goes_on_to_the_same_digest(finished, controlled, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    study = Study.open(tmp_path / "run")
    made = control.start(study, control.settings(study))
    told = []

    def stop(proposal, evaluation):
        told.append(proposal.number)
        if len(told) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.run(watch=stop, progress=False)
    assert measure.measure(study).control is None, "half a control is none"
    assert "replaying 4 evaluations" in evomerge("control", tmp_path / "run").stdout
    assert Study.open(tmp_path / "run" / "sham").digest() == Study.open(controlled[0] / "sham").digest()
    assert measure.measure(study).control == measure.measure(Study.open(controlled[0])).control


def test_a_larger_study_needs_a_larger_control_which_goes_on(controlled, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(controlled[0], folder)
    assert "Control:" not in evomerge("resume", folder, "--evaluations", 12).stdout
    assert "Control: " in evomerge("control", folder).stdout
    assert len(Study.open(folder / "sham").population()) == 12


def test_a_search_that_has_not_ended_and_a_control_have_none(controlled, tmp_path, finished):
    shutil.copytree(finished[0], tmp_path / "run")
    lines = (tmp_path / "run" / "journal.jl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / "journal.jl").write_bytes(b"".join(lines[:-3]))
    (tmp_path / "run" / "costs.jl").unlink()
    assert "evomerge resume" in evomerge("control", tmp_path / "run", code=2).stderr
    with pytest.raises(StudyError, match="a control itself"):
        control.settings(Study.open(controlled[0] / "sham"))


def test_shuffled_experts_are_not_exported(controlled, tmp_path):
    sham = Study.open(controlled[0] / "sham")
    with pytest.raises(PoolError, match="nothing to export"):
        export(Recipe.parse(sham.population()[0][0].recipe.data), sham.parts.pool, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_study_file_asks_for_its_control_and_the_dry_run_prices_it(study_file, controlled, tmp_path):
    data = yaml.safe_load(study_file.read_text()) | {"controls": {"sham": True}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    priced = " ".join(evomerge("run", tmp_path / "study.yaml", "--dry-run").stdout.split())
    assert "as many candidates over shuffled experts" in priced
    assert ", control " in priced
    printed = evomerge("run", tmp_path / "study.yaml", "-o", tmp_path / "run").stdout
    assert "Control: the same search" in printed
    ours, theirs = (Study.open(folder / "sham") for folder in (tmp_path / "run", controlled[0]))
    assert ours.digest() == theirs.digest()
    np.testing.assert_equal(ours.journal_path.read_bytes(), theirs.journal_path.read_bytes())
