"""Prompts that are read once give what separate passes do, in every architecture whose keys and values can be kept."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from architectures import CONFIGS
from rows import write_jsonl

from evomerge.tasks import make, multiple_choice
from evomerge.tasks.causal import Continuation, log_likelihood, run
from evomerge.tasks.prompts import beginnings, can_read, log_likelihoods, shared

CAUSAL = [name for name, (auto, _) in CONFIGS.items() if auto == "AutoModelForCausalLM"]
WINDOWS = {"mistral", "gemma2", "gemma3_text", "gpt_oss", "llama4_text"}
"""Those with layers that see a window of the last tokens, and keep no more."""
STATES = {"bamba", "jamba", "mamba", "mamba2", "recurrent_gemma", "rwkv"}
"""Those with layers that keep a state."""


def model_of(architecture):
    auto, settings = CONFIGS[architecture]
    config = transformers.AutoConfig.for_model(architecture, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = getattr(transformers, auto).from_config(config).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return SimpleNamespace(
        module=module,
        device=torch.device("cpu"),
        tokenizer=SimpleNamespace(pad_token_id=0),
        folder=architecture,
        positions=None,
        watched=False,
    )


@pytest.mark.parametrize("architecture", sorted({*CAUSAL} - WINDOWS - STATES))
@torch.inference_mode()
def test_log_likelihoods_are_those_of_separate_passes(architecture):
    model = model_of(architecture)
    assert can_read(model)
    groups = [
        [Continuation([3, 4, 5, 6, 7, 8], 5), Continuation([3, 4, 5, 6, 7, 9, 10, 11], 5)],
        [Continuation([12, 13, 14], 2), Continuation([12, 13, 15, 16], 2), Continuation([12, 13, 17], 2)],
    ]
    found = dict(log_likelihoods("some", model, groups, [shared(group) for group in groups], None))
    for number, group in enumerate(groups):
        expected = [float(log_likelihood(*next(run(model, [sequence])))) for sequence in group]
        np.testing.assert_allclose([float(one) for one in found[number]], expected, rtol=1e-4)


@pytest.mark.parametrize("architecture", sorted(WINDOWS | STATES))
def test_models_that_keep_something_else_than_keys_and_values_read_each_sequence_whole(architecture):
    assert not can_read(model_of(architecture))


def test_sequences_share_what_comes_before_the_token_that_predicts_the_first_scored_one():
    assert shared([Continuation([1, 2, 3, 4], 3), Continuation([1, 2, 3, 5], 3)]) == 2
    assert shared([Continuation([1, 2, 3, 4], 3), Continuation([1, 9, 3, 5], 3)]) == 1
    assert shared([Continuation([1, 2, 3, 4], 3), Continuation([1, 2, 3, 5], 1)]) == 0


def test_short_prompts_are_not_worth_it_nor_those_that_begin_with_nothing():
    long = [Continuation([*range(20), 30], 20), Continuation([*range(20), 31], 20)]
    short = [Continuation([1, 2, *range(9, 20)], 2), Continuation([1, 2, *range(20, 30)], 2)]
    assert beginnings([long]) == [19]
    assert beginnings([short]) is None
    assert beginnings([long, [Continuation([1, 2], 1), Continuation([3, 4], 1)]]) is None


@pytest.mark.parametrize("batch", [None, 3])
def test_choices_are_scored_as_in_separate_passes_with_fewer_tokens(batch, live, tmp_path, monkeypatch):
    model = live("llama")
    rows = [
        {"prompt": "what is it that you see", "choices": ["no", "yes!", "two"], "answer": 1},
        {"prompt": "and what else could it be", "choices": ["a", "b b"], "answer": 0},
        {"prompt": "a shorter one", "choices": ["xyz", "b", "c"], "answer": 2},
    ]
    write_jsonl(tmp_path / "search.jsonl", [{"prompt": "other", "choices": ["a", "b"], "answer": 0}])
    write_jsonl(tmp_path / "report.jsonl", rows)
    settings = {"kind": "multiple_choice", "search": "search.jsonl", "report": "report.jsonl", "separator": " "}
    tokens = []
    hook = model.module.register_forward_pre_hook(
        lambda _, args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )

    def scored():
        tokens.clear()
        more = {} if batch is None else {"batch": batch}
        scores = make("some", {**settings, **more}, tmp_path).score(model, "report").scores
        return scores, sum(tokens)

    ours, fewer = scored()
    monkeypatch.setattr(multiple_choice, "can_read", lambda _: False)
    theirs, more = scored()
    hook.remove()
    assert fewer < more / 1.3
    assert ours.keys() == theirs.keys()
    for metric, values in theirs.items():
        np.testing.assert_allclose(ours[metric], values, rtol=1e-4, err_msg=metric)
