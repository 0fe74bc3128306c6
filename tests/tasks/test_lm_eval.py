"""Tasks of lm-evaluation-harness: its own scores, document by document, on documents that no two splits share."""

import json
import random
import re

import numpy as np
import pytest
import torch
from harness_tasks import CHOICE, GENERATION, ROWS, TARGET, config, harness
from rows import write_jsonl

from evomerge.errors import TaskError
from evomerge.tasks.harness.documents import FEW_SHOT_SEED

lm_eval = pytest.importorskip("lm_eval")
pytestmark = pytest.mark.usefixtures("own_data_cache")


@pytest.fixture
def model(live):
    return live("llama")


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

    def test_choices_between_prompts(self, tmp_path, model):
        kind = {
            **CHOICE,
            "doc_to_text": "{{answer}}",
            "doc_to_target": "{{q}}",
            "metric_list": [{"metric": "acc"}],
        }  # a right choice in place of a text: the choices come first
        task = harness(tmp_path, kind, keep_margins=True)
        own = samples_of_the_harness(tmp_path, model, kind)
        scored = task.score(model, "report")
        for i, question in enumerate(questions(task, "report")):
            sample = own["none", question]
            assert scored.scores["acc"][i] == sample["acc"]
            sums = torch.tensor([response[0] for response in sample["filtered_resps"]])
            expected = sums.log_softmax(0)[sample["doc"]["answer"]]
            np.testing.assert_allclose(scored.scores["log_likelihood"][i], expected, rtol=1e-4, atol=1e-5)

    def test_several_right_choices_share_the_likelihood(self, tmp_path, model):
        kind, rows = (
            {**CHOICE, "doc_to_target": "right"},
            [{**row, "right": [i % 2, 2]} for i, row in enumerate(ROWS[1::2])],
        )
        task = harness(tmp_path, kind, rows=rows, search=5, report=7, keep_margins=True)
        scored = task.score(model, "report")
        assert scored.outputs["margins"].shape == (7, 2)
        np.testing.assert_array_equal((scored.outputs["margins"] > 0).all(axis=1), scored.scores["acc"])
        summed = [
            harness(tmp_path, {**CHOICE, "doc_to_target": f"{{{{right[{i}]}}}}"}, rows=rows, search=5, report=7)
            for i in (0, 1)
        ]
        either = np.logaddexp(*(one.score(model, "report").scores["log_likelihood"] for one in summed))
        np.testing.assert_allclose(scored.scores["log_likelihood"], either, rtol=1e-3, atol=1e-5)
        assert 0 < scored.scores["acc"].mean() < 1

    def test_chat_templates_are_those_of_the_harness(self, tmp_path, model):
        template = "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
        kept = model.tokenizer.chat_template
        try:
            model.tokenizer.chat_template = template
            task = harness(tmp_path, num_fewshot=1, apply_chat_template=True, system_instruction="Hi")
            task.check(model)
            many = harness(tmp_path, num_fewshot=1, apply_chat_template=True, fewshot_as_multiturn=False)
            many.check(model)
        finally:
            model.tokenizer.chat_template = kept
        [found] = task._requests[model.folder].values()
        prompts = [made[0].args[0] for made in found.values()]
        assert all(re.fullmatch(r"\[s\]Hi\[u\]\d+ .=\[a\]\S+\[u\]\d+ .=\[a\]", prompt) for prompt in prompts), prompts
        [found] = many._requests[model.folder].values()
        assert all(made[0].args[0].count("[u]") == 1 for made in found.values())

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
        assert (random.getstate(), np.random.get_state()[1].tobytes()) == before[:2]  # noqa: NPY002  # as above
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
