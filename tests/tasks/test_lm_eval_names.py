"""What is a task of lm-evaluation-harness here: names, groups and configurations, and those that are refused."""

import json
import sys

import pytest
from harness_tasks import CHOICE, GENERATION, ROWS, TARGET, config, harness

from evomerge import trust
from evomerge.errors import TaskError
from evomerge.tasks import make
from evomerge.tasks.harness import loading

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.usefixtures("own_data_cache")


@pytest.fixture
def model(live):
    return live("llama")


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

    def test_metrics_that_are_scripts_of_the_hub_are_refused(self):
        text = json.loads((self.folder / "tasks" / "large.yaml").read_text())
        text["metric_list"] = [
            {"metric": metric, "hf_evaluate": metric != "acc", "aggregation": "mean", "higher_is_better": True}
            for metric in ("acc", "mine.py")
        ]
        (self.folder / "tasks" / "large.yaml").write_text(json.dumps(text), encoding="utf-8")
        with pytest.raises(TaskError, match=r"`large` has the metric `mine.py`, a script of the hub"):
            self.named("large")

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
