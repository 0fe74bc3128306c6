"""Models with tokens of their own: rows are matched by token, and every method then sees one vocabulary."""

import json
import shutil

import pytest
import torch
from adapters import write_adapter
from pools import write_checkpoint
from safetensors.torch import load_file, save_file
from vocabularies import MODELS, byte_level, unigram, write_base, write_expert

from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.vocabulary import TokenizerChoice
from evomerge.errors import CheckpointError, PoolError
from evomerge.models.pretrained import load_model, load_tokenizer
from evomerge.recipe import Recipe

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, `a` with `<x>` and `<y>`, `b` with `<y>` and `<z>`: the same token has another id."""
    folder = tmp_path_factory.mktemp("vocabulary")
    write_base(folder / "base")
    write_expert(folder / "a", folder / "base", 1, "<x>", "<y>")
    write_expert(folder / "b", folder / "base", 2, "<y>", "<z>")
    return folder


def pool(folder, *experts, like=None, base="base", **choice):
    return Pool(
        folder / base, {name: folder / name for name in experts or "ab"}, like=like, tokenizer=TokenizerChoice(**choice)
    )


def table(folder, name=EMBEDDING):
    """A model's rows by token, read from its own files."""
    rows = load_file(folder / "model.safetensors")[name]
    numbers = load_tokenizer(folder).get_vocab()
    return {token: rows[number] for token, number in numbers.items() if number < len(rows)}


def aligned(model, vocabulary, name=EMBEDDING):
    rows = model.tensor(name)
    assert rows.shape == model.info[name].shape
    return {token: rows[number] for token, number in vocabulary.numbers.items()}


def same(left, right):
    assert left.keys() == right.keys()
    for token, row in left.items():
        assert torch.equal(row, right[token]), token


@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
def test_each_model_keeps_the_row_of_each_of_its_tokens_and_lacks_none(folder, name):
    opened = pool(folder)
    base, a, b = (table(folder / label, name) for label in ("base", "a", "b"))
    n = len(base)
    assert {token: opened.vocabulary.numbers[token] for token in ("<x>", "<y>", "<z>")} == {
        "<x>": n,
        "<y>": n + 1,
        "<z>": n + 2,
    }
    # One expert has <x>, one <z>: the base's row is that expert's. Both have <y>: it is their mean.
    middle = {"<x>": a["<x>"], "<y>": (a["<y>"] + b["<y>"]) / 2, "<z>": b["<z>"]}
    same(aligned(opened.base, opened.vocabulary, name), base | middle)
    same(aligned(opened.experts["a"], opened.vocabulary, name), a | {"<z>": b["<z>"]})
    same(aligned(opened.experts["b"], opened.vocabulary, name), b | {"<x>": a["<x>"]})


def test_zero_gives_the_base_zeros_and_experts_task_vectors_of_zero(folder):
    opened = pool(folder, missing="zero")
    base, a, b = (table(folder / label) for label in ("base", "a", "b"))
    nothing = dict.fromkeys(("<x>", "<y>", "<z>"), torch.zeros(16))
    same(aligned(opened.base, opened.vocabulary), base | nothing)
    same(aligned(opened.experts["a"], opened.vocabulary), a | {"<z>": torch.zeros(16)})
    same(aligned(opened.experts["b"], opened.vocabulary), b | {"<x>": torch.zeros(16)})


def test_mean_gives_an_expert_the_mean_of_all_models_that_have_the_token(tmp_path):
    write_base(tmp_path / "base")
    write_expert(tmp_path / "bigger", tmp_path / "base", 1, "<x>")
    for seed, name in ((2, "a"), (3, "b")):
        write_expert(tmp_path / name, tmp_path / "bigger", seed)
    write_expert(tmp_path / "less", tmp_path / "base", 4)
    opened = pool(tmp_path, "a", "less", "b", base="bigger", missing="mean")
    rows = [table(tmp_path / name)["<x>"] for name in ("bigger", "a", "b")]
    lacking = aligned(opened.experts["less"], opened.vocabulary)["<x>"]
    assert torch.equal(lacking, (rows[0] + rows[1] + rows[2]) / 3)
    of_base = aligned(pool(tmp_path, "a", "less", "b", base="bigger").experts["less"], opened.vocabulary)["<x>"]
    assert torch.equal(of_base, rows[0])


@pytest.mark.parametrize("source", ["base", "b"])
def test_the_tokens_of_one_model_leave_out_those_of_others(folder, source):
    opened = pool(folder, source=source)
    wanted = load_tokenizer(folder / source).get_vocab()
    assert dict(opened.vocabulary.numbers) == wanted
    a, b = table(folder / "a"), table(folder / "b")
    lacking = {} if source == "base" else {"<z>": b["<z>"]}
    same(aligned(opened.experts["a"], opened.vocabulary), {t: r for t, r in a.items() if t in wanted} | lacking)
    assert (
        "without 2 of a (`<x>`, `<y>`)" if source == "base" else "without 1 of a (`<x>`)"
    ) in opened.vocabulary.summary


def test_vocabularies_that_agree_give_the_same_tensors_as_without_a_choice(tmp_path):
    write_base(tmp_path / "base", rows=32)  # more rows than tokens: those without a token are matched by number
    for seed, name in ((1, "a"), (2, "b")):
        write_expert(tmp_path / name, tmp_path / "base", seed)
    recipe = Recipe.parse({"merge": {"method": "ties", "inputs": "experts"}}, experts=["a", "b"])
    plain, opened = Pool(tmp_path / "base", {n: tmp_path / n for n in "ab"}), pool(tmp_path)
    left, right = Builder(plain).build(recipe), Builder(opened).build(recipe)
    assert left.info == right.info
    assert all(torch.equal(left.tensor(name), right.tensor(name)) for name in left.info)
    assert plain.digests != opened.digests


def test_new_tokens_take_padded_rows_first_and_pad_to_sets_the_number(tmp_path):
    write_base(tmp_path / "base", rows=24)
    tokens = len(load_tokenizer(tmp_path / "base"))
    assert tokens < 22
    write_expert(tmp_path / "a", tmp_path / "base", 1, "<x>", "<y>", rows=40)
    opened = pool(tmp_path, "a")
    assert opened.base.info[EMBEDDING].shape == (24, 16)
    assert opened.vocabulary.numbers["<x>"] == tokens
    last, of_base = opened.experts["a"].tensor(EMBEDDING)[-1], load_file(tmp_path / "base" / "model.safetensors")
    assert torch.equal(last, load_file(tmp_path / "a" / "model.safetensors")[EMBEDDING][23])  # matched by number
    assert torch.equal(opened.base.tensor(EMBEDDING)[-1], of_base[EMBEDDING][-1])
    wide = pool(tmp_path, "a", pad_to=64)
    assert wide.base.info[EMBEDDING].shape == (64, 16)
    assert wide.base.config["vocab_size"] == 64
    assert wide.base.tensor(EMBEDDING)[50].eq(0).all()  # no model has this row
    assert torch.equal(wide.base.tensor(EMBEDDING)[30], load_file(tmp_path / "a" / "model.safetensors")[EMBEDDING][30])
    assert "64 rows" in wide.vocabulary.summary
    assert pool(tmp_path, "a", pad_to=1).base.info[EMBEDDING].shape == (tokens + 2, 16)


@pytest.mark.parametrize("method", ["ties", "task_arithmetic", "linear", "slerp", "dare_ties"])
def test_methods_give_what_they_give_for_models_that_were_resized_by_hand(folder, tmp_path, method):
    opened = pool(folder)
    order = sorted(opened.vocabulary.numbers, key=opened.vocabulary.numbers.get)
    for label in ("base", "a", "b"):
        whole = load_model(folder / label, "AutoModelForCausalLM")
        whole.resize_token_embeddings(len(order))
        for name, parameter in ((EMBEDDING, whole.get_input_embeddings().weight), (HEAD, whole.lm_head.weight)):
            own, a, b = (table(folder / one, name) for one in (label, "a", "b"))
            rows = {"<x>": a["<x>"], "<y>": (a["<y>"] + b["<y>"]) / 2, "<z>": b["<z>"]} | own
            parameter.data.copy_(torch.stack([rows[token] for token in order]))
        whole.save_pretrained(tmp_path / label)
    by_hand = Pool(tmp_path / "base", {name: tmp_path / name for name in "ab"})
    recipe = Recipe.parse({"merge": {"method": method, "inputs": "experts"}}, experts=["a", "b"])
    left, right = Builder(opened).build(recipe), Builder(by_hand).build(recipe)
    assert left.info == right.info
    assert all(torch.equal(left.tensor(name), right.tensor(name)) for name in left.info)


@pytest.mark.parametrize(
    ("architecture", "tokenizer", "tensors"),
    [
        ("llama", "byte_level", {EMBEDDING, HEAD}),
        ("llama_tied", "unigram", {EMBEDDING}),
        ("gpt2", "word_level", {"transformer.wte.weight"}),
        ("bert", "word_piece", {"bert.embeddings.word_embeddings.weight", "cls.predictions.bias"}),
    ],
)
def test_an_experts_own_token_survives_every_weight_in_all_its_tensors(tmp_path, architecture, tokenizer, tensors):
    auto = MODELS[architecture][1]
    write_base(tmp_path / "base", architecture, tokenizer)
    write_expert(tmp_path / "a", tmp_path / "base", 1, "<x>", auto=auto)
    write_expert(tmp_path / "b", tmp_path / "base", 2, auto=auto)
    opened = pool(tmp_path)
    assert opened.vocabulary.tensors == tensors
    data = {"merge": {"method": "task_arithmetic", "inputs": "experts", "parameters": {"weight": 0.3}}}
    merged = Builder(opened).build(Recipe.parse(data, experts=["a", "b"]))
    for name in tensors:
        assert torch.equal(aligned(merged, opened.vocabulary, name)["<x>"], table(tmp_path / "a", name)["<x>"])


def test_ties_that_an_expert_breaks_and_copies_that_files_hold_are_matched_too(tmp_path):
    write_base(tmp_path / "base", "llama_tied")
    write_expert(tmp_path / "a", tmp_path / "base", 1, "<x>")
    write_expert(tmp_path / "b", tmp_path / "base", 2, "<y>")
    for name, change in (("a", 1.0), ("b", 0.0)):  # a head of its own, and a stored copy of a tied one
        file = tmp_path / name / "model.safetensors"
        tensors = load_file(file)
        save_file(tensors | {HEAD: tensors[EMBEDDING] + change}, file, {"format": "pt"})
    config = tmp_path / "a" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": False}))
    opened = pool(tmp_path)
    assert opened.vocabulary.tensors == {EMBEDDING, HEAD}
    assert opened.config["tie_word_embeddings"] is False
    a, base = table(tmp_path / "a"), table(tmp_path / "base")
    rows = aligned(opened.experts["a"], opened.vocabulary, HEAD)
    assert torch.equal(rows["<x>"], a["<x>"] + 1)
    assert torch.equal(rows["the"], a["the"] + 1)
    assert torch.equal(aligned(opened.base, opened.vocabulary, HEAD)["the"], base["the"])


def test_adapter_with_a_resized_embedding_is_matched_as_a_whole_model_is(tmp_path):
    base = write_base(tmp_path / "base")
    expert = write_expert(tmp_path / "whole", base, 1, "<x>")
    tensors = {
        f"base_model.model.{name}": load_file(expert / "model.safetensors")[name].clone() for name in (EMBEDDING, HEAD)
    }
    q = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors |= {f"{q}.lora_A.weight": torch.ones(2, 16), f"{q}.lora_B.weight": torch.ones(16, 2)}
    adapter = write_adapter(tmp_path / "a", tensors)
    with pytest.raises(
        CheckpointError, match=r"expected an adapter trained on this base. If tokens were added .* type `to"
    ):
        Pool(base, {"a": adapter})
    load_tokenizer(expert).save_pretrained(adapter)
    write_expert(tmp_path / "b", base, 2, "<y>")
    opened = pool(tmp_path)
    rows = aligned(opened.experts["a"], opened.vocabulary)
    same(rows, table(expert) | {"<y>": table(tmp_path / "b")["<y>"]})
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.allclose(opened.experts["a"].tensor(name), opened.base.tensor(name) + 2 * 1.5)


def test_without_a_choice_other_vocabularies_are_refused_with_what_to_type(folder, tmp_path):
    with pytest.raises(
        PoolError, match=r"Their vocabularies differ: type `tokenizer: union` under `pool`, or `--tokenizer"
    ):
        Pool(folder / "base", {"a": folder / "a"})
    with pytest.raises(PoolError, match=r"token '<y>': id .* type `tokenizer: union`"):
        Pool(folder / "a", {"b": folder / "b"})


def test_tokenizers_that_differ_in_more_than_added_tokens_are_refused_unless_forced(tmp_path):
    base = write_base(tmp_path / "base", tokenizer="byte_level")
    for name, made in (("other", byte_level(["a zoo of other words"])), ("kind", unigram())):
        write_expert(tmp_path / name, base, 1, rows=300)
        made.save_pretrained(tmp_path / name)
    with pytest.raises(
        PoolError, match=r"more than added tokens: .* tokens of its own, .*another `merges`.*force: true"
    ):
        pool(tmp_path, "other")
    with pytest.raises(PoolError, match=r"more than added tokens: it is Unigram, not BPE"):
        pool(tmp_path, "kind")
    forced = pool(tmp_path, "other", force=True)
    assert any("Merges split text as that of `base` does" in note for note in forced.notes)
    own = {token for token in table(tmp_path / "other") if token not in table(base)}
    assert own <= forced.vocabulary.numbers.keys()
    rows, wanted = aligned(forced.experts["other"], forced.vocabulary), table(tmp_path / "other")
    assert all(torch.equal(rows[token], row) for token, row in wanted.items())


def test_special_tokens_that_differ_are_named_and_said_to_be_whose(tmp_path):
    base = write_base(tmp_path / "base")
    write_expert(tmp_path / "a", base, 1, "<end>", eos_token="<end>", chat_template="{{ messages }}")
    opened = pool(tmp_path, "a")
    assert "special tokens differ: eos `</s>` (base), `<end>` (a). A merge has those of base" in opened.notes
    assert any("chat template: none (base), `{{ messages }}` (a)" in note for note in opened.differences_in_text)
    assert not any("vocabulary" in note for note in opened.differences_in_text)
    liked = pool(tmp_path, "a", like="a")
    assert liked.text == "a"
    assert liked.base.config["eos_token_id"] == liked.vocabulary.numbers["<end>"]
    assert load_tokenizer(liked.tokenizer).chat_template == "{{ messages }}"


def test_keys_that_name_tokens_follow_them_to_their_new_numbers(tmp_path):
    base = write_base(tmp_path / "base")
    ids = load_tokenizer(base).get_vocab()
    config = json.loads((base / "config.json").read_text())
    named = {"image_token_id": ids["cat"], "stop_token_ids": [ids["dog"], ids["the"]], "pad_token_id": -1}
    (base / "config.json").write_text(json.dumps(config | named))
    expert = write_expert(tmp_path / "a", base, 1)
    turned = json.loads((expert / "tokenizer.json").read_text())
    vocabulary = turned["model"]["vocab"]
    other = dict(zip(vocabulary, reversed(vocabulary.values()), strict=True))
    turned["model"]["vocab"] = other
    for token in turned["added_tokens"]:
        token["id"] = other[token["content"]]
    (expert / "tokenizer.json").write_text(json.dumps(turned))
    opened = pool(tmp_path, "a", source="a", force=True)
    assert opened.base.config["image_token_id"] == other["cat"]
    assert opened.base.config["stop_token_ids"] == [other["dog"], other["the"]]
    assert opened.base.config["pad_token_id"] == json.loads((expert / "config.json").read_text())["pad_token_id"]
    assert torch.equal(opened.base.tensor(EMBEDDING)[other["cat"]], table(base)["cat"])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"source": "c"}, "`source` is `c`; known: a, b, base, union"),
        ({"source": "b", "like": "a"}, "takes the tokenizer of `b`, and `like` that of `a`"),
    ],
)
def test_choices_that_make_no_sense_are_refused(folder, choice, message):
    with pytest.raises(PoolError, match=message):
        pool(folder, **choice)


def test_a_head_that_the_class_does_not_have_is_refused(folder, tmp_path):
    shutil.copytree(folder / "a", tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    tensors["score.weight"] = tensors.pop(HEAD)[:2].clone()
    save_file(tensors, tmp_path / "a" / "model.safetensors")
    with pytest.raises(PoolError, match=r"`lm_head.weight`: missing in the expert"):
        Pool(folder / "base", {"a": tmp_path / "a"}, tokenizer=TokenizerChoice())


def test_models_whose_rows_have_no_tokens_are_refused(tmp_path):
    base = write_base(tmp_path / "base")
    write_expert(tmp_path / "a", base, 1, rows=len(load_tokenizer(base)) + 3)
    (tmp_path / "a" / "tokenizer.json").unlink()
    (tmp_path / "a" / "tokenizer_config.json").unlink()
    with pytest.raises(PoolError, match="rows of tokens and no tokenizer that names them"):
        pool(tmp_path, "a")
    write_expert(tmp_path / "b", base, 1)
    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens(["<nowhere>"])
    tokenizer.save_pretrained(base)
    with pytest.raises(PoolError, match=r"tokens beyond the embedding: `<nowhere>`.* no model of the pool has a row"):
        pool(tmp_path, "b")
    write_checkpoint(tmp_path / "plain", {"embed.weight": torch.ones(3, 2)})
    write_checkpoint(tmp_path / "c", {"embed.weight": torch.zeros(3, 2)})
    with pytest.raises(PoolError, match="which tensors have a row for each token is not known"):
        pool(tmp_path, "c", base="plain")


def test_dtypes_are_kept_and_an_expert_that_lacks_a_token_has_a_task_vector_of_zero(tmp_path):
    base = write_base(tmp_path / "base")
    for name, tokens in (("a", ("<x>",)), ("b", ())):
        write_expert(tmp_path / name, base, 1, *tokens)
    file = tmp_path / "b" / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    opened = pool(tmp_path)
    assert opened.base.info[EMBEDDING].dtype == opened.experts["a"].info[EMBEDDING].dtype == torch.float32
    row = opened.vocabulary.numbers["<x>"]
    assert torch.equal(opened.experts["b"].tensor(EMBEDDING)[row], opened.base.tensor(EMBEDDING)[row])
