"""Exports of models with tokens of their own: what plain transformers makes of them, in a process of its own."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from vocabularies import MODELS, TEXTS, write_base, write_expert

from evomerge import strict_yaml
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.vocabulary import TokenizerChoice
from evomerge.models.pretrained import load_model, load_tokenizer
from evomerge.recipe import Recipe
from evomerge.report.export import export

READ = """
import json, sys, torch, transformers
def read(folder, auto):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, report = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)
    ids = [tokenizer(text)["input_ids"] for text in texts]
    with torch.no_grad():
        logits = [model.eval()(input_ids=torch.tensor([row])).logits[0].tolist() for row in ids]
    added = {token: [number, tokenizer.encode(token, add_special_tokens=False), tokenizer.decode([number])]
             for token, number in tokenizer.get_added_vocab().items()}
    wrong = {key: [str(name) for name in names] for key, names in report.items() if key != "error_msgs"}
    return {"ids": ids, "logits": logits, "added": added, "vocab": tokenizer.get_vocab(), "rows": model.config.vocab_size, "wrong": wrong}
folders, texts = map(json.loads, sys.argv[1:])
print(json.dumps({folder: read(folder, auto) for folder, auto in folders.items()}))
"""
TIES = {"merge": {"method": "ties", "inputs": "experts"}}
PAIRS = {"llama": "byte_level", "gpt2": "word_level", "bert": "word_piece", "llama_tied": "unigram"}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """By architecture, the union, and what plain transformers makes of its export and of one without tokens added.

    It is loaded in a process that knows nothing of evomerge. Both are merges of the same fine-tunes.
    """
    unions, folders = {}, {}
    for architecture, tokenizer in PAIRS.items():
        folder, auto = tmp_path_factory.mktemp(architecture), MODELS[architecture][1]
        base = write_base(folder / "base", architecture, tokenizer)
        for seed, name in ((1, "a"), (2, "b")):
            write_expert(folder / "plain" / name, base, seed, auto=auto)
            model, words = load_model(folder / "plain" / name, auto), load_tokenizer(base)
            words.add_tokens(["<x>", "<a>"] if name == "a" else ["<b>", "<x>"], special_tokens=True)
            model.resize_token_embeddings(len(words), mean_resizing=False)
            model.save_pretrained(folder / name)
            words.save_pretrained(folder / name)
        recipe = Recipe.parse({"merge": {"method": "linear", "inputs": "experts"}}, experts=["a", "b"])
        unions[architecture] = Pool(base, {name: folder / name for name in "ab"}, tokenizer=TokenizerChoice())
        plain = Pool(base, {name: folder / "plain" / name for name in "ab"})
        for kind, pool in (("union", unions[architecture]), ("without", plain)):
            export(recipe, pool, folder / kind)
            folders[str(folder / kind)] = auto
    command = [sys.executable, "-W", "ignore", "-c", READ, json.dumps(folders), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path_factory.mktemp("child"))
    read = iter(json.loads(done.stdout).values())
    return {architecture: (union, next(read), next(read)) for architecture, union in unions.items()}


@pytest.mark.parametrize("architecture", PAIRS)
def test_union_loads_and_keeps_numbers_in_a_fresh_process_and_shared_tokens_their_logits(loaded, architecture):
    union, got, wanted = loaded[architecture]
    assert not any(got["wrong"].values())
    shared = len(wanted["vocab"])
    assert got["rows"] == union.vocabulary.rows == shared + 3
    assert got["vocab"] == dict(union.vocabulary.numbers)
    assert got["ids"] == wanted["ids"]
    for left, right in zip(got["logits"], wanted["logits"], strict=True):
        torch.testing.assert_close(torch.tensor(left)[:, :shared], torch.tensor(right), rtol=1e-5, atol=1e-6)
    assert {"<x>", "<a>", "<b>"} <= got["added"].keys()
    assert all(ids == [number] and text == token for token, (number, ids, text) in got["added"].items())


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A base, and a chat expert with an end token, a template and generation settings of its own."""
    folder = tmp_path_factory.mktemp("chat")
    write_base(folder / "base")
    write_expert(
        folder / "a", folder / "base", 1, "<end>", eos_token="<end>", chat_template="{{ messages[0].content }}"
    )
    write_expert(folder / "b", folder / "base", 2, "<tool>", special=False)
    return folder


@pytest.mark.parametrize(("choice", "like", "whose"), [("union", None, "base"), ("union", "a", "a"), ("a", None, "a")])
def test_text_settings_are_the_owners_by_the_new_numbers(chat, tmp_path, choice, like, whose):
    pool = Pool(
        chat / "base", {n: chat / n for n in "ab"}, like=like, tokenizer=TokenizerChoice(source=choice, pad_to=8)
    )
    out = tmp_path / "out"
    export(Recipe.parse(TIES, experts=["a", "b"]), pool, out)
    tokenizer, model = load_tokenizer(out), load_model(out, "AutoModelForCausalLM")
    end = {"base": "</s>", "a": "<end>"}[whose]
    assert tokenizer.eos_token == end
    assert tokenizer.chat_template == load_tokenizer(chat / whose).chat_template
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids(end)
    assert len(model.get_input_embeddings().weight) == model.config.vocab_size == pool.vocabulary.rows
    assert pool.vocabulary.rows % 8 == 0
    assert ("<tool>" in tokenizer.get_vocab()) == (choice == "union")
    if choice == "union":
        assert tokenizer.decode(tokenizer.encode("cat <tool>"), skip_special_tokens=True).split() == ["cat", "<tool>"]


def test_recipe_file_makes_the_same_bytes_again_and_the_card_names_the_tokens(chat, tmp_path):
    choice = TokenizerChoice(missing="mean", pad_to=8)
    pool = Pool(chat / "base", {n: chat / n for n in "ab"}, tokenizer=choice)
    export(Recipe.parse(TIES, experts=["a", "b"]), pool, tmp_path / "out")
    file = strict_yaml.read(tmp_path / "out" / "recipe.yaml")
    assert file["pool"]["tokenizer"] == {"missing": "mean", "pad_to": 8}
    again = Pool(
        file["pool"]["base"],
        file["pool"]["experts"],
        tokenizer=TokenizerChoice.model_validate(file["pool"]["tokenizer"]),
    )
    export(Recipe.parse(file["recipe"]), again, tmp_path / "again")
    for entry in (tmp_path / "out").iterdir():
        assert entry.read_bytes() == (tmp_path / "again" / entry.name).read_bytes(), entry.name
    assert "1 of a (\\`&lt;end&gt;\\`)" in (tmp_path / "out" / "README.md").read_text()


def test_tokenizer_of_the_base_alone_is_copied_byte_for_byte(chat, tmp_path):
    pool = Pool(chat / "base", {"a": chat / "a"}, tokenizer=TokenizerChoice(source="base"))
    export(Recipe.parse({"expert": "a"}, experts=["a"]), pool, tmp_path / "out")
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (chat / "base/tokenizer.json").read_bytes()
    name = "model.embed_tokens.weight"
    rows = [load_file(folder / "model.safetensors")[name] for folder in (tmp_path / "out", chat / "a")]
    assert torch.equal(rows[0], rows[1][:-1])
