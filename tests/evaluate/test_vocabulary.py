"""Search over models with tokens of their own: each expert scores as its own model does with its own tokenizer."""

import json

import pytest
import torch
from vocabularies import MODELS, TEXTS, write_base, write_expert

from evomerge.checkpoints.vocabulary import TokenizerChoice
from evomerge.evaluate import Setup
from evomerge.evaluate.worker import Worker
from evomerge.models.pretrained import load_model, load_tokenizer
from evomerge.recipe import Recipe

TOKENS = {"a": "<x>", "b": "<y>"}


def setup(folder, **more):
    for split, texts in (("search", TEXTS[:2]), ("report", TEXTS[2:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    task = {"kind": "language_modelling", "search": "search.jsonl", "report": "report.jsonl"}
    experts = {name: str(folder / name) for name in TOKENS}
    return Setup(
        str(folder / "base"), experts, {"texts": task}, folder=str(folder), tokenizer=TokenizerChoice(pad_to=8), **more
    )


@pytest.mark.parametrize(("architecture", "tokenizer"), [("llama", "byte_level"), ("gpt2", "word_level")])
def test_an_expert_in_the_live_model_is_its_own_model_on_its_own_tokens(tmp_path, architecture, tokenizer):
    auto = MODELS[architecture][1]
    base = write_base(tmp_path / "base", architecture, tokenizer)
    for seed, (name, token) in enumerate(TOKENS.items(), 1):
        write_expert(tmp_path / name, base, seed, f"<of {name}>", token, "<both>", auto=auto)
    loaded = Worker(setup(tmp_path)).prepare()
    vocabulary = loaded.builder.pool.vocabulary
    for name, token in TOKENS.items():
        loaded.model.refit(loaded.builder.build(Recipe.parse({"expert": name})))
        alone, words = load_model(tmp_path / name, auto), load_tokenizer(tmp_path / name)
        for text in (*TEXTS, f"the cat {token} sat <both>", f"<of {name}>"):
            ours, theirs = loaded.model.tokenizer(text)["input_ids"], words(text)["input_ids"]
            assert [words.convert_ids_to_tokens(i) for i in theirs] == loaded.model.tokenizer.convert_ids_to_tokens(
                ours
            )
            with torch.no_grad():
                left = loaded.model.module(input_ids=torch.tensor([ours])).logits[0]
                right = alone(input_ids=torch.tensor([theirs])).logits[0]
            columns = [vocabulary.numbers[token] for token in words.convert_ids_to_tokens(range(len(words)))]
            torch.testing.assert_close(left[:, columns], right[:, : len(words)], rtol=1e-5, atol=1e-6)


def test_candidates_are_scored_with_the_union_and_cached_rows_change_no_score(tmp_path):
    base = write_base(tmp_path / "base")
    for seed, (name, token) in enumerate(TOKENS.items(), 1):
        write_expert(tmp_path / name, base, seed, token)
    recipes = [
        Recipe.parse(
            {"merge": {"method": "ties", "inputs": "experts", "parameters": {"density": density}}}, experts=["a", "b"]
        )
        for density in (0.5, 0.5, 1.0)
    ]
    worker = Worker(setup(tmp_path))
    scores = []
    for recipe in [*recipes, Recipe.parse({"expert": "a"})]:
        evaluation = worker.evaluate(recipe)
        assert evaluation.error is None, evaluation.error
        scores.append(next(iter(evaluation.scores.values())))
    again = Worker(setup(tmp_path)).evaluate(recipes[0])
    assert (scores[0] == scores[1]).all()
    assert (scores[0] == next(iter(again.scores.values()))).all()
    assert (scores[0] != scores[2]).any()
