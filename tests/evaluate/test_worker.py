"""A failing candidate gets an error, and nothing else is affected."""

import dataclasses
import json
import pickle
import random
import signal
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from rows import write_jsonl
from tiny_models import tiny_model

from evomerge import recipe, tasks
from evomerge.build import Builder
from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.layout import Layout
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.stack import Stacked, StackedLayer
from evomerge.errors import CheckpointError, TaskError
from evomerge.evaluate import Setup, Worker
from evomerge.evaluate import worker as worker_module
from evomerge.evaluate.loaded import Finite, checked
from evomerge.evaluate.worker import RemoteWorker, describe
from evomerge.merging import pipeline
from evomerge.models import LiveModel
from evomerge.placement import Placement


def mean(scale=1.0):
    return recipe.merge("task_arithmetic", ["turned", "inverted"], {"lambda": scale / 2})


@pytest.fixture(scope="module")
def worker(setup):
    return Worker(setup)


def test_setup_is_plain_data(setup):
    assert Setup(**json.loads(json.dumps(dataclasses.asdict(setup)))) == setup
    assert pickle.loads(pickle.dumps(setup)) == setup


def test_a_node_with_another_model_at_a_path_of_the_study_is_refused(setup, monkeypatch):
    monkeypatch.setattr(signal, "signal", Mock())
    digests = Pool(setup.base, setup.experts).digests
    assert RemoteWorker(setup, digests).prepare() is None
    error = RemoteWorker(setup, digests | {"turned": "0" * 64}).prepare()
    assert error.startswith(f"turned in {setup.experts['turned']} on ")
    assert f"begins with {digests['turned'][:12]}, expected 000000000000; put the study's models on a shared" in error


def test_scores_equal_those_of_the_tasks(worker, setup):
    evaluation = worker.evaluate(mean(), "report")
    model = LiveModel(setup.base)
    model.refit(Builder(Pool(setup.base, setup.experts)).build(mean()))
    assert evaluation.error is None
    for name in setup.tasks:
        task = tasks.make(name, setup.tasks[name], setup.folder)
        for metric, vector in task.score(model, "report").scores.items():
            assert vector.shape == (task.size("report"),)
            assert evaluation.scores[f"{name}/{metric}"].tobytes() == vector.tobytes()


def test_time_is_split_into_phases(worker):
    seconds = worker.evaluate(mean()).seconds
    assert list(seconds) == ["decode", "merge", "score"]
    assert all(value > 0 for value in seconds.values())


def test_the_compilation_of_a_merge_is_counted_apart_and_once(setup, monkeypatch):
    monkeypatch.setattr(pipeline, "COMPILED", 1)
    monkeypatch.setattr(pipeline, "PATIENCE", 0.0)
    ties = {"merge": {"method": "ties", "inputs": [*setup.experts], "parameters": {"density": 0.61}}}
    worker = Worker(setup)
    phases = [worker.evaluate(recipe.Recipe.parse(ties)).seconds for _ in range(3)]
    assert "compile" in phases[0] | phases[1]
    assert list(phases[2]) == ["decode", "merge", "score"]
    assert all(value > 0 for seconds in phases for value in seconds.values())


def test_evaluations_do_not_depend_on_earlier_ones(worker):
    first = worker.evaluate(mean()).to_json()
    worker.evaluate(recipe.expert("shifted"))
    worker.evaluate(recipe.expert("missing"))
    assert worker.evaluate(mean()).to_json() == first


def test_threads_and_generators_are_restored(worker, monkeypatch):
    worker.prepare()
    states = [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]  # noqa: NPY002  # the global generators are what must not change
    monkeypatch.setattr(torch, "set_num_threads", set_threads := Mock(wraps=torch.set_num_threads))
    threads = torch.get_num_threads()
    worker.evaluate(mean())
    assert states == [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]  # noqa: NPY002  # the global generators are what must not change
    assert [call.args for call in set_threads.call_args_list] == [(1,), (threads,)]
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_random_tasks_are_the_same_for_every_candidate_and_process(worker, monkeypatch):
    def score(model, split, examples):
        drawn = [torch.rand(1).item(), random.random(), np.random.random()]  # noqa: NPY002  # the global generators are what must not change
        return SimpleNamespace(scores={"drawn": np.array(drawn, np.float32)}, outputs={})

    monkeypatch.setattr(worker.prepare(), "tasks", [SimpleNamespace(name="chance", score=score)])
    first = worker.evaluate(mean()).scores["chance/drawn"]
    assert (worker.evaluate(mean(0.5)).scores["chance/drawn"] == first).all()


def test_outputs_are_named_after_their_task(worker, monkeypatch):
    result = SimpleNamespace(scores={"a": np.zeros(2, np.float32)}, outputs={"margins": np.ones((2, 3), np.float32)})
    monkeypatch.setattr(
        worker.prepare(), "tasks", [SimpleNamespace(name="t", score=lambda model, split, examples: result)]
    )
    assert worker.evaluate(mean()).outputs["t/margins"].shape == (2, 3)


def test_unknown_expert_is_the_candidates_error(worker):
    assert worker.evaluate(recipe.expert("missing")).error.startswith("RecipeError: the pool has no expert `missing`")


def test_weights_that_are_not_finite_are_named(worker, monkeypatch):
    class Overflowing(Folder):
        def tensor(self, name):
            tensor = super().tensor(name).clone()
            if name == "classifier.weight":
                tensor[1, 2] = torch.inf
            return tensor

    expected = worker.evaluate(mean()).to_json()
    with monkeypatch.context() as patch:
        patch.setattr(worker.prepare().builder, "build", lambda recipe: Overflowing(worker.setup.base))
        error = worker.evaluate(mean()).error
    assert error == "FloatingPointError: the merged tensor `classifier.weight` holds NaN or infinity"
    assert worker.evaluate(mean()).to_json() == expected


def test_large_finite_weights_are_finite():
    Finite._check("large", torch.full((4,), 3e38))


def test_scores_that_are_not_finite_are_named(worker, monkeypatch):
    result = SimpleNamespace(scores={"a": np.array([0, np.nan, np.inf], np.float32)}, outputs={})
    monkeypatch.setattr(
        worker.prepare(), "tasks", [SimpleNamespace(name="t", score=lambda model, split, examples: result)]
    )
    assert worker.evaluate(mean()).error == (
        "FloatingPointError: task `t`, metric `a`: example 1 scored nan (2 of 3 are not finite)"
    )


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("raise", "ValueError: the answer is at <object at 0x…>"),
        ("unpicklable", "UnpicklableError"),
        ("exit", "SystemExit: 3"),
        ("nan", "FloatingPointError: task `faults`, metric `"),
    ],
)
def test_exception_of_a_task_is_the_candidates_error(faulty, plan_faults, fault, error):
    plan_faults({mean(): fault})
    worker = Worker(faulty)
    evaluation = worker.evaluate(mean())
    assert evaluation.error.startswith(error)
    assert not evaluation.scores
    assert worker.evaluate(recipe.base()).error is None


def test_interrupt_of_the_user_passes(faulty, plan_faults):
    plan_faults({mean(): "interrupt"})
    with pytest.raises(KeyboardInterrupt):
        Worker(faulty).evaluate(mean())


def test_bad_setup_is_an_exception(setup):
    with pytest.raises(TaskError):
        Worker(dataclasses.replace(setup, tasks={"turned": {"kind": "nothing"}})).prepare()
    with pytest.raises(CheckpointError):
        Worker(dataclasses.replace(setup, base="nowhere")).evaluate(mean())


def test_long_errors_are_cut():
    assert len(describe(ValueError("x" * 10_000))) == 1000


def test_hidden_states_that_stacks_share_change_no_score(setup):
    names = ("turned", "inverted", "shifted")
    merged = {"merge": {"method": "linear", "inputs": ["turned", "inverted"]}}
    stacks = [
        [(first, 0, 1.0), ("turned", 1, 1.0), (second, 1, scale), (merged, 1, 1.0)]
        for first in names[:2]
        for second in names
        for scale in (1.0, 0.9)
    ]
    keys = ("source", "layer", "scale")
    candidates = [
        recipe.Recipe.parse(
            {"stack": {"slots": [dict(zip(keys, slot, strict=True)) for slot in slots], "rest": "base"}}
        )
        for slots in stacks
    ]
    sharing, plain = Worker(dataclasses.replace(setup, shared_mib=64)), Worker(setup)
    spared = 0
    for candidate in (*candidates, mean(), candidates[0]):
        evaluation = sharing.evaluate(candidate)
        assert evaluation.error is None
        assert evaluation.to_json() == plain.evaluate(candidate).to_json()
        spared += sharing.prepare().model.prefixes.count.spared
    assert spared > 0


def test_hidden_states_that_merges_share_change_no_score_and_no_slope(setup, sizes):
    wanted = {task: tuple(range(10)) for task in sizes["search"]}
    sharing, plain = Worker(dataclasses.replace(setup, shared_mib=64)), Worker(setup)

    def half(upper, lower=0.3):
        weight = {"per": ["block/2"], "values": [lower, upper]}
        return recipe.Recipe.parse(
            {
                "merge": {
                    "method": "task_arithmetic",
                    "inputs": ["turned", "inverted"],
                    "parameters": {"weight": weight, "lambda": 1.0},
                }
            }
        )

    spared = []
    for candidate, slopes in (
        *((half(upper), None) for upper in (0.1, 0.2, 0.3, 0.4)),
        (half(0.5), wanted),  # slopes of the lower half, too: nothing can be spared
        (half(0.6), None),
        (recipe.expert("turned"), None),
        (half(0.7, lower=0.2), None),
    ):
        evaluation = sharing.evaluate(candidate, slopes=slopes)
        assert evaluation.error is None
        assert evaluation.to_json() == plain.evaluate(candidate, slopes=slopes).to_json()
        spared.append(sharing.prepare().model.shared_blocks.count.spared)
    assert [count > 0 for count in spared] == [False, False, False, True, False, True, False, False]


def test_merged_layer_that_is_not_finite_is_named(setup):
    base = Folder(setup.base)
    prefix = Layout(base.info).prefix
    merged = SimpleNamespace(info=base.info, tensor=lambda name: torch.full(base.info[name].shape, torch.nan))
    stack = checked(Stacked([StackedLayer(base, "base", 0), StackedLayer(merged, "merged", 1)], base, "base", prefix))
    names = [name for name in stack.info if name.startswith(prefix)]
    assert torch.equal(stack.tensor(names[0]), base.tensor(names[0]))
    with pytest.raises(FloatingPointError, match="holds NaN or infinity"):
        stack.tensor(names[-1])


def test_children_score_the_same_whether_their_parents_are_kept_or_built_again(setup, generations, tmp_path):
    keeping = Worker(dataclasses.replace(setup, members=str(tmp_path)))
    for candidate in generations:
        keeping.members.lineage[candidate.id] = candidate
    kept = [keeping.evaluate(candidate).to_json() for candidate in generations]
    assert all(keeping.members.find(candidate.id) is not None for candidate in generations[2:])
    fresh = Worker(setup)
    fresh.members.lineage |= keeping.members.lineage
    assert fresh.evaluate(generations[-1]).to_json() == kept[-1]
    lost = Worker(setup).evaluate(generations[-1])
    assert lost.error.startswith("RecipeError: no candidate")


def test_task_that_the_base_cannot_do_is_an_error_of_the_setup(tmp_path):
    base, expert = (str(tiny_model(tmp_path / name, "llama", i, vocab_size=98)) for i, name in enumerate(("base", "a")))
    for split in ("search", "report"):
        write_jsonl(tmp_path / f"{split}.jsonl", [{"text": f"{split} ~"}])
    task = {"kind": "language_modelling", "search": "search.jsonl", "report": "report.jsonl"}
    setup = Setup(base, {"a": expert}, {"t": task}, folder=str(tmp_path))
    with pytest.raises(TaskError, match="token 98"):
        Worker(setup).evaluate(recipe.base())


def test_search_uses_the_end_tokens_of_the_expert_like_which_the_merge_is(tmp_path):
    base, expert = (tiny_model(tmp_path / name, "llama", i, eos_token_id=2 + i) for i, name in enumerate(("base", "a")))
    settings = json.loads((expert / "tokenizer_config.json").read_text())
    (expert / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<unk>"}))
    setup = Setup(str(base), {"a": str(expert)}, {})
    ends = {like: Worker(dataclasses.replace(setup, like=like)).prepare().model.end_tokens for like in (None, "a")}
    assert ends == {None: (2,), "a": (3,)}


class Full:
    """A task whose scoring runs out of the device's memory, the first `times`."""

    def __init__(self, task, times):
        self.name, self._task, self._times = task.name, task, times

    def __getattr__(self, name):
        return getattr(self._task, name)

    def score(self, *arguments):
        self._times -= 1
        if self._times >= 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self._task.score(*arguments)


def filled(setup, times):
    """Return a worker, whose device is full the first `times`, and its placement, which holds something."""
    worker = Worker(setup)
    loaded = worker.prepare()
    loaded.tasks[0] = Full(loaded.tasks[0], times)
    placement = loaded.builder.placement
    placement.room = 100
    return worker, placement


def test_a_full_device_is_emptied_and_the_candidate_tried_once_more(setup, worker):
    full, placement = filled(setup, 1)
    evaluation = full.evaluate(mean())
    assert evaluation.error is None
    assert placement.room == 0
    assert evaluation.scores.keys() == (plain := worker.evaluate(mean())).scores.keys()
    assert all(vector.tobytes() == plain.scores[name].tobytes() for name, vector in evaluation.scores.items())


def test_a_device_that_is_too_small_is_not_the_candidates_fault(setup):
    full, _ = filled(setup, 2)
    error = full.evaluate(mean()).error
    assert error.startswith("out of device memory: cpu is too small for the model and a batch")
    assert "says nothing of this candidate's quality. Type a smaller `batch` of the tasks" in error
    assert full.evaluate(mean()).error is None, "others go on"


def test_what_would_fit_is_said(setup, monkeypatch):
    monkeypatch.setattr(worker_module, "fastest", lambda device: "bfloat16")
    sized = {name: {**task, "batch": 64} for name, task in setup.tasks.items()}
    full, _ = filled(dataclasses.replace(setup, tasks=sized, gpus=0.5), 2)
    assert full.evaluate(mean()).error.endswith(
        "Type a smaller `batch` of the tasks `turned` (64), `inverted` (64), or `precision: bfloat16`, or fewer workers, with `gpus: 1`"
    )


def test_scores_on_a_device_with_copies_are_those_of_the_cpu(setup, worker):
    """The device is the CPU, with copies counted: merges run there, models stay there, and slopes come from there."""
    other = Worker(setup)
    place = other.prepare().builder.placement = Placement(copies=True)
    place.room = 1 << 30
    for candidate in (mean(), recipe.expert("turned"), mean(0.5)):
        before = place.sent
        one, two = worker.evaluate(candidate), other.evaluate(candidate)
        assert one.error is two.error is None
        assert all(vector.tobytes() == two.scores[name].tobytes() for name, vector in one.scores.items())
    assert place.sent - before < place.held_bytes / 10


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")
def test_scores_and_slopes_on_cuda_are_those_of_the_cpu_up_to_rounding(setup, worker):
    wanted = {name: [0, 1, 2, 3] for name in setup.tasks}
    other = Worker(dataclasses.replace(setup, device="cuda"))
    one, two = (each.evaluate(mean(), slopes=wanted) for each in (worker, other))
    for name, vector in one.scores.items():
        np.testing.assert_allclose(two.scores[name], vector, atol=1e-3)
    for name, slopes in one.slopes.items():
        np.testing.assert_allclose(two.slopes[name], slopes, rtol=1e-2, atol=1e-4)
