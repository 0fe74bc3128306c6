"""Classification scores are those of transformers' logits, or of a frozen head."""

import numpy as np
import pytest
import torch
from rows import write_jsonl
from safetensors.torch import save_file
from scipy.stats import entropy
from tiny_models import tiny_tokenizer

from evomerge.errors import TaskError
from evomerge.models import LiveModel
from evomerge.tasks import make
from evomerge.tasks.task import negative_entropy

TEXTS = ["one", "number two", "a third one that is long"]


@pytest.fixture
def settings(tmp_path):
    for split in ("search", "report"):
        rows = [{"text": f"{text} {split}", "label": i} for i, text in enumerate(TEXTS)]
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    files = {split: f"{split}.jsonl" for split in ("search", "report")}
    return {"kind": "classification", "input": "text", "label": "label", **files}


@torch.inference_mode()
def alone(model, text):
    return model.module(**model.tokenizer(text, return_tensors="pt"))


def margins(logits, labels=(0, 1, 2)):
    """Return the labels' logits minus those of the other classes, in class order."""
    differences = [row[label] - row for row, label in zip(logits.numpy(), labels, strict=True)]
    return np.array([np.delete(row, label) for row, label in zip(differences, labels, strict=True)])


def test_scores_are_those_of_each_text_alone(settings, live, tmp_path):
    model = live("bert")
    task = make("topics", {**settings, "keep_margins": True}, tmp_path)
    scored = task.score(model, "report")
    logits = torch.cat([alone(model, f"{text} report").logits for text in TEXTS])
    np.testing.assert_allclose(scored.outputs["margins"], margins(logits), rtol=1e-4, atol=1e-5)
    expected = logits.log_softmax(1).diagonal().numpy()
    np.testing.assert_allclose(scored.scores["log_likelihood"], expected, rtol=1e-4, atol=1e-5)
    assert scored.scores["accuracy"].tolist() == (logits.argmax(1) == torch.arange(3)).float().tolist()
    assert (task.search_metric, task.report_metric) == ("log_likelihood", "accuracy")


def test_margins_are_optional(settings, live, tmp_path):
    assert make("topics", settings, tmp_path).score(live("bert"), "search").outputs == {}


def test_entropy_is_that_of_the_classes_and_is_scored_where_asked_for(settings, live, tmp_path):
    model = live("bert")
    probabilities = torch.cat([alone(model, f"{text} search").logits for text in TEXTS]).double().softmax(1).numpy()
    asked = (
        {"search_metric": "entropy"},
        {"report_metric": "entropy"},
        {"metrics": ["accuracy", "log_likelihood", "entropy"]},
    )
    for more in asked:
        scores = make("topics", {**settings, **more}, tmp_path).score(model, "search").scores
        assert list(scores) == ["accuracy", "log_likelihood", "entropy"]
        np.testing.assert_allclose(scores["entropy"], -entropy(probabilities, axis=1), rtol=1e-4)
    assert set(make("topics", settings, tmp_path).score(model, "search").scores) == {"accuracy", "log_likelihood"}


def test_entropy_of_a_class_that_is_ruled_out_is_finite():
    logits = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, -1e4, -1e4]], requires_grad=True)
    values = negative_entropy(logits)
    assert values.tolist() == pytest.approx([-np.log(2), 0])
    values.sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            {"search_metric": "accuracy"},
            "task `topics`: kind `classification`: the metric `accuracy` cannot be differentiated; set `search_metric` to `log_likelihood`",
        ),
        ({"metrics": ["accuracy"]}, "add `log_likelihood` or `entropy` to its `metrics`"),
    ],
)
def test_accuracy_has_no_slopes(more, says, settings, live, tmp_path):
    task = make("topics", {**settings, **more}, tmp_path)
    with pytest.raises(TaskError, match=says):
        task.graph(live("bert"), "search", [0])


def test_head_is_applied_to_the_mean_hidden_state(settings, live, tmp_path):
    model = live("bert", "AutoModel")
    torch.manual_seed(2)
    head = {"weight": torch.randn(4, 16), "bias": torch.randn(4), "mean": torch.randn(16), "scale": torch.tensor([7.0])}
    save_file(head, tmp_path / "head.safetensors")
    task = make("topics", {**settings, "head": "head.safetensors", "keep_margins": True}, tmp_path)
    hidden = torch.stack([alone(model, f"{text} search").last_hidden_state[0].mean(0) for text in TEXTS]) - head["mean"]
    logits = 7 * (hidden / hidden.norm(dim=1, keepdim=True)) @ head["weight"].T + head["bias"]
    scored = task.score(model, "search")
    np.testing.assert_allclose(scored.outputs["margins"], margins(logits), rtol=1e-4, atol=1e-4)
    other_model = task.score(live("bert"), "search")  # its classifier is not used
    assert other_model.outputs["margins"].shape == (3, 3)


def test_broken_candidate_has_no_accuracy(settings, live, tmp_path):
    model = live("bert", initializer_range=0.2)
    weight = model.module.classifier.weight
    before = weight.data.clone()
    weight.data.fill_(torch.nan)
    scores = make("topics", settings, tmp_path).score(model, "search").scores
    weight.data.copy_(before)
    assert np.isnan(scores["accuracy"]).all()
    assert np.isnan(scores["log_likelihood"]).all()


def test_texts_are_cut_at_max_length(settings, live, tmp_path):
    model = live("bert")
    task = make("topics", {**settings, "max_length": 4, "keep_margins": True}, tmp_path)
    expected = margins(alone(model, TEXTS[2][:3]).logits, labels=[2])
    np.testing.assert_allclose(task.score(model, "search", [2]).outputs["margins"], expected, rtol=1e-4, atol=1e-5)


def test_text_longer_than_the_model_is_an_error(settings, live, tmp_path):
    write_jsonl(tmp_path / "search.jsonl", [{"text": "x" * 100, "label": 0}])
    with pytest.raises(
        TaskError, match="needs 101 tokens, and the model has positions for 64; set a smaller `max_length`"
    ):
        make("topics", settings, tmp_path).score(live("bert"), "search")


def test_model_that_does_not_classify_is_an_error(settings, live, tmp_path):
    task = make("topics", settings, tmp_path)
    for model in (live("bert", "AutoModel"), live("llama")):
        with pytest.raises(TaskError, match=r"does not classify; set `auto`"):
            task.score(model, "search")


def test_label_beyond_the_models_classes_is_an_error(settings, live, tmp_path):
    write_jsonl(tmp_path / "report.jsonl", [{"text": "x", "label": 3}])
    with pytest.raises(TaskError, match="label 3 in the report split, but the model has 3 classes"):
        make("topics", settings, tmp_path).score(live("bert"), "report")
    with pytest.raises(TaskError, match="label 3 in the report split, but the model has 3 classes"):
        make("topics", settings, tmp_path).check(live("bert"))


def test_model_that_does_not_classify_or_read_the_examples_is_an_error_before_any_candidate(settings, live, tmp_path):
    task = make("topics", settings, tmp_path)
    task.check(live("bert"))
    with pytest.raises(TaskError, match="does not classify"):
        task.check(live("bert", "AutoModel"))
    with pytest.raises(TaskError, match=r"token \d+ .* 60 rows"):
        task.check(live("bert", vocab_size=60))
    with pytest.raises(
        TaskError, match=r"column `text` has texts, such as 'one search', and ViTFor.* takes `pixel_values`; for images"
    ):
        task.check(live("vit"))
    for value, split in enumerate(("search", "report")):
        write_jsonl(tmp_path / f"{split}.jsonl", [{"text": np.full((2, 4, 4), value).tolist(), "label": 0}])
    with pytest.raises(TaskError, match=r"cannot run its search examples: ValueError: .*channel"):
        make("topics", settings, tmp_path).check(live("vit"))
    with pytest.raises(
        TaskError, match=r"column `text` has images, and BertFor.* takes `input_ids`; set `input` to a column of texts"
    ):
        make("topics", settings, tmp_path).check(live("bert"))


@pytest.mark.parametrize(
    ("takes", "ids", "says"),
    [
        ("input_ids, attention_mask", "input_ids", None),
        ("**inputs", "inputs['input_ids']", None),
        ("pixel_values", "pixel_values", "has texts, such as 'one search', and Words takes `pixel_values`; for images"),
    ],
)
def test_a_module_of_the_user_is_asked_by_the_names_that_it_takes(takes, ids, says, settings, tmp_path):
    save_file({"words.weight": torch.randn(99, 3)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    tiny_tokenizer(tmp_path)
    (tmp_path / "words.py").write_text(
        "from torch.nn import Embedding, Module\n"
        "class Words(Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.words = Embedding(99, 3)\n"
        f"    def forward(self, {takes}):\n"
        f"        return self.words({ids}).mean(1)\n"
        "def make(folder):\n"
        "    return Words()\n"
    )
    task, model = make("topics", settings, tmp_path), LiveModel(tmp_path, module=f"{tmp_path / 'words.py'}:make")
    if says is not None:
        with pytest.raises(TaskError, match=says):
            task.check(model)
        return
    task.check(model)
    assert task.score(model, "search").scores["log_likelihood"].shape == (3,)


@pytest.mark.parametrize("state", ["mean", "cls", "last"])
@pytest.mark.parametrize("plain", [False, True])
def test_head_is_applied_to_the_state_that_the_task_names(state, plain, settings, live, tmp_path):
    model = live("bert", "AutoModel")
    torch.manual_seed(3)
    tensors = {"weight": torch.randn(3, 16), "bias": torch.randn(3)}
    save_file(tensors, tmp_path / "head.safetensors")
    more = {"head": "head.safetensors", "head_input": state, "plain_head": plain, "keep_margins": True}
    scored = make("topics", {**settings, **more}, tmp_path).score(model, "search")
    hidden = [alone(model, f"{text} search").last_hidden_state[0] for text in TEXTS]
    states = torch.stack([{"mean": h.mean(0), "cls": h[0], "last": h[-1]}[state] for h in hidden])
    states = states if plain else states / states.norm(dim=1, keepdim=True)
    expected = margins(torch.nn.functional.linear(states, **tensors))
    np.testing.assert_allclose(scored.outputs["margins"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("more", [{"head_input": "cls"}, {"plain_head": True}])
def test_settings_of_a_head_need_a_head(more, settings, tmp_path):
    with pytest.raises(TaskError, match="is about the task's `head`; give one"):
        make("topics", {**settings, **more}, tmp_path)


def head(folder, **changes):
    tensors = {"weight": torch.ones(3, 16), "bias": torch.zeros(3), "mean": torch.zeros(16), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "head.safetensors")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weight": None}, r"expected a tensor `weight`"),
        ({"weights": torch.ones(1)}, "unknown tensor `weights`; did you mean `weight`"),
        ({"bias": torch.zeros(4)}, r"expected `bias` of shape \[3\], got \[4\]"),
        ({"mean": torch.full((16,), torch.inf)}, "`mean` has elements that are not finite"),
        ({"weight": torch.ones(2, 16), "bias": torch.zeros(2)}, "example 2: expected an integer from 0 to 1, got 2"),
    ],
)
def test_head_is_checked_before_any_work(changes, says, settings, tmp_path):
    head(tmp_path, **changes)
    with pytest.raises(TaskError, match=says):
        make("topics", {**settings, "head": "head.safetensors"}, tmp_path)


def test_missing_head_is_an_error(settings, tmp_path):
    with pytest.raises(TaskError, match=r"no such file: .*maths; .* for the head of an expert, type `head_of: maths`"):
        make("topics", {**settings, "head": "maths"}, tmp_path)


def test_head_of_another_width_is_an_error(settings, live, tmp_path):
    head(tmp_path, weight=torch.ones(3, 8), mean=None)
    task = make("topics", {**settings, "head": "head.safetensors"}, tmp_path)
    for use in (lambda: task.score(live("bert"), "search"), lambda: task.check(live("bert"))):
        with pytest.raises(TaskError, match="width 8, the model's have 16"):
            use()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "", "label": 0}, "expected a text, got ''"),
        ({"text": 3, "label": 0}, "expected a text, got 3"),
        ({"text": "x", "label": "cat"}, "search example 0: expected a word, as `cat` elsewhere, got 0"),
        ({"text": "x", "label": -1}, "got -1"),
        ({"text": "x", "label": True}, "got True"),
        ({"text": "x"}, "no column `label`; known: text"),
    ],
)
def test_examples_are_checked_before_any_work(row, says, settings, tmp_path):
    write_jsonl(tmp_path / "search.jsonl", [{"text": "good", "label": 0}, row])
    with pytest.raises(TaskError, match=says):
        make("topics", settings, tmp_path)


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (3, "expected texts or images, got numbers, such as 3"),
        ([[0.0, 1.0], [1.0, 0.0]], r"expected images \(channels, height, width\), got arrays of shape \[2, 2\]"),
        ([[[0.0, 1.0], [1.0]]], "arrays of numbers of one shape"),
        ([[[0.0, float("nan")]]], "numbers that are not finite"),
    ],
)
def test_images_are_checked_before_any_work(pixels, says, settings, tmp_path):
    write_jsonl(tmp_path / "search.jsonl", [{"text": pixels, "label": 0}])
    with pytest.raises(TaskError, match=says):
        make("topics", settings, tmp_path)
