"""Tiny models whose tokenizers are built here, one of each algorithm, and experts with tokens of their own."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as algorithms
from transformers import PreTrainedTokenizerFast

from evomerge.models.pretrained import load_model, load_tokenizer, new_model

TEXTS = ["the cat sat on the mat", "a dog ran in the park", "hello world", "more words, more worlds"]
_SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}
MODELS = {
    "llama": ({"model_type": "llama", **_SIZES, "num_key_value_heads": 1}, "AutoModelForCausalLM"),
    "llama_tied": (
        {"model_type": "llama", **_SIZES, "num_key_value_heads": 1, "tie_word_embeddings": True},
        "AutoModelForCausalLM",
    ),
    "gpt2": (
        {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
        "AutoModelForCausalLM",
    ),
    "bert": ({"model_type": "bert", **_SIZES}, "AutoModelForMaskedLM"),
}


def byte_level(texts=TEXTS):
    tokenizer = Tokenizer(algorithms.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<s>", "</s>", "<unk>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_piece(texts=TEXTS):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(algorithms.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=70, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def unigram(texts=TEXTS):
    tokenizer = Tokenizer(algorithms.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.train_from_iterator(
        texts,
        trainers.UnigramTrainer(
            vocab_size=60, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_level(texts=TEXTS):
    words = sorted({word for text in texts for word in text.replace(",", " ,").split()})
    numbers = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *words])}
    tokenizer = Tokenizer(algorithms.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


ALGORITHMS = {"byte_level": byte_level, "word_piece": word_piece, "unigram": unigram, "word_level": word_level}


def write_base(folder: Path, architecture="llama", tokenizer="word_level", rows=None, **settings) -> Path:
    """Write a model with random weights and `rows` rows of tokens, by default as many as its tokenizer has."""
    made = ALGORITHMS[tokenizer]()
    config, auto = MODELS[architecture]
    ids = {f"{role}_token_id": getattr(made, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        config = {**config, **ids, "vocab_size": rows or len(made), "initializer_range": 0.3, **settings}
        model = new_model(config, auto)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def write_expert(
    folder: Path,
    base: Path,
    seed: int,
    *tokens: str,
    rows=None,
    special=True,
    auto="AutoModelForCausalLM",
    labels=None,
    **settings,
) -> Path:
    """Write a fine-tune of `base` with `tokens` added to its tokenizer, in rows of their own, `rows` in all."""
    options = {} if labels is None else {"num_labels": labels}
    model, tokenizer = load_model(base, auto, **options), load_tokenizer(base)
    tokenizer.add_tokens(
        [AddedToken(token, special=special, normalized=False) for token in tokens], special_tokens=special
    )
    for key, value in settings.items():
        setattr(tokenizer, key, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        count = rows or max(len(tokenizer), model.get_input_embeddings().num_embeddings)
        if count != model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(count, mean_resizing=False)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    for role in ("bos", "eos", "pad"):
        if f"{role}_token" in settings:
            number = getattr(tokenizer, f"{role}_token_id")
            setattr(model.config, f"{role}_token_id", number)
            if getattr(model, "generation_config", None) is not None:
                setattr(model.generation_config, f"{role}_token_id", number)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
