"""Heads that stay outside of a merge whose rows are matched by token: the backbone's rows move, the heads do not."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from vocabularies import write_base, write_expert

from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.vocabulary import TokenizerChoice
from evomerge.errors import PoolError, RecipeError
from evomerge.evaluate import Setup
from evomerge.evaluate.setup import open_model, open_pool
from evomerge.models.pretrained import load_model, load_tokenizer
from evomerge.recipe import expert, merge
from evomerge.report.export import export

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for it
CLASSIFIER = "AutoModelForSequenceClassification"
UNION = TokenizerChoice(source="union")
MEAN = merge("linear", ["mood", "spam"])
TEXT = "the <mood> cat sat on <spam> mat"


@pytest.fixture(scope="module", params=["llama", "bert"])
def models(request, tmp_path_factory):
    """A language model, and two classifiers with tokens of their own, of which one is at another number in each."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = "word_piece" if request.param == "bert" else "word_level"
    base = write_base(folder / "base", request.param, tokenizer)
    paths = {}
    for seed, (name, tokens) in enumerate({"mood": ["<mood>"], "spam": ["<spam>", "<pad>", "<mood>"]}.items()):
        settings = {"pad_token": "<pad>"} if name == "spam" and request.param == "llama" else {}
        paths[name] = write_expert(folder / name, base, seed, *tokens, auto=CLASSIFIER, labels=2 + seed, **settings)
    return base, paths


def test_rows_are_those_of_the_tokens_and_heads_are_those_of_their_models(models, tmp_path):
    base, paths = models
    pool = Pool(base, paths, tokenizer=UNION)
    export(MEAN, pool, tmp_path / "out")
    held = {name: load_file(path / "model.safetensors") for name, path in paths.items()}
    [embedding] = [name for name in held["mood"] if name.endswith(("embed_tokens.weight", "word_embeddings.weight"))]
    rows = load_file(base / "model.safetensors")[embedding].shape[0]
    mood, spam = held["mood"][embedding], held["spam"][embedding]
    expected = torch.cat([(mood[:rows] + spam[:rows]) / 2, (mood[rows:] + spam[rows + 2 :]) / 2, spam[rows : rows + 2]])
    for name, own in held.items():
        written = load_file(tmp_path / "out" / name / "model.safetensors")
        torch.testing.assert_close(written[embedding], expected, rtol=0, atol=1e-6)
        heads = [key for key in own if key.startswith(("score", "classifier"))]
        assert heads
        assert all(torch.equal(written[key], own[key]) for key in heads)
        config = json.loads((tmp_path / "out" / name / "config.json").read_text())
        assert config["vocab_size"] == rows + 3
        tokenizer = load_tokenizer(tmp_path / "out" / name)
        numbers = tokenizer.convert_tokens_to_ids(["<mood>", "<spam>", "<pad>"])
        assert numbers == [rows, rows + 1, rows + 2]
        model = load_model(tmp_path / "out" / name, CLASSIFIER)
        if name == "spam" and "llama" in str(base):
            assert model.config.pad_token_id == rows + 2  # rows + 1 in its own files


@torch.inference_mode()
def test_a_candidate_in_memory_is_the_exported_one(models, tmp_path):
    base, paths = models
    setup = Setup(str(base), {name: str(path) for name, path in paths.items()}, {}, tokenizer=UNION)
    pool = open_pool(setup)
    live = open_model(setup, pool, torch.device("cpu"))
    live.refit(Builder(pool).build(MEAN))
    export(MEAN, pool, tmp_path / "out")
    for name in paths:
        live.use_head(name)
        ids = live.tokenizer(TEXT, return_tensors="pt")["input_ids"]
        assert ids.max() >= len(load_tokenizer(base))
        exported = load_model(tmp_path / "out" / name, CLASSIFIER)
        held = live.module.state_dict()
        assert all(torch.equal(tensor, held[key]) for key, tensor in exported.state_dict().items())
        torch.testing.assert_close(live.module(input_ids=ids).logits, exported(input_ids=ids).logits)
        assert live.module.config.pad_token_id == live.tokenizer.pad_token_id


def test_what_is_not_possible_is_refused(models, tmp_path):
    base, paths = models
    with pytest.raises(PoolError, match=r"Their vocabularies differ: type .*tokenizer: union"):
        Pool(base, paths)
    pool = Pool(base, paths, tokenizer=UNION)
    with pytest.raises(RecipeError, match="with `tokenizer` the base's own head is left out; expected an expert"):
        export(MEAN, pool, tmp_path / "out", head="base")
    if "llama" in str(base):
        with pytest.raises(
            PoolError, match=r"expert `spam`.*`pad_token_id`.*names the token `<pad>`.*`tokenizer: union`"
        ):
            Pool(base, paths, tokenizer=TokenizerChoice(source="base"))
    auto = "AutoModelForMaskedLM" if "bert" in str(base) else "AutoModelForCausalLM"
    other = write_expert(tmp_path / "other", base, 3, "<other>", auto=auto)
    assert not Pool(base, {"other": other}, tokenizer=UNION).heads  # language models: their heads are merged
    with pytest.raises(PoolError, match=r"expert `other`.*has a row for each of its own tokens"):
        Pool(base, {"other": other}, tokenizer=UNION, heads="own")


@pytest.mark.parametrize("models", ["llama"], indirect=True)
@torch.no_grad()
def test_an_adapter_with_a_head_stands_beside_a_model_with_more_tokens(models, tmp_path):
    base, paths = models
    plain = load_model(base, CLASSIFIER)
    tuned = peft.get_peft_model(plain, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS"))
    for number, parameter in enumerate(tuned.parameters()):
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)), alpha=0.2)
    tuned.save_pretrained(tmp_path / "tuned")
    pool = Pool(base, {"tuned": tmp_path / "tuned", "mood": paths["mood"]}, tokenizer=UNION)
    export(expert("tuned"), pool, tmp_path / "out", head="tuned")
    exported, alone = load_model(tmp_path / "out", CLASSIFIER), tuned.merge_and_unload().eval()
    ids = load_tokenizer(base)(TEXT.replace("<mood>", ""), return_tensors="pt")["input_ids"]
    torch.testing.assert_close(exported(input_ids=ids).logits, alone(input_ids=ids).logits)
    assert exported.get_input_embeddings().num_embeddings == alone.get_input_embeddings().num_embeddings + 1
