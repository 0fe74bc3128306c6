"""A worker whose candidates run in an engine scores them as one with transformers does; the engine is a fake of vllm."""

import dataclasses
import os
import sys

import numpy as np
import pytest
from engines import SIZES, install_fake, llama_setup
from rows import write_jsonl
from tiny_models import tiny_model

from evomerge.errors import EvaluatorError, EvomergeError, ModelError, StudyError
from evomerge.evaluate import Serial, Worker, loaded, make
from evomerge.evaluate.loaded import check_engine
from evomerge.evaluate.setup import open_pool
from evomerge.parts import identity, open_parts
from evomerge.recipe import Recipe, expert
from evomerge.settings import StudySettings
from evomerge.study import Study
from evomerge.testing import fake_vllm
from evomerge.trial import Proposal

FILES = {"search": "search.jsonl", "report": "report.jsonl"}
TASKS = {
    "brief": {
        "kind": "generation",
        **FILES,
        "max_new_tokens": 8,
        "stop": ["e"],
        "search_metric": "length",
        "budget": "limit",
    },
    "right": {"kind": "generation", **FILES, "max_new_tokens": 4},
    "choice": {"kind": "multiple_choice", **FILES, "answer": "choice", "keep_margins": True},
    "text": {"kind": "language_modelling", **FILES, "text": "prompt", "per": "byte"},
}
MIXED = {"merge": {"method": "ties", "inputs": ["a", "b"]}}
DEEP = {
    "recipe": {
        "stack": {
            "path": {"sources": "experts", "include": {"bit": "first", "per": ["slot"]}, "shortest": 0.5, "longest": 2}
        }
    }
}
BLOCKS = [{"source": {"expert": name}, "layer": layer} for layer, name in enumerate("ab")]


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    install_fake(monkeypatch)


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    for split, file in FILES.items():
        words = ["a", "some", "longer text", "the longest of all", "b c"]
        rows = [{"prompt": f"{split} {word}", "answer": "ab", "choices": ["xy", "ab c", "q"]} for word in words]
        write_jsonl(folder / file, [{**row, "choice": i % 3, "limit": i + 3} for i, row in enumerate(rows)])
    return llama_setup(folder, TASKS)


@pytest.mark.parametrize("data", [MIXED, {"expert": "a"}, {"stack": {"slots": BLOCKS, "rest": {"expert": "a"}}}])
def test_an_engine_scores_as_transformers_do(setup, data):
    recipe = Recipe.parse(data)
    engine, plain = Worker(setup), Worker(dataclasses.replace(setup, engine=None))
    for split, examples in (("search", None), ("report", None), ("search", {"brief": [4, 0], "choice": [1]})):
        served, expected = (worker.evaluate(recipe, split, examples) for worker in (engine, plain))
        assert served.error is expected.error is None
        assert served.scores.keys() == expected.scores.keys()
        assert {"decode", "merge", "score"} <= served.seconds.keys()
        for name, scores in {**expected.scores, **expected.outputs}.items():
            np.testing.assert_allclose({**served.scores, **served.outputs}[name], scores, atol=1e-4, err_msg=name)


def test_candidates_do_not_depend_on_earlier_ones(setup):
    worker = Worker(setup)
    first, _, again = (worker.evaluate(expert(name)) for name in "aba")
    assert first.to_json() == again.to_json()


def test_children_of_earlier_candidates_are_built_in_the_engine(setup, tmp_path):
    kept = dataclasses.replace(setup, members=str(tmp_path))
    parent = Recipe.parse(MIXED)
    child = Recipe.parse({"merge": {"method": "linear", "inputs": [{"member": parent.id}, "b"]}})
    results = []
    for setup_ in (kept, dataclasses.replace(kept, engine=None, members=None)):
        worker = Worker(setup_)
        worker.members.lineage[parent.id] = parent
        worker.evaluate(parent)
        results.append(worker.evaluate(child))
    for name, scores in results[1].scores.items():
        np.testing.assert_allclose(results[0].scores[name], scores, atol=1e-4)


def test_a_candidate_with_nan_is_named_and_leaves_the_engine_whole(setup, monkeypatch):
    worker = Worker(setup)
    before = worker.evaluate(expert("a"))
    with monkeypatch.context() as patch:
        patch.setattr(loaded, "all_finite", lambda tensor: False)
        failed = worker.evaluate(Recipe.parse(MIXED))
    assert "holds NaN or infinity" in failed.error
    assert "model." in failed.error
    assert worker.evaluate(expert("a")).to_json() == before.to_json()


def test_a_stack_of_another_depth_is_the_candidates_error(setup):
    failed = Worker(setup).evaluate(Recipe.parse({"stack": {"slots": [*BLOCKS, BLOCKS[0]], "rest": {"expert": "a"}}}))
    assert "a stack that has 3 layers, and the engine those of the base, 2" in failed.error
    assert "leave out `engine`" in failed.error


def test_slopes_are_the_candidates_error(setup):
    failed = Worker(setup).evaluate(Recipe.parse(MIXED), slopes={"text": [0]})
    assert "an engine has no module of transformers, and no slopes" in failed.error


def test_a_dead_engine_ends_the_search(setup, monkeypatch):
    worker = Worker(setup)

    class EngineDeadError(Exception):
        pass

    def dead(*_, **__):
        raise EngineDeadError("killed")

    monkeypatch.setattr(worker.prepare().engine.llm, "collective_rpc", dead)
    with pytest.raises(EvaluatorError, match="the engine died"):
        worker.evaluate(expert("a"))


def test_closing_ends_the_engine(setup):
    with Serial(setup) as evaluator:
        evaluator.submit(Proposal(0, expert("a")))
        evaluator.wait()
        llm = evaluator._worker.prepare().engine.llm
        assert llm.running
    assert not llm.running
    evaluator.close()


def test_an_engine_runs_in_the_process_of_a_worker_that_may_be_killed(setup, monkeypatch):
    key = "VLLM_ENABLE_V1_MULTIPROCESSING"
    monkeypatch.setenv(key, "")
    monkeypatch.delenv(key)
    Worker(setup)
    assert key not in os.environ
    Worker(setup, alone=False)
    assert os.environ[key] == "0"


def study(setup, **changes):
    pool = {"base": setup.base, "experts": dict(setup.experts)}
    data = {"pool": pool, "space": "task_arithmetic", "tasks": {"text": TASKS["text"]}, "engine": "vllm"}
    return StudySettings.parse(
        {**data, "folder": setup.folder, "evaluations": 64, **changes}, "study.yaml", open_pool(setup).base.path
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"engine": "vlm"},
            "`engine`: expected transformers, vllm or a mapping such as {kind: vllm, max_model_len: 2048}, got 'vlm'",
        ),
        ({"engine": {"kind": "vllm", "max_len": 3}}, "unknown key `engine.max_len`; did you mean `max_model_len`?"),
        (
            {"tasks": {"text": {**TASKS["text"], "search_metric": "entropy"}}},
            "`search_metric: entropy` needs the whole distribution",
        ),
        (
            {"tasks": {"mine": {"kind": "callable", "function": "math:sqrt", "search": 3, "report": 3}}},
            "kind `callable` reads a module of transformers",
        ),
        ({"driver": {"kind": "gradient"}}, "driver `gradient` follows slopes, which an engine does not give"),
        ({"space": DEEP, "driver": {"kind": "random"}}, "layers, and the engine those of the base, 2"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_before_any_work(setup, changes, message):
    with pytest.raises(EvomergeError) as error:
        open_parts(study(setup, **changes))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_model_and_the_device_are_refused_before_any_work(setup, monkeypatch, tmp_path):
    gemma = {name: str(tiny_model(tmp_path / name, "gemma", seed=seed)) for seed, name in enumerate(("base", "a"))}
    pool = {"base": gemma["base"], "experts": {"a": gemma["a"]}}
    no_class = r"GemmaForCausalLM, and vLLM 0.32.0 has no such class; .* leave out `engine`"
    with pytest.raises(ModelError, match=no_class):
        Study.create(tmp_path / "run", study(setup, pool=pool))
    with pytest.raises(ModelError, match=no_class):
        Worker(dataclasses.replace(setup, base=gemma["base"], experts={"a": gemma["a"]}, tasks={})).prepare()
    monkeypatch.setattr(sys.modules["vllm"].platforms.current_platform, "device_type", "cuda")
    with pytest.raises(ModelError, match="the vLLM that is installed here computes on cuda; type `device: cuda`"):
        Study.create(tmp_path / "run", study(setup))
    assert not (tmp_path / "run").exists()


def test_a_search_in_an_engine_runs_and_is_looked_at_where_there_is_none(setup, monkeypatch, tmp_path):
    settings = study(setup, evaluations=3, driver={"kind": "random"}, engine={"max_model_len": 64})
    created = Study.create(tmp_path / "run", settings)
    created.run(progress=False)
    monkeypatch.setitem(sys.modules, "vllm", None)
    opened = Study.open(tmp_path / "run")
    evaluations = [evaluation for _, evaluation in opened.replay(opened.parts.new_driver(0)) if evaluation is not None]
    assert [evaluation.error for evaluation in evaluations] == [None] * 3
    with pytest.raises(StudyError, match="engine"):
        Study.open(tmp_path / "run", study(setup, evaluations=3, driver={"kind": "random"}, engine="transformers"))


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_ray_workers_with_engines_search_as_one_process_does(setup, monkeypatch, tmp_path):
    import ray

    from evomerge.evaluate.ray import evaluator

    class WithFake(evaluator._PlacedWorker):
        def __init__(self, *args):
            sys.modules["vllm"] = fake_vllm()  # in the worker's process
            super().__init__(*args)

    monkeypatch.setattr(evaluator, "_ACTOR", ray.remote(max_restarts=0)(WithFake))
    digests = set()
    for workers in (1, 2):
        tasks = {"text": TASKS["text"], "right": {**TASKS["right"], "search_metric": "accuracy"}}
        settings = study(setup, tasks=tasks, evaluations=8, driver={"kind": "nsga2", "population": 4}, workers=workers)
        created = Study.create(tmp_path / str(workers), settings)
        created.run(progress=False)
        digests.add(created.digest())
        assert not any(evaluation.error for _, evaluation in created.population())
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("gpus", "options", "reserved", "memory"),
    [
        (1.0, {}, 1.0, None),
        (0.5, {}, 0.5, 0.45),
        (0.5, {"gpu_memory_utilization": 0.4}, 0.5, 0.4),
        (1.0, {"tensor_parallel_size": 2}, 2.0, None),
    ],
)
def test_an_engine_takes_its_workers_share_of_a_gpu(gpus, options, reserved, memory, setup, monkeypatch):
    shared = dataclasses.replace(setup, device="cuda", gpus=gpus, engine={**setup.engine, **options})
    assert loaded.reserved_gpus(shared) == reserved
    assert loaded.reserved_gpus(dataclasses.replace(shared, device="cpu")) == 0
    monkeypatch.setattr(loaded, "check_class", lambda *_: None)
    monkeypatch.setattr(loaded, "find", lambda _: None)
    assert loaded.open_engine(shared, open_pool(setup)).llm.options.get("gpu_memory_utilization") == memory


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu_memory_utilization": 0.6}, r"`gpu_memory_utilization: 0.6` of the memory; type 0.45 there"),
        ({"tensor_parallel_size": 2}, "spreads its engine over 2; type `gpus: 1`, or `tensor_parallel_size: 1`"),
    ],
)
def test_an_engine_that_takes_more_than_its_workers_share_is_refused(options, message, setup):
    shared = dataclasses.replace(setup, device="cuda", gpus=0.5, engine={**setup.engine, **options})
    with pytest.raises(ModelError, match=message):
        check_engine(shared, open_pool(setup), [])
    with pytest.raises(ModelError, match=message):
        make(shared, 2)


def test_models_that_are_not_the_base_with_other_weights_are_refused(setup, tmp_path):
    own = dataclasses.replace(setup, module="mine.py:make")
    with pytest.raises(ModelError, match="here `module` names a class of your own; leave out `engine`"):
        check_engine(own, open_pool(setup), [])
    folders = {
        name: str(tiny_model(tmp_path / name, "llama_tied", seed=seed, tie_word_embeddings=name == "base", **SIZES))
        for seed, name in enumerate(("base", "a"))
    }
    with pytest.raises(ModelError, match="here the base ties tensors that are apart in an expert, such as the head"):
        open_parts(study(setup, pool={"base": folders["base"], "experts": {"a": folders["a"]}}))


def test_another_device_for_a_report_is_refused(setup):
    with pytest.raises(EvomergeError, match="an engine computes on the device that it is built for, cpu"):
        open_parts(study(setup)).on("cpu")


def test_a_missing_engine_is_refused_with_what_to_type(setup, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(
        EvomergeError, match=r"needs vLLM, which cannot be imported here .*pip install 'evomerge\[vllm\]'"
    ):
        Study.create(tmp_path / "run", study(setup))


def test_a_study_with_an_engine_is_another(setup):
    settings = [study(setup, engine=engine) for engine in ("transformers", "vllm", {"max_model_len": 64})]
    one, two, three = (identity(entry, open_parts(entry)).get("engine") for entry in settings)
    assert one is None
    assert two["kind"] == "vllm"
    assert two != three
