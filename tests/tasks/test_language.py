"""Language modelling, multiple choice and generation, against the model's logits and greedy tokens."""

import numpy as np
import pytest
import torch
from rows import write_jsonl
from scipy.stats import entropy
from tiny_models import tiny_model, tiny_tokenizer

from evomerge.errors import TaskError
from evomerge.models import LiveModel
from evomerge.tasks import make


def task(folder, kind, rows, **settings):
    """Make a task with `rows` in the report split, and one other example in the search split."""
    other = {"text": "other", "prompt": "other", "choices": ["a", "b"], "answer": "1"}
    other["answer"] = 0 if kind == "multiple_choice" else "1"
    write_jsonl(folder / "search.jsonl", [other])
    write_jsonl(folder / "report.jsonl", rows)
    return make("some", {"kind": kind, "search": "search.jsonl", "report": "report.jsonl", **settings}, folder)


@torch.inference_mode()
def log_likelihood(model, text, prompt=""):
    """Return the log-likelihood of `text` after `<s>` and `prompt`; each character is a token."""
    ids = model.tokenizer(prompt + text, return_tensors="pt")["input_ids"]
    logs = model.module(ids).logits[0].double().log_softmax(1)
    return float(logs[:-1].gather(1, ids[0, 1:, None])[len(prompt) :].sum())


@torch.inference_mode()
def certainty(model, text, prompt=""):
    """Return minus the mean entropy of the next character's distribution at each place of `text`."""
    ids = model.tokenizer(prompt + text, return_tensors="pt")["input_ids"]
    probabilities = model.module(ids).logits[0].double().softmax(1).numpy()
    return -entropy(probabilities[len(prompt) : -1], axis=1).mean()


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "llama_tied", "qwen3", "gemma", "mixtral"])
def test_logits_are_computed_from_the_first_scored_token_on(architecture, live, tmp_path):
    model = live(architecture)
    rows = [{"prompt": "how many", "answer": " two"}, {"prompt": "how many more", "answer": " ten"}]
    tested = task(tmp_path, "generation", rows, search_metric="log_likelihood", report_metric="log_likelihood")
    tokens = []
    hook = model.module.get_output_embeddings().register_forward_hook(lambda *came: tokens.append(came[2].shape[1]))
    ((_, values),) = tested._likelihoods(model, "report", [0, 1])
    hook.remove()
    longest, shortest = len("how many more ten"), len("how many")
    assert tokens == [longest - shortest]
    expected = [log_likelihood(model, row["answer"], row["prompt"]) / len(row["answer"]) for row in rows]
    np.testing.assert_allclose(values["log_likelihood"], expected, rtol=1e-5)


@pytest.mark.parametrize("per", ["token", "byte", "example"])
def test_entropy_of_a_text_is_the_mean_over_its_tokens(per, live, tmp_path):
    model = live("llama")
    rows = [{"text": "longer text"}, {"text": "hello"}]
    tested = task(tmp_path, "language_modelling", rows, per=per, search_metric="entropy")
    scores = tested.score(model, "report").scores["entropy"]
    np.testing.assert_allclose(scores, [certainty(model, row["text"]) for row in rows], rtol=1e-4)
    assert tested.report_metric == "log_likelihood"


def test_entropy_of_an_answer_is_the_mean_over_its_tokens(live, tmp_path):
    model = live("llama")
    tested = task(tmp_path, "generation", [{"prompt": "is it", "answer": " yes"}], search_metric="entropy")
    scores = tested.score(model, "report").scores
    assert set(scores) == {"accuracy", "log_likelihood", "entropy"}
    assert scores["entropy"][0] == pytest.approx(certainty(model, " yes", "is it"), rel=1e-4)


def test_entropy_of_choices_needs_no_answer(live, tmp_path):
    model = live("llama")
    rows = [{"prompt": "is it", "choices": ["no", "yes!"], "answer": answer} for answer in (0, 1)]
    tested = task(tmp_path, "multiple_choice", rows, normalise="none", metrics=["entropy"])
    merits = np.array([log_likelihood(model, f" {choice}", "is it") for choice in rows[0]["choices"]])
    expected = -entropy(np.exp(merits - merits.max()))
    np.testing.assert_allclose(tested.score(model, "report").scores["entropy"], [expected, expected], rtol=1e-3)


@pytest.mark.parametrize(("batch", "sizes"), [(3, [1, 1, 1]), (8, [2, 1])])
def test_choices_of_an_example_share_a_batch_in_a_graph(batch, sizes, live, tmp_path):
    rows = [{"prompt": "is it", "choices": list("abcd")[:count], "answer": 1} for count in (4, 2, 3)]
    parts = list(task(tmp_path, "multiple_choice", rows, batch=batch).graph(live("llama"), "report", [0, 1, 2]))
    assert [len(part.positions) for part in parts] == sizes


@pytest.mark.parametrize(("per", "size"), [("token", 5), ("byte", 5), ("example", 1)])
def test_log_likelihood_of_a_text(per, size, live, tmp_path):
    model = live("llama")
    tested = task(tmp_path, "language_modelling", [{"text": "longer text"}, {"text": "hello"}], per=per)
    scores = tested.score(model, "report").scores["log_likelihood"]
    assert scores[1] == pytest.approx(log_likelihood(model, "hello") / size, rel=1e-4)


def test_log_likelihood_per_byte_counts_bytes(live, tmp_path):
    model = live("llama")
    total, per_byte = (
        task(tmp_path, "language_modelling", [{"text": "häh?"}], per=per)
        .score(model, "report")
        .scores["log_likelihood"]
        for per in ("example", "byte")
    )
    assert per_byte == pytest.approx(total / 5)  # `ä` is two bytes in UTF-8


def test_truncated_text_scores_as_the_shorter_text(live, tmp_path):
    model = live("llama")
    for per in ("token", "byte"):
        tested = task(tmp_path, "language_modelling", [{"text": "hello world"}], per=per, max_length=6)
        scores = tested.score(model, "report").scores["log_likelihood"]
        assert scores[0] == pytest.approx(log_likelihood(model, "hello") / 5, rel=1e-4)


def test_first_token_without_a_begin_token_is_not_scored(tmp_path):
    folder = tiny_model(tmp_path / "model", "llama")
    tiny_tokenizer(folder, begin=False)
    model = LiveModel(folder)
    for per in ("token", "byte"):
        scored = task(tmp_path, "language_modelling", [{"text": "hello"}], per=per).score(model, "report")
        assert scored.scores["log_likelihood"][0] == pytest.approx(log_likelihood(model, "hello") / 4, rel=1e-4)
    with pytest.raises(TaskError, match="'x' is a single token"):
        task(tmp_path, "language_modelling", [{"text": "x"}]).score(model, "report")


@pytest.mark.parametrize(("normalise", "sizes"), [("none", (1, 1)), ("token", (3, 5)), ("byte", (2, 4))])
def test_choices_compete_by_their_normalised_log_likelihood(normalise, sizes, live, tmp_path):
    model = live("llama")
    rows = [{"prompt": "is it", "choices": ["no", "yes!"], "answer": answer} for answer in (0, 1)]
    scored = task(tmp_path, "multiple_choice", rows, normalise=normalise, keep_margins=True).score(model, "report")
    merits = np.array(
        [log_likelihood(model, f" {c}", "is it") / size for c, size in zip(("no", "yes!"), sizes, strict=True)]
    )
    expected = merits - np.log(np.exp(merits).sum())
    np.testing.assert_allclose(scored.scores["log_likelihood"], expected, rtol=1e-3)
    assert scored.scores["accuracy"].tolist() == [float(merits.argmax() == answer) for answer in (0, 1)]
    above = merits[0] - merits[1]
    np.testing.assert_allclose(scored.outputs["margins"], [[above], [-above]], rtol=1e-3)


def test_margins_of_examples_with_fewer_choices_are_padded(live, tmp_path):
    choices = [["no", "yes!"], ["a", "b", "c", "d"], ["p", "q", "r"]]
    rows = [{"prompt": "is it", "choices": listed, "answer": 1} for listed in choices]
    tested = task(tmp_path, "multiple_choice", rows, keep_margins=True)
    scored = tested.score(live("llama"), "report")
    margins = scored.outputs["margins"]
    assert margins.shape == (3, 3)
    assert (margins[0] == margins[0, 0]).all()
    assert len(set(margins[1].tolist())) == 3
    assert margins[2, 1] == margins[2, 2] != margins[2, 0]
    assert ((margins > 0).all(axis=1) == (scored.scores["accuracy"] == 1)).all()
    assert tested.score(live("llama"), "report", [0]).outputs["margins"].shape == (1, 3)


def test_long_prompt_loses_its_beginning(live, tmp_path):
    model = live("llama")
    rows = [{"prompt": "x" * 90 + "is it", "answer": " yes"}]
    tested = task(tmp_path, "generation", rows, max_length=7, max_new_tokens=1)
    ids = model.tokenizer(" it yes", return_tensors="pt", add_special_tokens=False)["input_ids"]
    logs = model.module(ids).logits[0].double().log_softmax(1)
    expected = float(logs[2:-1].gather(1, ids[0, 3:, None]).mean())
    assert tested.score(model, "report").scores["log_likelihood"][0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "a", "choices": ["x"], "answer": 0}, "expected a list of two texts or more"),
        ({"prompt": "a", "choices": ["x", 3], "answer": 0}, "expected a text, got 3"),
        ({"prompt": "a", "choices": ["x", "y"], "answer": 2}, "example 0: expected an integer from 0 to 1, got 2"),
    ],
)
def test_choices_are_checked_before_any_work(row, says, tmp_path):
    with pytest.raises(TaskError, match=says):
        task(tmp_path, "multiple_choice", [row])


@torch.inference_mode()
def greedy(model, prompt, count):
    ids = model.tokenizer(prompt, return_tensors="pt")["input_ids"]
    for _ in range(count):
        ids = torch.cat([ids, model.module(ids).logits[:, -1:].argmax(-1)], 1)
        if ids[0, -1] == model.tokenizer.eos_token_id:
            break
    return model.tokenizer.decode(ids[0, 1 + len(prompt) :], skip_special_tokens=True)


def test_generated_answers_are_greedy(live, tmp_path):
    model = live("llama")
    prompts = ["a", "some b", "c is much longer"]
    rows = [{"prompt": prompt, "answer": greedy(model, prompt, 5)} for prompt in prompts]
    rows += [{"prompt": prompt, "answer": f"no {prompt}"} for prompt in prompts]
    scores = task(tmp_path, "generation", rows, max_new_tokens=5).score(model, "report").scores
    assert scores["accuracy"].tolist() == [1, 1, 1, 0, 0, 0]
    answer = rows[2]["answer"]
    expected = log_likelihood(model, answer, prompts[2]) / len(answer)
    assert scores["log_likelihood"][2] == pytest.approx(expected, rel=1e-3)


def test_nothing_is_generated_where_log_likelihood_is_searched(live, tmp_path, monkeypatch):
    model = live("llama")
    tested = task(tmp_path, "generation", [{"prompt": "a", "answer": "b"}])
    monkeypatch.setattr(LiveModel, "generate", None)
    assert set(tested.score(model, "search").scores) == {"log_likelihood"}


@pytest.mark.parametrize(
    ("settings", "text", "answer", "right"),
    [
        ({}, " 46 ", "46", True),
        ({}, "46.", "46", False),
        ({"stop": ["\n"]}, "46\n1+1=", "46", True),
        ({"match": "regex", "pattern": r"answer is (\d+)"}, "the answer is 46, not 47", "46", True),
        ({"match": "regex", "pattern": r"answer is (\d+)"}, "46", "46", False),
        ({"match": "regex", "pattern": r"\d+"}, "it is 46.", "46", True),
        ({"match": "last_number"}, "12 and 34 make 1,046.0 .", "the sum is 1046", True),
        ({"match": "last_number"}, "-46", "46", False),
        ({"match": "last_number"}, "nothing", "46", False),
    ],
)
def test_answers_match_as_the_settings_say(settings, text, answer, right, tmp_path):
    assert task(tmp_path, "generation", [{"prompt": "a", "answer": "b 1"}], **settings).matches(text, answer) is right


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"match": "regex"}, "belong together"),
        ({"pattern": "x"}, "belong together"),
        ({"match": "regex", "pattern": "("}, "not a regular expression"),
        ({"match": "last_number"}, "answer 0 of the report split has no number"),
        ({"match": "fuzzy"}, "`match`: input should be 'exact', 'regex' or 'last_number', got 'fuzzy'"),
    ],
)
def test_matching_is_checked_before_any_work(settings, says, tmp_path):
    with pytest.raises(TaskError, match=says):
        task(tmp_path, "generation", [{"prompt": "a", "answer": "b"}], **settings)


@pytest.mark.parametrize("kind", ["language_modelling", "multiple_choice", "generation"])
def test_model_that_is_no_causal_language_model_is_an_error(kind, live, tmp_path):
    rows = [{"text": "x y", "prompt": "x", "choices": ["a", "b"], "answer": 1 if kind == "multiple_choice" else "1"}]
    with pytest.raises(TaskError, match=r"got BertForSequenceClassification; set `auto: AutoModelForCausalLM`"):
        task(tmp_path, kind, rows).score(live("bert"), "report")


def test_sequence_longer_than_the_model_is_an_error(live, tmp_path):
    with pytest.raises(TaskError, match="positions for 64"):
        task(tmp_path, "language_modelling", [{"text": "x" * 70}]).score(live("llama"), "report")


ROW = {"text": "a b", "prompt": "a b", "choices": ["a", "b"], "answer": "1"}


@pytest.fixture(scope="module")
def beyond(tmp_path_factory):
    """A model whose tokenizer has one token more than its embedding: `~`, the last printable character."""
    folder = tiny_model(tmp_path_factory.mktemp("beyond"), "llama", vocab_size=98)
    return LiveModel(folder)


@pytest.mark.parametrize("kind", ["language_modelling", "generation", "multiple_choice"])
@pytest.mark.parametrize("column", ["text", "prompt", "answer", "choices"])
def test_token_beyond_the_embedding_is_an_error_before_any_candidate(kind, column, beyond, tmp_path):
    used = {
        "language_modelling": ["text"],
        "generation": ["prompt", "answer"],
        "multiple_choice": ["prompt", "choices"],
    }
    row = ROW | {"answer": 1} if kind == "multiple_choice" else ROW
    task(tmp_path, kind, [row]).check(beyond)
    wrong = row | {
        column: ["~", "b"]
        if column == "choices"
        else row[column]
        if column == "answer" and kind == "multiple_choice"
        else "~~"
    }
    tested = task(tmp_path, kind, [wrong])
    if column not in used[kind]:
        tested.check(beyond)
        return
    with pytest.raises(TaskError, match=r"task `some`: .* token 98 \(`~`\), .* 98 rows"):
        tested.check(beyond)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("language_modelling", {"max_length": 256}),
        ("generation", {"max_length": 40, "max_new_tokens": 40}),
        ("multiple_choice", {}),
    ],
)
def test_sequences_without_positions_are_an_error_before_any_candidate(kind, settings, live, tmp_path):
    row = {
        "text": "x" * 80,
        "prompt": "x" * 80,
        "choices": ["a", "b"],
        "answer": 1 if kind == "multiple_choice" else "1",
    }
    with pytest.raises(TaskError, match="positions for 64; set a smaller `max_length`"):
        task(tmp_path, kind, [row], **settings).check(live("llama"))


@pytest.mark.parametrize("kind", ["language_modelling", "generation", "multiple_choice"])
def test_model_that_is_not_causal_is_an_error_before_any_candidate(kind, live, tmp_path):
    row = ROW | {"answer": 1} if kind == "multiple_choice" else ROW
    with pytest.raises(TaskError, match="needs a causal language model"):
        task(tmp_path, kind, [row]).check(live("bert"))
