"""The length of generated answers, and limits for them. What is generated is compared in test_language.py."""

import numpy as np
import pytest
import torch
from rows import write_jsonl

from evomerge.errors import TaskError
from evomerge.models import LiveModel
from evomerge.tasks import generation, make
from evomerge.tasks.prompts import Read

END, PAD = 2, 0
WRITTEN = ["46|", "46\n13|", "the sum is 46|", "46 or a bit more"]  # | is the end token


def task(folder, rows=WRITTEN, limits=None, **settings):
    """Make a task whose report prompts are answered by `rows`, all of which should be 46."""
    write_jsonl(folder / "search.jsonl", [{"prompt": "other", "answer": "1", "limit": 3}])
    listed = [{"prompt": f"p{i}", "answer": "46"} for i in range(len(rows))]
    if limits is not None:
        listed = [{**row, "limit": limit} for row, limit in zip(listed, limits, strict=True)]
    write_jsonl(folder / "report.jsonl", listed)
    files = {split: f"{split}.jsonl" for split in ("search", "report")}
    return make("some", {"kind": "generation", "report_metric": "length", **files, **settings}, folder)


@pytest.fixture
def writing(live, monkeypatch):
    """Return a model that writes `WRITTEN`, up to the number of tokens that it is asked for."""
    model = live("llama")

    def generate(self, ids, mask, new_tokens, done=None, cache=None):
        tokens = [
            [END if letter == "|" else model.tokenizer.convert_tokens_to_ids(letter) for letter in answer]
            for answer in WRITTEN
        ]
        tokens = [[model.tokenizer.unk_token_id if token is None else token for token in row] for row in tokens]
        places = [int(model.tokenizer.decode(row[mask_row == 1])[-1]) for row, mask_row in zip(ids, mask, strict=True)]
        chosen = [tokens[place][:new_tokens] for place in places]
        for number, row in enumerate(chosen) if done else ():
            needed = next((end for end in range(1, len(row) + 1) if done(number, row[:end])), len(row))
            chosen[number] = row[:needed]
        longest = max(map(len, chosen))
        return torch.tensor([row + [PAD] * (longest - len(row)) for row in chosen])

    monkeypatch.setattr(LiveModel, "generate", generate)
    return model


@pytest.mark.parametrize(
    ("settings", "limits", "lengths", "right"),
    [
        ({"max_new_tokens": 14}, None, [-2, -5, -13, -14], [1, 0, 0, 0]),
        ({"max_new_tokens": 14, "match": "last_number"}, None, [-2, -5, -13, -14], [1, 0, 1, 1]),
        ({"max_new_tokens": 14, "stop": [" or"]}, None, [-2, -5, -13, -4], [1, 0, 0, 1]),  # counted to before the r
        ({"max_new_tokens": 2}, None, [-2, -2, -2, -2], [1, 1, 0, 1]),
        ({"max_new_tokens": 2, "cut": "wrong"}, None, [-2, -2, -2, -2], [0, 0, 0, 0]),
        ({"max_new_tokens": 14, "cut": "wrong", "match": "last_number"}, None, [-2, -5, -13, -14], [1, 0, 1, 0]),
        ({"max_new_tokens": 14, "budget": "limit"}, [3, 2, 14, 1], [-2, -2, -13, -1], [1, 1, 0, 0]),
        ({"max_new_tokens": 14, "budget": "limit", "cut": "wrong"}, [2, 2, 14, 2], [-2, -2, -13, -2], [0, 0, 0, 0]),
    ],
)
def test_length_is_minus_the_tokens_before_an_end_a_stop_or_the_limit(
    settings, limits, lengths, right, writing, tmp_path
):
    scores = task(tmp_path, limits=limits, **settings).score(writing, "report").scores
    assert scores["length"].tolist() == lengths
    assert scores["accuracy"].tolist() == right


def test_length_is_declared_where_it_is_asked_for(tmp_path):
    for key, other in (("search_metric", "report_metric"), ("report_metric", "search_metric")):
        length = task(tmp_path, max_new_tokens=7, **{key: "length", other: "accuracy"}).metrics["length"]
        assert (length.bounds, length.slopes, length.smooth) == ((-7, 0), False, False)
    assert set(task(tmp_path, report_metric="accuracy").metrics) == {"accuracy", "log_likelihood"}


def test_length_is_that_of_greedy_decoding(live, tmp_path):
    model = live("llama", seed=4)
    scores = task(tmp_path, max_new_tokens=9, search_metric="length").score(model, "report").scores
    for place, score in enumerate(scores["length"]):
        ids = model.tokenizer(f"p{place}", return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            for written in range(10):
                following = model.module(ids).logits[:, -1:].argmax(-1)
                if written == 9 or int(following) == END:
                    break
                ids = torch.cat([ids, following], 1)
        assert score == -written


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ([3, 0, 1, 1], "column `limit`, report example 1: expected a limit from 1 to `max_new_tokens`, 5, got 0"),
        ([3, 6, 1, 1], "column `limit`, example 1: expected an integer from 0 to 5, got 6"),
        ([3, "few", 1, 1], "got 'few'"),
        (None, "no column `limit`"),
    ],
)
def test_limits_are_checked_before_any_work(limits, says, tmp_path):
    with pytest.raises(TaskError, match=says):
        task(tmp_path, limits=limits, budget="limit", max_new_tokens=5)


def test_length_has_no_slopes(live, tmp_path):
    with pytest.raises(
        TaskError, match="the metric `length` cannot be differentiated; set `search_metric` to `log_likelihood`"
    ):
        task(tmp_path, search_metric="length").graph(live("llama"), "search", [0])


def test_generation_ends_where_no_answer_needs_more_and_no_score_differs(live, tmp_path, monkeypatch):
    model, passes, written = live("llama"), [], []
    hook = model.module.register_forward_hook(lambda *_: passes.append(1))
    plain = LiveModel.generate

    def through(self, ids, mask, new_tokens, done=None, cache=None):
        written.extend(plain(self, ids, mask, new_tokens, None, cache).tolist())
        return torch.tensor(written[-len(ids) :])

    def scored(generate, **settings):
        monkeypatch.setattr(LiveModel, "generate", generate)
        passes.clear()
        scores = task(tmp_path, WRITTEN, max_new_tokens=24, **settings).score(model, "report").scores
        return {name: values.tolist() for name, values in scores.items()}, len(passes)

    scored(through)
    stops = [text[1:3] for tokens in written if (text := model.tokenizer.decode(tokens, skip_special_tokens=True))]
    ours, fewer = scored(plain, stop=stops)
    theirs, more = scored(through, stop=stops)
    hook.remove()
    assert ours == theirs
    assert "length" in ours
    assert fewer < more


def test_prompts_are_read_once_and_what_is_written_and_scored_is_the_same(live, tmp_path, monkeypatch):
    model, tokens = live("llama"), []
    hook = model.module.register_forward_pre_hook(
        lambda _, args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )

    def scored():
        tokens.clear()
        scores = task(tmp_path, WRITTEN, max_new_tokens=6, search_metric="length").score(model, "report").scores
        return scores, sum(tokens)

    ours, fewer = scored()
    monkeypatch.setattr(generation, "can_read", lambda _: False)
    theirs, more = scored()
    hook.remove()
    assert fewer < more
    for metric in ("accuracy", "length"):
        assert ours[metric].tolist() == theirs[metric].tolist()
    np.testing.assert_allclose(ours["log_likelihood"], theirs["log_likelihood"], rtol=1e-4)


def test_rows_that_are_done_are_padded_and_the_others_are_written_as_ever(live):
    model = live("llama")
    ids = torch.tensor([[5, 6], [9, 7], [11, 12]])
    whole = model.generate(ids, torch.ones_like(ids), 12)
    limits = [3, 5, 4]
    cut = model.generate(ids, torch.ones_like(ids), 12, lambda row, tokens: len(tokens) >= limits[row])
    assert cut.shape[1] == max(limits)
    for row, limit in enumerate(limits):
        assert cut[row, :limit].tolist() == whole[row, :limit].tolist()
        assert set(cut[row, limit:].tolist()) <= {model.tokenizer.pad_token_id}


def test_rows_that_have_ended_are_dropped_and_the_others_are_written_as_ever(live, monkeypatch):
    model, sizes = live("llama"), []
    ids = torch.tensor([[5, 6, 7], [PAD, 9, 8], [11, 12, 13], [14, 15, 16]])
    mask, limits = (ids != PAD).long(), [3, 9, 2, 12]
    hook = model.module.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )

    def written(*, read=True):
        cache = Read(model, [row[row != PAD].tolist()[:-1] for row in ids]).cache if read else None
        sizes.clear()
        return model.generate(ids, mask, 12, lambda row, tokens: len(tokens) >= limits[row], cache)

    whole = written(read=False)
    assert set(sizes) == {4}
    cut = written()
    assert sizes == [4] * 3 + [2] * 6 + [1] * 3
    for row, limit in enumerate(limits):
        assert cut[row, :limit].tolist() == whole[row, :limit].tolist()
        assert set(cut[row, limit:].tolist()) <= {PAD}
    monkeypatch.setattr(model.module.generation_config, "min_new_tokens", 1)  # counted from where a pass begins
    written()
    hook.remove()
    assert set(sizes) == {4}


def test_no_copies_of_the_heads_weight_are_made(live, tmp_path):
    model, plain = live("llama"), []
    hook = model.module.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: plain.append(args[0].is_contiguous())
    )
    task(tmp_path, WRITTEN, max_new_tokens=3, search_metric="length").score(model, "report")
    ids = torch.tensor([[5, 6], [9, 7]])
    model.generate(ids, torch.ones_like(ids), 3)
    hook.remove()
    assert len(plain) > 3
    assert all(plain)  # torch copies the weight for each row of a slice
