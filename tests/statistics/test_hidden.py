"""Hidden states around blocks: those that transformers itself returns, of the same tokens for all models."""

import re

import pytest
import torch

from evomerge.merging import unwatched
from evomerge.statistics import STATISTICS, hidden

COLLECT = STATISTICS["hidden"].collect


@pytest.mark.parametrize("architecture", ["llama", "bert", "vit"])
def test_hidden_states_are_those_that_transformers_returns(tiny, architecture):
    subject = tiny(architecture, examples=[1])
    calls = []
    inside = subject.live.module.base_model
    hook = inside.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    found = COLLECT(subject, unwatched)
    hook.remove()
    args, kwargs = calls[-1]
    with torch.no_grad():
        expected = inside(*args, **{**kwargs, "output_hidden_states": True}).hidden_states
    assert found.keys() == {name for name in subject.matrices if re.search(r"layers?\.\d", name)}
    blocks = [[tables for name, tables in found.items() if f".{number}." in name] for number in range(2)]
    for block, states in zip(blocks, expected, strict=False):
        assert all(tables["before"] is block[0]["before"] for tables in block)
        assert torch.equal(block[0]["before"], states[0])
    assert blocks[0][0]["after"] is blocks[1][0]["before"]


def test_tokens_are_drawn_where_there_are_many(tiny, monkeypatch):
    subject = tiny("llama", examples=[0, 1])
    whole = COLLECT(subject, unwatched)
    monkeypatch.setattr(hidden, "rows_of", lambda width: 4)
    few = COLLECT(subject, unwatched)
    for name, tables in few.items():
        assert tables["before"].shape == (4, 16)
        assert all(any(torch.equal(row, other) for other in whole[name]["before"]) for row in tables["before"])
        assert torch.equal(tables["read"], whole[name]["read"])


def test_what_was_read_tells_examples_apart(tiny):
    one, other = (COLLECT(tiny("llama", examples=[number]), unwatched) for number in (0, 1))
    name = next(iter(one))
    assert not torch.equal(one[name]["read"], other[name]["read"])


def test_more_tokens_are_kept_of_wide_models():
    assert (hidden.rows_of(16), hidden.rows_of(4096)) == (4096, 16384)
