"""A study survives anything: a kill at any moment, another number of workers, a second process, a changed setting."""

import json
import multiprocessing
import random
import re
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from children import run_study
from pools import write_checkpoint
from scipy.stats import entropy

from evomerge import evaluate, placement
from evomerge.errors import DeviceError, JournalError, RecipeError, StudyError
from evomerge.evaluate import CachingEvaluator, Evaluator
from evomerge.history import History, digest
from evomerge.models import LiveModel
from evomerge.models.blocks import find_blocks
from evomerge.recipe import Recipe
from evomerge.report import measure, replay, tables
from evomerge.report.drawn import draw
from evomerge.report.export import export
from evomerge.report.section import section
from evomerge.settings import StudySettings
from evomerge.study import Study
from evomerge.trial import Evaluation

DRIVERS = [
    {"kind": "nsga2", "population": 8},
    {"kind": "nsga3", "population": 8},
    {"kind": "cma", "population": 6},
    {"kind": "tpe", "batch": 4},
    {"kind": "random"},
]
CROSSING = {
    "driver": {"kind": "niches", "population": 5},
    "recipe": {
        "merge": {
            "method": "slerp",
            "inputs": [{"member": "mother"}, {"member": "father"}],
            "parameters": {"t": {"float": [0, 1]}},
        }
    },
}
SEARCHES = [{"driver": driver} for driver in DRIVERS] + [
    {"driver": DRIVERS[0], "space": "both_spaces"},
    {"driver": DRIVERS[2], "space": "data_flow_scaled"},
    {"driver": CROSSING["driver"], "space": CROSSING},
    {"driver": {"kind": "map_elites"}, "space": CROSSING},
]


def _named(search):
    space = search.get("space", "")
    return " ".join([search["driver"]["kind"], "crossing" if space is CROSSING else space]).strip()


@pytest.fixture
def settings(small_digits):
    def make(**changes):
        data = {
            "name": "test",
            "pool": small_digits.pool,
            "tasks": dict(list(small_digits.tasks.items())[:2]),
            "space": "task_arithmetic",
            "evaluations": 30,
            "driver": DRIVERS[0],
            "report": {"scales": [0.2, 0.4], "front": 4, "resamples": 100},
        }
        return StudySettings.parse(data | changes, "test", Path.cwd())

    return make


def lines(study):
    """Return the journal's lines, sorted: the order of arrival does not count."""
    return sorted(study.journal_path.read_bytes().splitlines())


class FromIds(Evaluator):
    """Scores derived from the recipe's id, returned in an order shuffled by `seed`."""

    def __init__(self, slots=1, seed=0):
        self.slots = slots
        self.lineage = {}
        self.count = 0
        self._waiting = []
        self._random = random.Random(seed)

    def submit(self, proposal):
        self._waiting.append(proposal)

    def wait(self):
        self.count += 1
        proposal = self._waiting.pop(self._random.randrange(len(self._waiting)))
        if int(proposal.recipe.id, 16) % 7 == 0:
            return proposal.number, Evaluation(error="planned failure")
        rng = np.random.default_rng(int(proposal.recipe.id[:8], 16))
        names = ("turned", "inverted")
        return proposal.number, Evaluation(
            scores={
                f"{name}/{m}": rng.random(5, dtype=np.float32) for name in names for m in ("log_likelihood", "accuracy")
            }
        )

    def close(self):
        pass


@pytest.mark.parametrize("search", SEARCHES, ids=_named)
def test_resuming_from_any_prefix_of_the_journal_gives_the_same_bytes(search, settings, tmp_path):
    complete = Study.create(tmp_path / "complete", settings(**search))
    complete.run(CachingEvaluator(FromIds()))
    content = complete.journal_path.read_bytes()
    lines = content.splitlines(keepends=True)
    cuts = random.Random(1).sample(range(len(content)), 12) + [
        len(b"".join(lines[:n])) for n in (1, 2, 17, len(lines) - 1)
    ]
    study = Study.open(complete.folder)
    for cut in cuts:
        study.journal_path.write_bytes(content[:cut])
        evaluator = FromIds()
        study.run(CachingEvaluator(evaluator))
        assert study.journal_path.read_bytes() == content
        assert evaluator.count <= 30 - content[:cut].count(b'"tell"') + 1  # no recorded evaluation is repeated


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver["kind"])
@pytest.mark.parametrize("slots", [2, 7, 50])
def test_a_search_does_not_depend_on_slots_or_on_the_order_of_arrival(driver, slots, settings, tmp_path):
    one = Study.create(tmp_path / "one", settings(driver=driver))
    one.run(CachingEvaluator(FromIds()))
    many = Study.create(tmp_path / "many", settings(driver=driver))
    many.run(CachingEvaluator(FromIds(slots, seed=slots)))
    assert lines(many) == lines(one)
    assert digest(many.population()) == digest(one.population())


class PerExample(FromIds):
    """Scores of as many examples as the tasks have, derived from the recipe's id; some recipes are better on all."""

    def __init__(self, sizes, slots=1, seed=0):
        super().__init__(slots, seed)
        self.sizes = sizes["search"]
        self.scored = Counter()

    def wait(self):
        proposal = self._waiting.pop(self._random.randrange(len(self._waiting)))
        complete = {task: range(size) for task, size in self.sizes.items()}
        asked = complete if proposal.examples is None else proposal.examples
        self.scored.update((proposal.recipe.id, task, i) for task, numbers in asked.items() for i in numbers)
        if int(proposal.recipe.id, 16) % 7 == 0:
            return proposal.number, Evaluation(error="planned failure")
        return proposal.number, Evaluation(
            {f"{task}/log_likelihood": self.truth(proposal.recipe, task)[list(rows)] for task, rows in asked.items()}
        )

    def truth(self, recipe, task):
        level = int(recipe.id[:2], 16) / 64
        rng = np.random.default_rng([int(recipe.id[:8], 16), *task.encode()])
        return (level + rng.random(self.sizes[task])).astype(np.float32)


RACES = [{"kind": "racing", "driver": driver} for driver in (DRIVERS[0], DRIVERS[2])]


def _raced(study, evaluator):
    study.run(CachingEvaluator(evaluator, study.parts.sizes))
    return study


@pytest.mark.parametrize("driver", RACES, ids=lambda driver: driver["driver"]["kind"])
def test_a_race_resumed_from_any_prefix_scores_nothing_twice_and_gives_the_same_bytes(driver, settings, tmp_path):
    complete = Study.create(tmp_path / "complete", settings(driver=driver, evaluations=20))
    content = _raced(complete, PerExample(complete.parts.sizes)).journal_path.read_bytes()
    lines = content.splitlines(keepends=True)
    history = complete.history()
    study = Study.open(complete.folder)
    for cut in (*random.Random(1).sample(range(len(content)), 2), len(b"".join(lines[:17]))):
        study.journal_path.write_bytes(content[:cut])
        indices = {task: range(size) for task, size in study.parts.sizes["search"].items()}
        recorded = {
            (p.recipe.id, task, i)
            for p, _ in study.history().completed
            for task, rows in (p.examples or indices).items()
            for i in rows
        }
        evaluator = PerExample(study.parts.sizes)
        assert _raced(study, evaluator).journal_path.read_bytes() == content
        failed = {p.recipe.id for p, evaluation in study.history().completed if evaluation.error}
        assert all(count == 1 for (name, _, _), count in evaluator.scored.items() if name not in failed)
        assert not [key for key in evaluator.scored if key in recorded and key[0] not in failed]
        assert study.history().spent == history.spent
        assert study.history().partial == history.partial


@pytest.mark.parametrize("driver", RACES, ids=lambda driver: driver["driver"]["kind"])
def test_a_race_does_not_depend_on_slots_or_on_the_order_of_arrival(driver, settings, tmp_path):
    one = Study.create(tmp_path / "one", settings(driver=driver))
    _raced(one, PerExample(one.parts.sizes))
    many = Study.create(tmp_path / "many", settings(driver=driver))
    _raced(many, PerExample(one.parts.sizes, slots=7, seed=3))
    assert lines(many) == lines(one)
    assert digest(many.history().completed) == digest(one.history().completed)


def test_a_race_is_charged_by_the_example_and_only_full_evaluations_are_its_population(settings, tmp_path):
    study = Study.create(tmp_path / "study", settings(driver=RACES[0]))
    evaluator = PerExample(study.parts.sizes)
    seen = []
    study.run(CachingEvaluator(evaluator, study.parts.sizes), lambda proposal, evaluation: seen.append(study.spent))
    record = study.history()
    spent, completed, population = record.spent, record.completed, record.population
    asked = sum(evaluator.scored.values())
    assert spent == seen[-1] == asked / sum(study.parts.sizes["search"].values())
    assert 30 <= spent < 31
    assert np.diff(seen).min() > 0
    candidates = {proposal.recipe.id for proposal, _ in completed}
    good = [(proposal, evaluation) for proposal, evaluation in population if evaluation.error is None]
    failed = [(proposal, evaluation) for proposal, evaluation in population if evaluation.error is not None]
    assert len(candidates) == len({p.recipe.id for p, _ in population}) + len(record.partial)
    assert len(good) > 5 < len(record.partial)
    assert {evaluation.error for _, evaluation in failed} == {"planned failure"}
    last = {}
    for proposal, _ in completed:
        last[proposal.recipe.id] = proposal.number
    for proposal, evaluation in good:
        assert proposal.number == last[proposal.recipe.id]
        assert proposal.examples is None
        for name, vector in evaluation.scores.items():
            assert np.array_equal(vector, evaluator.truth(proposal.recipe, name.partition("/")[0]))
    assert set(record.partial) == set(last.values()) - {proposal.number for proposal, _ in population}


def test_a_study_without_races_costs_one_evaluation_a_proposal_and_has_no_parts(settings, tmp_path):
    study = Study.create(tmp_path / "study", settings())
    study.run(CachingEvaluator(FromIds()))
    assert (study.history().spent, study.history().partial, study.spent) == (30, (), 30)
    assert study.history().completed[3][0].recipe == study.population()[3][0].recipe
    assert digest(study.history().completed) == digest(study.population())
    assert b"examples" not in study.journal_path.read_bytes()


def test_a_race_that_counts_its_merges_ends_earlier_and_its_end_is_a_prefix(settings, tmp_path):
    ends = {}
    for merge in (0, 40):
        study = Study.create(tmp_path / f"{merge}", settings(driver=RACES[0], evaluations=30, merge_examples=merge))
        _raced(study, PerExample(study.parts.sizes))
        ends[merge] = [proposal.recipe.id for proposal, _ in study.history().completed]
        full = sum(study.parts.sizes["search"].values())
        scored = sum(
            full if proposal.examples is None else sum(map(len, proposal.examples.values()))
            for proposal, _ in study.history().completed
        )
        expected = (scored + merge * len(ends[merge])) / (full + merge)
        assert study.history().spent == study.spent == pytest.approx(expected)
        assert 30 <= study.spent < 31
    assert 0 < len(ends[40]) < len(ends[0])
    assert ends[40] == ends[0][: len(ends[40])]


def test_a_race_of_real_models_is_reported_without_the_candidates_that_were_stopped(settings, tmp_path):
    driver = {"kind": "racing", "driver": DRIVERS[0], "tolerance": 1}
    study = Study.create(tmp_path / "study", settings(driver=driver, evaluations=30))
    results = measure.measure(study, _searched(study))
    stopped = {proposal.recipe.id for proposal, _ in study.history().completed} - {
        p.recipe.id for p, _ in study.population()
    }
    assert len(stopped) == len(study.history().partial) > 0
    assert not stopped & {point.recipe_id for point in results.front}
    assert results.evaluations == len(study.population())


def test_parts_without_sizes_and_other_examples_than_recorded_are_refused(settings, tmp_path):
    study = Study.create(tmp_path / "study", settings(driver=RACES[0]))
    _raced(study, PerExample(study.parts.sizes))
    first = next(proposal.number for proposal, _ in study.history().completed if proposal.examples is not None)
    with pytest.raises(StudyError, match=r"of a part of the examples; expected `sizes`"):
        History.read(study.journal_path)
    header = json.loads((study.folder / "study.json").read_text())
    for part in ("identity", "settings"):
        header[part]["driver"]["rungs"] = [0.25, 0.5]
    (study.folder / "study.json").write_text(json.dumps(header))
    other = Study.open(study.folder)
    with pytest.raises(
        StudyError, match=rf"proposal {first} gave other examples than the recorded ones; no version has changed"
    ):
        _raced(other, PerExample(other.parts.sizes))


def test_a_sigkill_at_random_moments_changes_no_byte_of_journal_or_front(settings, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["evomerge.study", "evomerge.models.live", "transformers.models.vit.modeling_vit"])
    complete = Study.create(tmp_path / "complete", settings(evaluations=40))
    with complete.evaluator() as evaluator:
        complete.run(evaluator)
    moments = random.Random(0)
    killed = 0
    target = tmp_path / "killed"
    for _ in range(60):
        child = context.Process(target=run_study, args=(target, settings(evaluations=40)))
        child.start()
        last = _records(target) + moments.randint(1, 20)  # of 80, whatever the machine's speed: at least three kills
        deadline = time.monotonic() + 60
        while child.is_alive() and _records(target) < last and time.monotonic() < deadline:
            time.sleep(0.002)
        child.join(moments.uniform(0.0, 0.05))
        if child.exitcode is None:
            child.kill()
            killed += 1
        child.join()
        if child.exitcode == 0:
            break
    assert child.exitcode == 0
    resumed = Study.open(target)
    assert killed >= 3
    assert resumed.journal_path.read_bytes() == complete.journal_path.read_bytes()
    assert measure.measure(resumed).public() == measure.measure(complete).public()


def _records(folder):
    path = folder / "journal.jl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_journal_without_genomes_is_resumed_and_shown_as_one_with_them(settings, tmp_path):
    search = settings(evaluations=24)
    new = Study.create(tmp_path / "new", search)
    new.run(CachingEvaluator(FromIds()))
    old = Study.create(tmp_path / "old", search)
    bodies = [
        re.sub(rb',"genome":"[^"]*"', b"", line[9:-1])
        for line in new.journal_path.read_bytes().splitlines(keepends=True)
    ]
    lines = [b"%08x %s\n" % (zlib.crc32(body), body) for body in bodies[:21]]
    old.journal_path.write_bytes(b"".join(lines))
    old.run(CachingEvaluator(FromIds()))
    assert old.journal_path.read_bytes().splitlines(keepends=True)[:21] == lines
    assert digest(old.history().completed) == digest(new.history().completed)
    genomes = [[proposal.genome for proposal, _ in study.population()] for study in (old, new)]
    assert [genome is None for genome in genomes[0]] == [True] * 11 + [False] * 13
    for (proposal, _), genome in zip(old.population(), genomes[1], strict=True):
        assert genome is not None
        np.testing.assert_array_equal(old.parts.space.genome_of(proposal), genome)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_two_ray_workers_give_the_same_search_as_one_process(settings, tmp_path):
    """Of merges and of stacks of them, whose hidden states the workers share."""
    one = Study.create(tmp_path / "one", settings(space="both_spaces", shared_mib=0))
    with one.evaluator() as evaluator:
        one.run(evaluator)
    two = Study.create(tmp_path / "two", settings(space="both_spaces", workers=2))
    with two.evaluator() as evaluator:
        assert evaluator.slots >= 2
        two.run(evaluator)
        results = measure.measure(two, evaluator)
    assert lines(two) == lines(one)
    assert results.public() == measure.measure(one).public()


def test_reporting_twice_scores_nothing_twice(settings, tmp_path):
    study = Study.create(tmp_path / "study", settings(evaluations=10))
    first = measure.measure(study, _searched(study))
    size = (study.folder / "report.jl").stat().st_size
    again = measure.measure(study, None)
    assert again.public() == first.public()
    assert (study.folder / "report.jl").stat().st_size == size


def test_references_and_front_are_scored_on_the_report_split(settings, tmp_path, small_digits):
    study = Study.create(tmp_path / "study", settings(evaluations=10))
    results = measure.measure(study, _searched(study))
    assert {"base", "average"} < set(results.references)
    assert {f"expert {name}" for name in small_digits.pool["experts"]} < set(results.references)
    assert sum(name.startswith("best scale") for name in results.references) == 1
    mean, low, high = results.references["expert turned"].report["turned"]
    assert low <= mean <= high
    assert mean > results.references["base"].report["turned"][0]
    assert results.hypervolume.history[-1] == pytest.approx(results.hypervolume.search)
    assert {point.recipe_id for point in results.front} <= {p.recipe.id for p, _ in study.population()}


class Refusing(evaluate.Serial):
    """Scores real merges, but none for which `refused(recipe, split)` is true."""

    def __init__(self, setup, refused):
        super().__init__(setup)
        self.refused = refused
        self._refusals = []

    def submit(self, proposal):
        if self.refused(proposal.recipe, proposal.split):
            self._refusals.append((proposal.number, Evaluation(error="out of luck")))
        else:
            super().submit(proposal)

    def wait(self):
        return self._refusals.pop() if self._refusals else super().wait()


def test_references_and_front_models_that_cannot_be_scored_are_left_out_and_named(settings, tmp_path):
    study = Study.create(tmp_path / "study", settings(evaluations=10))
    complete = measure.measure(study, _searched(study))
    [best] = [name for name in complete.references if name.startswith("best scale")]
    lost = complete.references[best].recipe_id, "search"
    more = {(complete.references["average"].recipe_id, "report"), (complete.front[-1].recipe_id, "report")}
    (study.folder / "report.jl").unlink()

    results = measure.measure(
        study, Refusing(study.parts.setup, lambda recipe, split: (recipe.id, split) in {lost, *more})
    )
    assert results.unscored == dict.fromkeys(
        (best.removeprefix("best "), "average", complete.front[-1].name), "out of luck"
    )
    [other] = set(results.references) - set(complete.references)
    assert other in {"best scale 0.2", "best scale 0.4"} - {best}
    assert set(results.references) - {other} == set(complete.references) - {best, "average"}
    assert [model.name for model in results.front] == [model.name for model in complete.front[:-1]]
    assert "plain average" not in {comparison.worse for comparison in results.comparisons}
    assert results.pick in (*results.front, *results.references.values())
    [said] = tables.missing(results)
    assert said == f"Could not be scored, and is in nothing above: {', '.join(results.unscored)}: out of luck."
    assert said in tables.sentences(results)
    assert said in section(results, study.folder, draw(results))

    again = measure.measure(study)
    assert again.unscored == {}
    assert again.public() == complete.public(), "what failed was tried again"


@pytest.mark.parametrize(
    ("split", "what"), [("search", "reference"), ("report", "reference"), ("front", "model of the front")]
)
def test_a_report_without_any_reference_or_front_is_refused_with_the_last_failure(split, what, settings, tmp_path):
    study = Study.create(tmp_path / "study", settings(evaluations=10, driver={"kind": "random", "seed_known": False}))
    _searched(study)
    searched = {proposal.recipe.id for proposal, _ in study.population()}

    def refused(recipe, on):
        return recipe.id in searched if split == "front" else on == split

    with pytest.raises(StudyError, match=rf"no {what} can be scored on the \w+ split; the last failure: out of luck"):
        measure.measure(study, Refusing(study.parts.setup, refused))


def _searched(study):
    evaluator = CachingEvaluator(evaluate.Serial(study.parts.setup), study.parts.sizes)
    study.run(evaluator)
    return evaluator


def test_a_study_in_use_is_refused_naming_the_process(settings, tmp_path):
    study = Study.create(tmp_path / "study", settings())
    with study.lock(), pytest.raises(StudyError, match=r"in use by process \d+ on "):
        Study.open(tmp_path / "study").run(CachingEvaluator(FromIds()))


def test_a_report_can_be_made_while_the_search_runs(settings, tmp_path):
    study = Study.create(tmp_path / "study", settings(evaluations=10))
    _searched(study)
    with study.lock():
        assert measure.measure(Study.open(tmp_path / "study")).evaluations == 10


def test_a_changed_study_is_refused_showing_the_difference(settings, tmp_path):
    Study.create(tmp_path / "study", settings())
    with pytest.raises(StudyError, match=r"seed: was 0, is 3") as error:
        Study.create(tmp_path / "study", settings(seed=3))
    assert "driver" not in str(error.value)


def test_a_larger_budget_goes_on_from_where_the_smaller_one_ended(settings, tmp_path):
    complete = Study.create(tmp_path / "complete", settings(evaluations=40))
    complete.run(CachingEvaluator(FromIds()))
    Study.create(tmp_path / "two", settings(evaluations=15)).run(CachingEvaluator(FromIds()))
    Study.create(tmp_path / "two", settings(evaluations=40)).run(CachingEvaluator(FromIds()))
    assert (tmp_path / "two" / "journal.jl").read_bytes() == complete.journal_path.read_bytes()
    assert Study.open(tmp_path / "two").settings.evaluations == 40


def test_a_replay_that_differs_is_an_error_that_names_the_versions(settings, tmp_path):
    study = Study.create(tmp_path / "study", settings())
    study.run(CachingEvaluator(FromIds()))
    header = json.loads((study.folder / "study.json").read_text())
    header["versions"]["pymoo"] = "0.0.1"
    header["identity"]["seed"] = header["settings"]["seed"] = 5  # as another version would: other proposals
    (study.folder / "study.json").write_text(json.dumps(header))
    with pytest.raises(StudyError, match=r"replaying proposal \d+ gave another recipe.*pymoo 0\.0\.1"):
        Study.open(study.folder).run(CachingEvaluator(FromIds()))


def test_a_damaged_journal_is_refused_with_its_line(settings, tmp_path):
    study = Study.create(tmp_path / "study", settings())
    study.run(CachingEvaluator(FromIds()))
    content = bytearray(study.journal_path.read_bytes())
    content[len(content) // 2] ^= 1
    study.journal_path.write_bytes(content)
    with pytest.raises(JournalError, match=r"line \d+ is damaged"):
        study.run(CachingEvaluator(FromIds()))


def with_gpu(name, monkeypatch):
    monkeypatch.setattr(placement, "available", lambda: {"cuda:0": name, "cpu": ""})


def test_a_study_is_scored_on_the_device_it_was_started_on_and_opened_anywhere(settings, tmp_path, monkeypatch):
    with_gpu("NVIDIA H100", monkeypatch)
    study = Study.create(tmp_path / "run", settings(device="auto"))
    assert study.settings.device == "cuda"
    recorded = json.loads((tmp_path / "run" / "study.json").read_text())["identity"]
    assert recorded["device"] == "cuda NVIDIA H100"
    with_gpu("NVIDIA A100", monkeypatch)
    again = Study.open(tmp_path / "run")
    with pytest.raises(
        StudyError, match=r"started on cuda NVIDIA H100, and the device here is cuda NVIDIA A100.*--fork DIR"
    ):
        again.evaluator()
    monkeypatch.undo()
    again = Study.open(tmp_path / "run", settings(device="auto", evaluations=40))
    with pytest.raises(DeviceError, match="device `cuda`: not here"):
        again.run(progress=False)
    again.parts = again.parts.on("cpu")
    again.evaluator().close()  # a report may be made elsewhere, if that is asked for
    with pytest.raises(StudyError, match='device: was "cuda", is null'):
        Study.open(tmp_path / "run", settings(device="cpu"))


def test_a_study_from_before_there_were_devices_is_on_the_cpu(settings, tmp_path, monkeypatch):
    with_gpu("NVIDIA H100", monkeypatch)
    Study.create(tmp_path / "run", settings())
    file = tmp_path / "run" / "study.json"
    data = json.loads(file.read_text())
    assert "device" not in data["identity"]
    assert not {"device", "gpus"} & data["settings"].keys(), "as an earlier version wrote it"
    for given in (None, settings(), settings(device="auto")):
        study = Study.open(tmp_path / "run", given)
        assert study.settings.device == study.parts.setup.device == "cpu"


def test_a_device_that_is_not_there_starts_no_study(settings, tmp_path):
    with pytest.raises(DeviceError, match="device `cuda:7`: not here"):
        Study.create(tmp_path / "run", settings(device="cuda:7"))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_study_is_never_written_into(settings, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(StudyError, match="is no study"):
        Study.create(tmp_path / "mine", settings())
    with pytest.raises(StudyError, match=r"evomerge run"):
        Study.open(tmp_path / "nowhere")


def test_results_without_any_evaluation_are_refused_with_the_last_failure(settings, tmp_path):
    study = Study.create(tmp_path / "study", settings())
    with pytest.raises(StudyError, match="no candidate has been evaluated yet"):
        measure.measure(study)


@pytest.mark.parametrize("space", ["layer_swap", "layer_swap_blocks", "data_flow", "data_flow_scaled", "both_spaces"])
def test_a_shipped_space_of_layers_runs_with_its_own_driver_and_its_pick_is_exported(space, settings, tmp_path):
    study = Study.create(tmp_path / "study", settings(space=space, driver=None, evaluations=12))
    results = measure.measure(study, _searched(study))
    assert results.failed == 0
    picked = results.pick
    export(Recipe.parse(picked.recipe), study.parts.pool, tmp_path / "out", results=results, candidate=picked)
    live = LiveModel(tmp_path / "out", study.settings.pool.auto)
    layers = len(Recipe.parse(picked.recipe).prefix_digests)
    assert len(find_blocks(live.module)) == (layers or study.parts.pool.layout.blocks)


def test_a_model_without_blocks_is_refused_for_stacks_before_any_work(settings, tmp_path):
    for name in ("base", "other"):
        write_checkpoint(tmp_path / name, {"first.weight": torch.ones(2), "second.weight": torch.ones(2)})
    pool = {"base": str(tmp_path / "base"), "experts": {"other": str(tmp_path / "other")}}
    with pytest.raises(RecipeError, match=r"a stack needs a model with a stack of blocks.*has `first.weight`"):
        Study.create(tmp_path / "study", settings(pool=pool, space="data_flow"))
    assert not (tmp_path / "study").exists()


POPULATIONS = [{"kind": "niches", "population": 5}, {"kind": "map_elites", "bins": 6}]


def _breeding(settings, small_digits, driver, **changes):
    tasks = {name: task | {"search_metric": "accuracy"} for name, task in list(small_digits.tasks.items())[:2]}
    return settings(space="natural_niches", driver=driver, tasks=tasks, **changes)


def test_a_resumed_population_gives_the_same_bytes_and_keeps_only_possible_parents(settings, small_digits, tmp_path):
    complete = Study.create(tmp_path / "complete", _breeding(settings, small_digits, POPULATIONS[0], evaluations=30))
    with complete.evaluator() as evaluator:
        complete.run(evaluator)
        assert len(evaluator._evaluator._worker.members._held) <= 5
    for budget in (2, 3, 11, 30):
        study = Study.create(tmp_path / "parts", _breeding(settings, small_digits, POPULATIONS[0], evaluations=budget))
        with study.evaluator() as evaluator:
            study.run(evaluator)
    assert study.journal_path.read_bytes() == complete.journal_path.read_bytes()
    recipes = [proposal.recipe for proposal, _ in complete.population()]
    assert sum(bool(recipe.members) for recipe in recipes) == 26
    children = {recipe.id for recipe in recipes[4:]}
    assert any(identity in children for recipe in recipes for identity in recipe.members)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_population_on_two_workers_is_restored_by_replay(settings, small_digits, tmp_path):
    study = Study.create(
        tmp_path / "study", _breeding(settings, small_digits, POPULATIONS[0], workers=2, evaluations=20)
    )
    with study.evaluator() as evaluator:
        study.run(evaluator)
    first = study.journal_path.read_bytes()
    study = Study.create(
        tmp_path / "study", _breeding(settings, small_digits, POPULATIONS[0], workers=1, evaluations=24)
    )
    with study.evaluator() as evaluator:
        study.run(evaluator)
    assert study.journal_path.read_bytes().startswith(first)
    assert all(evaluation.error is None for _, evaluation in study.population())
    results = measure.measure(study, _searched(study))
    child = next(point for point in results.front if Recipe.parse(point.recipe).members)
    recipe = Recipe.parse(child.recipe)
    export(recipe, study.parts.pool, tmp_path / "out", lineage=study.lineage(), results=results, candidate=child)
    worker = evaluate.Worker(study.parts.setup)
    worker.members.lineage |= study.lineage()
    live = LiveModel(tmp_path / "out", study.settings.pool.auto)
    score = study.parts.tasks["turned"].score(live, "search").scores["accuracy"]
    assert np.array_equal(score, worker.evaluate(recipe).scores["turned/accuracy"])


def _scored(study):
    """Return the id and the scores, `(examples,)`, of each candidate by task, in order of number."""
    names = study.parts.searched
    return [(p.recipe.id, [e.scores[name].astype(np.float64) for name in names]) for p, e in study.population()]


def test_a_report_has_the_coverage_of_the_examples_by_a_population(settings, small_digits, tmp_path):
    driver = {"kind": "niches", "population": 40}
    study = Study.create(tmp_path / "study", _breeding(settings, small_digits, driver, evaluations=24))
    results = measure.measure(study, _searched(study))
    diagnostics = results.diagnostics
    scores = np.array([np.concatenate(vectors) for _, vectors in _scored(study)])
    assert diagnostics.evaluations == tuple(range(1, 25))
    assert diagnostics.coverage == pytest.approx(np.maximum.accumulate(scores, axis=0).mean(axis=1))
    rates = np.cumsum(scores, axis=0) / np.arange(1, 25)[:, None]
    assert diagnostics.entropy == pytest.approx(entropy(np.stack([rates, 1 - rates]), base=2).mean(axis=1))
    assert results.cells == ()
    assert results.public()["population"] == {
        "coverage": diagnostics.coverage[-1],
        "entropy": diagnostics.entropy[-1],
        "members": len({identity for identity, _ in _scored(study)}),
        "cells": [],
    }


def test_a_report_holds_the_cells_as_they_were_at_the_end(settings, small_digits, tmp_path):
    study = Study.create(tmp_path / "study", _breeding(settings, small_digits, POPULATIONS[1], evaluations=24))
    results = measure.measure(study, _searched(study))
    best: dict[tuple[int, ...], tuple[float, str, list[np.ndarray]]] = {}
    for identity, vectors in _scored(study):
        means = [float(vector.mean()) for vector in vectors]
        cell = tuple(min(int(mean * 6), 5) for mean in means)
        if cell not in best or sum(means) / 2 > best[cell][0]:
            best[cell] = sum(means) / 2, identity, vectors
    [cells] = results.cells
    assert {elite.cell: (elite.quality, elite.recipe_id) for elite in cells.elites} == {
        cell: (quality, identity) for cell, (quality, identity, _) in best.items()
    }
    assert cells.axes == ("turned/accuracy", "inverted/accuracy")
    assert cells.shape == (6, 6)
    solved = np.max([np.concatenate(vectors) for *_, vectors in best.values()], axis=0)
    assert results.diagnostics.coverage[-1] == pytest.approx(solved.mean())
    assert results.public()["population"]["cells"] == [
        {"quality": cells.quality, "axes": list(cells.axes), "filled": len(best), "of": 36}
    ]
    assert type(results).model_validate_json(results.model_dump_json()) == results


@pytest.mark.parametrize("driver", POPULATIONS, ids=lambda driver: driver["kind"])
def test_a_long_search_has_200_evenly_spaced_diagnostics_equal_to_its_drivers(driver, settings, small_digits, tmp_path):
    study = Study.create(tmp_path / "study", _breeding(settings, small_digits, driver, evaluations=430))
    seen = []
    study.run(
        CachingEvaluator(FromIds(slots=3, seed=1)), lambda proposal, evaluation: seen.append(study.driver.diagnostics())
    )
    fields = replay.population(study, 430)
    points = fields["diagnostics"].evaluations
    assert (len(points), points[0], points[-1]) == (200, 1, 430)
    assert set(np.diff(points).tolist()) == {2, 3}
    assert fields["diagnostics"].coverage == tuple(seen[count - 1]["coverage"] for count in points)
    assert fields["diagnostics"].entropy == tuple(seen[count - 1]["entropy"] for count in points)
    assert fields["diagnostics"].members == len(study.driver.members())
    assert [len(cells.elites) for cells in fields["cells"]] == [len(cells.elites) for cells in study.driver.maps()]
    assert replay.population(study, 100)["diagnostics"].coverage[-1] == seen[99]["coverage"]


def test_scores_outside_the_unit_interval_have_coverage_but_no_entropy(settings, small_digits, tmp_path):
    tasks = dict(list(small_digits.tasks.items())[:2])
    driver = {"kind": "niches", "population": 5, "relative": True}
    study = Study.create(tmp_path / "study", settings(space="natural_niches", driver=driver, tasks=tasks))
    with study.evaluator() as evaluator:
        study.run(evaluator)
    diagnostics = replay.population(study, 30)["diagnostics"]
    assert diagnostics.entropy is None
    assert all(coverage < 0 for coverage in diagnostics.coverage)


def test_a_search_without_a_population_has_no_diagnostics(settings, tmp_path):
    study = Study.create(tmp_path / "study", settings(evaluations=10))
    results = measure.measure(study, _searched(study))
    assert (results.diagnostics, results.cells, results.not_replayed) == (None, (), None)
    assert "population" not in results.public()


def test_a_population_that_cannot_be_replayed_still_has_its_front_and_says_why(settings, small_digits, tmp_path):
    study = Study.create(tmp_path / "study", _breeding(settings, small_digits, POPULATIONS[0], evaluations=10))
    first = measure.measure(study, _searched(study))
    study = Study.open(tmp_path / "study")
    study.settings = study.settings.model_copy(update={"seed": 5})  # as another version would: other children
    results = measure.measure(study)
    assert {point.recipe_id for point in results.front} == {point.recipe_id for point in first.front}
    assert (results.diagnostics, results.cells) == (None, ())
    assert "gave another recipe than the recorded one" in results.not_replayed


class Failing(FromIds):
    """The first `count` candidates fail with one error, or each with its own."""

    def __init__(self, count, *, same=True, error="broken"):
        super().__init__()
        self.failing, self.same, self.error = count, same, error

    def wait(self):
        number, evaluation = super().wait()
        if self.count <= self.failing:
            return number, Evaluation(error=self.error if self.same else f"{self.error} {number}")
        return number, evaluation


@pytest.mark.parametrize(("count", "same"), [(7, True), (30, False)])
def test_search_goes_on_where_some_candidate_or_error_differs(count, same, settings, tmp_path):
    study = Study.create(tmp_path / "run", settings())
    study.run(CachingEvaluator(Failing(count, same=same), study.parts.sizes))
    assert len(study.history().population) == 30


def test_search_whose_first_candidates_all_fail_alike_stops_and_can_go_on(settings, tmp_path):
    study = Study.create(tmp_path / "run", settings())
    with pytest.raises(
        StudyError, match=r"the first 8 candidates of .* all failed with one error: broken; .*evomerge resume"
    ):
        study.run(CachingEvaluator(Failing(30), study.parts.sizes))
    assert len(study.history().population) == 8
    study = Study.open(tmp_path / "run")
    study.run(CachingEvaluator(FromIds(), study.parts.sizes))
    assert len(study.history().population) == 30


def test_a_first_candidate_that_does_not_fit_on_the_device_stops_the_search(settings, tmp_path):
    study = Study.create(tmp_path / "run", settings())
    error = "out of device memory: cuda NVIDIA T4 is too small. Type a smaller `batch`"
    with pytest.raises(
        StudyError, match=r"the first candidate of .* is too large: out of device memory: .*evomerge resume"
    ):
        study.run(CachingEvaluator(Failing(30, error=error), study.parts.sizes))
    assert len(study.history().population) == 1
