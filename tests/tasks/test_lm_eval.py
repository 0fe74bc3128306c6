"""Tasks of lm-evaluation-harness: its own scores, document by document, on documents that no two splits share."""

import json
import random
import sys

import numpy as np
import pytest
import torch
from rows import write_jsonl

lm_eval = pytest.importorskip("lm_eval")
datasets = pytest.importorskip("datasets")

from evomerge import trust  # noqa: E402  # the harness is optional
from evomerge.errors import TaskError  # noqa: E402
from evomerge.tasks import make  # noqa: E402
from evomerge.tasks.harness import loading  # noqa: E402
from evomerge.tasks.harness.documents import FEW_SHOT_SEED  # noqa: E402

ROWS = [
    {"q": f"{i} {chr(97 + i % 26)}", "choices": ["x", "yz", f"{i}w"][: 2 + i % 2], "answer": i % 2, "text": "ab"[i % 2]}
    for i in range(24)
]
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}=",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}, {"metric": "f1"}],
}
TARGET = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{q}}=",
    "doc_to_target": "text",
    "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
}
GENERATION = {
    "output_type": "generate_until",
    "doc_to_text": "{{q}}=",
    "doc_to_target": "text",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 3},
    "metric_list": [{"metric": "exact_match"}],
    "filter_list": [
        {"name": "letter", "filter": [{"function": "regex", "regex_pattern": "([a-z])"}, {"function": "take_first"}]},
        {"name": "whole", "filter": [{"function": "take_first"}]},
    ],
}


@pytest.fixture(autouse=True)
def _own_data_cache(tmp_path, monkeypatch):
    """Read every file again, and leave the user's cache alone."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def model(live):
    return live("llama")


def config(folder, kind=CHOICE, rows=ROWS, **more):
    write_jsonl(folder / "test.jsonl", rows)
    files = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "test.jsonl"}}, "test_split": "test"}
    return {**files, **kind, **more}


def harness(folder, kind=CHOICE, search=8, report=10, rows=ROWS, changes=None, **settings):
    whole = config(folder, kind, rows, **(changes or {}))
    return make("mine", {"kind": "lm_eval", "config": whole, "search": search, "report": report, **settings}, folder)


def samples_of_the_harness(folder, model, kind, num_fewshot=0, batch_size=8):
    """Return what the harness itself says of each of its documents, by its text: all samples, filter by filter."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    files = {"data_files": {"test": str(folder / "test.jsonl")}}
    leaf = ConfigurableTask(
        config={**json.loads(json.dumps(config(folder, kind))), "task": "own", "dataset_kwargs": files}
    )
    leaf.set_config("num_fewshot", num_fewshot)
    leaf.set_fewshot_seed(FEW_SHOT_SEED)
    wrapped = HFLM(pretrained=model.module, tokenizer=model.tokenizer, batch_size=batch_size)
    result = lm_eval.evaluate(wrapped, {"tasks": {"own": leaf}}, bootstrap_iters=0, log_samples=True)
    return {(sample["filter"], sample["doc"]["q"]): sample for sample in result["samples"]["own"]}


def questions(task, split):
    return [example.document["q"] for example in task.examples[split]]


class TestScores:
    @pytest.mark.parametrize("shots", [0, 2])
    def test_multiple_choice_scores_as_the_harness_does(self, tmp_path, model, shots):
        task = harness(tmp_path, num_fewshot=shots, metric="acc_norm", final=2)
        own = samples_of_the_harness(tmp_path, model, CHOICE, shots)
        for split in ("search", "report", "final"):
            scored = task.score(model, split).scores
            for i, question in enumerate(questions(task, split)):
                sample = own["none", question]
                assert (scored["acc"][i], scored["acc_norm"][i]) == (sample["acc"], sample["acc_norm"])
                doc, sums = sample["doc"], torch.tensor([response[0] for response in sample["filtered_resps"]])
                merits = sums / torch.tensor([len(choice) for choice in doc["choices"]])
                expected = merits.log_softmax(0)[doc["answer"]]
                np.testing.assert_allclose(scored["log_likelihood"][i], expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("ensemble", ["letter", "whole"])
    def test_generation_scores_as_the_harness_does_by_the_chosen_filter(self, tmp_path, model, ensemble):
        task = harness(tmp_path, GENERATION, filter=ensemble, num_fewshot=1, search=12, report=12)
        own = samples_of_the_harness(tmp_path, model, GENERATION, 1)
        values = []
        for split in ("search", "report"):
            expected = [own[ensemble, question]["exact_match"] for question in questions(task, split)]
            np.testing.assert_array_equal(task.score(model, split).scores["exact_match"], expected)
            values += expected
        if ensemble == "letter":
            assert 0 < sum(values) < len(values)

    def test_targets_score_their_log_likelihood(self, tmp_path, model):
        task = harness(tmp_path, TARGET)
        own = samples_of_the_harness(tmp_path, model, TARGET)
        scored = task.score(model, "search").scores
        expected = [own["none", question]["filtered_resps"][0][0] for question in questions(task, "search")]
        np.testing.assert_allclose(scored["log_likelihood"], expected, rtol=1e-5)
        assert set(scored) == {"acc", "log_likelihood"}
        assert (task.search_metric, task.report_metric) == ("log_likelihood", "acc")

    def test_weights_that_change_in_place_are_seen(self, tmp_path, model):
        task = harness(tmp_path)
        before = task.score(model, "search").scores["log_likelihood"]
        weight = model.module.get_output_embeddings().weight
        kept = weight.clone()
        try:
            weight.mul_(0.5)
            assert not np.allclose(before, task.score(model, "search").scores["log_likelihood"])
        finally:
            weight.copy_(kept)
        np.testing.assert_array_equal(before, task.score(model, "search").scores["log_likelihood"])

    def test_less_is_better_is_negated(self, tmp_path, model):
        metric = {"metric": "acc", "aggregation": "mean", "higher_is_better": False}
        negated = harness(tmp_path, changes={"metric_list": [metric]}).score(model, "report").scores["acc"]
        np.testing.assert_array_equal(negated, -harness(tmp_path).score(model, "report").scores["acc"])
        assert negated.min() == -1

    def test_margins_belong_to_the_reported_accuracy(self, tmp_path, model):
        task = harness(tmp_path, metric="acc_norm", keep_margins=True)
        assert {name: metric.margins for name, metric in task.metrics.items() if metric.margins} == {
            "acc_norm": "margins"
        }
        scored = task.score(model, "report")
        np.testing.assert_array_equal((scored.outputs["margins"] > 0).all(axis=1), scored.scores["acc_norm"])

    def test_end_tokens_are_those_of_the_model(self, tmp_path, model):
        task = harness(tmp_path, GENERATION)
        task.check(model)
        [found] = task._requests[model.folder].values()
        assert all(made[0].args[1]["eos_token_id"] == list(model.end_tokens) for made in found.values())

    def test_global_generators_stay_as_they_are(self, tmp_path, model):
        before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()  # noqa: NPY002  # the global one
        harness(tmp_path, num_fewshot=2).check(model)
        assert (random.getstate(), np.random.get_state()[1].tobytes()) == before[:2]  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), before[2])


class TestDocuments:
    def test_splits_share_no_document_though_the_data_repeat_them(self, tmp_path):
        task = harness(tmp_path, rows=[*ROWS, *ROWS], search=12, report=9, final=3)
        keys = [task.example_keys(split) for split in ("search", "report", "final")]
        assert [len(found) for found in keys] == [12, 9, 3]
        assert len(set().union(*keys)) == 24

    def test_more_documents_than_there_are_is_an_error(self, tmp_path):
        with pytest.raises(TaskError, match=r"take 25 documents, and there are 24 different ones"):
            harness(tmp_path, search=12, report=13)

    def test_a_longer_search_leaves_the_report_as_it_is(self, tmp_path):
        short, long = harness(tmp_path, search=2), harness(tmp_path, search=14)
        assert short.example_keys("report") == long.example_keys("report")
        assert short.example_keys("search") == long.example_keys("search")[-2:]
        assert harness(tmp_path, seed=1).example_keys("report") != short.example_keys("report")

    def test_search_on_another_split(self, tmp_path, model):
        write_jsonl(tmp_path / "train.jsonl", [{**row, "q": f"t{row['q']}"} for row in ROWS[:9]] + ROWS[:3])
        files = {"data_files": {"test": "test.jsonl", "train": "train.jsonl"}}
        more = {"dataset_kwargs": files, "training_split": "train"}
        task = harness(tmp_path, changes=more, search_split="train", search=9, report=24, num_fewshot=3)
        assert all(question.startswith("t") for question in questions(task, "search"))
        task.check(model)
        for example in task.examples["search"]:  # none is solved in its own prompt
            [prompt] = {request.args[0] for request in task._requests[model.folder][example.source][example.number]}
            assert prompt.count(f"{example.document['q']}=") == 1
        with pytest.raises(TaskError, match=r"`search_split` is `tran`.*did you mean `train`"):
            harness(tmp_path, changes=more, search_split="tran")

    def test_digest_is_of_documents_and_configuration(self, tmp_path):
        first = harness(tmp_path).digest()
        assert harness(tmp_path).digest() == first
        assert harness(tmp_path, changes={"doc_to_text": "{{q}}:"}).digest() != first
        (tmp_path / "moved").mkdir()
        assert harness(tmp_path / "moved").digest() == first
        changed = [{**row, "answer": 1 - row["answer"]} for row in ROWS]
        assert harness(tmp_path / "moved", rows=changed).digest() != first


class TestNames:
    @pytest.fixture(autouse=True)
    def _few_tasks(self, tmp_path, monkeypatch):
        """Index no more than the tasks of this folder: all of the harness take seconds."""
        own = tmp_path / "tasks"
        own.mkdir()
        for name, count in (("small", 6), ("large", 18)):
            rows = [{**row, "q": f"{name} {row['q']}"} for row in ROWS[:count]]
            whole = config(tmp_path, rows=rows)
            (tmp_path / "test.jsonl").rename(tmp_path / f"{name}.jsonl")
            files = {"data_files": {"test": str(tmp_path / f"{name}.jsonl")}}
            text = {**whole, "task": name, "dataset_kwargs": files, "tag": "both"}
            (own / f"{name}.yaml").write_text(json.dumps(text), encoding="utf-8")
        for by_size in (True, False):
            means = [{"metric": "acc", "weight_by_size": by_size}]
            text = {"group": f"group_{by_size}", "task": ["small", "large"], "aggregate_metric_list": means}
            (own / f"group_{by_size}.yaml").write_text(json.dumps(text), encoding="utf-8")
        (own / "loose.yaml").write_text(json.dumps({"group": "loose", "task": ["small", "large"]}), encoding="utf-8")
        index = loading._manager("small", own)
        monkeypatch.setattr(loading, "_manager", lambda name, include: index)
        self.folder = tmp_path

    def named(self, task, **settings):
        sizes = {"search": 4, "report": 8}
        return make(
            "mine", {"kind": "lm_eval", "task": task, "include_path": "tasks", **sizes, **settings}, self.folder
        )

    @pytest.mark.parametrize(("group", "small", "large"), [("group_True", 2, 6), ("group_False", 4, 4)])
    def test_a_group_has_its_tasks_by_their_weights(self, model, group, small, large):
        task = self.named(group, search=2)
        names = [example.source.name for example in task.examples["report"]]
        assert [names.count("small"), names.count("large")] == [small, large]
        assert task.score(model, "report").scores["acc"].shape == (8,)

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("smal", "the harness has no task `smal`; did you mean `small`"),
            ("both", "`both` is a tag, and tags have no score; name one of its tasks: large, small"),
            ("loose", "the group `loose` has no score of its own; name one of its tasks: small, large"),
        ],
    )
    def test_names_without_a_score_are_refused(self, name, expected):
        with pytest.raises(TaskError, match=expected):
            self.named(name)

    def test_missing_data_say_what_to_type(self):
        text = {**CHOICE, "task": "far", "dataset_path": "some/where", "test_split": "test"}
        (self.folder / "tasks" / "large.yaml").write_text(json.dumps(text), encoding="utf-8")
        with pytest.raises(TaskError, match=r"not on this machine.*type: python -c .*TaskManager\(\).load\('large'\)"):
            self.named("large")

    def test_code_of_the_folder_is_code_of_the_study(self):
        (self.folder / "tasks" / "more.py").write_text("", encoding="utf-8")
        tasks = {"mine": {"kind": "lm_eval", "task": "small", "include_path": "tasks"}}
        names = [file.name for file in trust.code_files(tasks, None, self.folder)]
        assert names == ["group_False.yaml", "group_True.yaml", "large.yaml", "loose.yaml", "more.py", "small.yaml"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"doc_to_txt": "q"}, r"unknown key `doc_to_txt`; did you mean `doc_to_text`"),
            ({"process_docs": "mine.py"}, r"`process_docs`, which cannot be used here: it is a function"),
            ({"unsafe_code": True}, r"`unsafe_code`, which cannot be used here: it runs code that the model writes"),
            ({"dataset_path": "pandas"}, r"`dataset_path` is `pandas`; expected one of json, csv"),
            ({"dataset_kwargs": {}}, r"needs files of data, such as `dataset_kwargs: \{data_files"),
            ({"dataset_kwargs": {"data_files": "none.jsonl"}}, r"no such file: .*none.jsonl"),
            ({"dataset_kwargs": {"trust_remote_code": True}}, r"code of data sets never runs"),
            (
                {"metric_list": [{"metric": "my/metric"}]},
                r"`my/metric`; expected `- metric: NAME` with a metric of the harness",
            ),
            ({"test_split": None}, r"no `test_split` or `validation_split`"),
            ({"test_split": "tset"}, r"the harness cannot load it"),
            ({"doc_to_text": "{{ q.__class__.__mro__ }}"}, r"the harness cannot load it: SecurityError"),
            ({"output_type": "loglikelihood_rolling", "metric_list": None}, r"rolling perplexity, which is no mean"),
            (
                {"doc_to_target": "{{ 0 if q == '0 a' else 7 }}"},
                r"target 7; expected a right one, and a wrong one, among \['x', 'yz'",
            ),
        ],
    )
    def test_configurations(self, tmp_path, model, changes, expected):
        with pytest.raises(TaskError, match=expected):
            harness(tmp_path, changes=changes).check(model)

    @pytest.mark.parametrize(
        ("kind", "settings", "expected"),
        [
            (
                CHOICE,
                {"metric": "f1"},
                r"`f1` is computed from all documents together.*one of acc, acc_norm, log_likelihood",
            ),
            (TARGET, {"report_metric": "perplexity"}, r"`perplexity` is computed from all documents together"),
            (CHOICE, {"metric": "acc,none"}, r"write `metric: acc` and `filter: none`"),
            (CHOICE, {"metric": "acc_nrm"}, r"unknown metric `acc_nrm`; did you mean `acc_norm`"),
            (GENERATION, {"filter": "leter"}, r"no filter `leter`; did you mean `letter`"),
            (CHOICE, {"gen_kwargs": {"max_gen_toks": 1}}, r"generates nothing; leave out `gen_kwargs`"),
            (GENERATION, {"gen_kwargs": {"do_sample": True}}, r"samples its answers, and scores must repeat"),
            (GENERATION, {"keep_margins": True}, r"`keep_margins` needs a task of multiple choice"),
            (GENERATION, {"gen_kwargs": {"max_gen_toks": 99}}, r"cannot score it: AssertionError.*\(99\) must be less"),
            (CHOICE, {"apply_chat_template": True}, r"the tokenizer has no chat template"),
            (CHOICE, {"task": "gsm8k"}, r"expected one of `task: NAME`"),
            (CHOICE, {"include_path": "tasks"}, r"`include_path` is for a `task` by name"),
            (CHOICE, {"num_fewshot": 30}, r"cannot score it"),
        ],
    )
    def test_settings(self, tmp_path, model, kind, settings, expected):
        with pytest.raises(TaskError, match=expected):
            harness(tmp_path, kind, **settings).check(model)

    def test_no_metric_that_is_a_mean(self, tmp_path):
        with pytest.raises(TaskError, match=r"none of its metrics is a mean of scores of each document: bleu"):
            harness(tmp_path, GENERATION, changes={"metric_list": [{"metric": "bleu"}]})

    def test_examples_without_the_package(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
        with pytest.raises(TaskError, match=r"needs the package lm-eval .*pip install 'evomerge\[lm-eval\]'"):
            harness(tmp_path)

    def test_a_tokenizer_without_an_end_token(self, tmp_path, model):
        end = model.tokenizer.eos_token
        try:
            model.tokenizer.eos_token = None
            with pytest.raises(TaskError, match="the harness needs an end token, and the tokenizer has none"):
                harness(tmp_path).check(model)
        finally:
            model.tokenizer.eos_token = end

    def test_an_encoder_is_no_model_for_it(self, tmp_path, live):
        with pytest.raises(TaskError, match="needs a causal language model"):
            harness(tmp_path).check(live("bert"))
