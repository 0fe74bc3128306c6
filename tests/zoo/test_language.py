"""The cheap parts of the language zoo: de-quantising, un-permuting, and the examples."""

import gzip
import re

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import rotate_half

from evomerge.errors import ZooError
from evomerge.zoo import language
from evomerge.zoo.quantised import read_llama, unpermuted

gguf = pytest.importorskip("gguf")

WIDTH, HEADS, SIZE = 32, 2, 16


def permuted(weight, heads):
    """Permute a query or key projection as llama.cpp's converter (convert_hf_to_gguf.py, `LlamaModel.permute`)."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_llama(path, generator):
    """Write a one-layer Llama as GGUF, its matrices in Q8_0; return its weights by transformers' names."""
    weights = {}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(8)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(64)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)

    def add(name, theirs, shape, heads=0):
        weight = generator.standard_normal(shape).astype(np.float32)
        weights[theirs] = weight
        stored = permuted(weight, heads) if heads else weight
        kind = gguf.GGMLQuantizationType.Q8_0 if len(shape) == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(stored, kind), raw_dtype=kind)

    block, layer = "blk.0", "model.layers.0"
    add("token_embd.weight", "model.embed_tokens.weight", (8, WIDTH))
    add("output_norm.weight", "model.norm.weight", (WIDTH,))
    add(f"{block}.attn_norm.weight", f"{layer}.input_layernorm.weight", (WIDTH,))
    add(f"{block}.ffn_norm.weight", f"{layer}.post_attention_layernorm.weight", (WIDTH,))
    add(f"{block}.attn_q.weight", f"{layer}.self_attn.q_proj.weight", (HEADS * SIZE, WIDTH), HEADS)
    add(f"{block}.attn_k.weight", f"{layer}.self_attn.k_proj.weight", (SIZE, WIDTH), 1)
    add(f"{block}.attn_v.weight", f"{layer}.self_attn.v_proj.weight", (SIZE, WIDTH))
    add(f"{block}.attn_output.weight", f"{layer}.self_attn.o_proj.weight", (WIDTH, HEADS * SIZE))
    add(f"{block}.ffn_gate.weight", f"{layer}.mlp.gate_proj.weight", (64, WIDTH))
    add(f"{block}.ffn_up.weight", f"{layer}.mlp.up_proj.weight", (64, WIDTH))
    add(f"{block}.ffn_down.weight", f"{layer}.mlp.down_proj.weight", (WIDTH, 64))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_unpermuting_undoes_the_converter():
    weight = np.arange(2 * 8 * 3, dtype=np.float32).reshape(16, 3)
    assert not np.array_equal(permuted(weight, 2), weight)
    np.testing.assert_array_equal(unpermuted(permuted(weight, 2), 2), weight)


def test_rotating_pairs_of_permuted_rows_is_rotating_halves_of_unpermuted_ones():
    """llama.cpp rotates the rows 2i and 2i + 1 of a head, transformers the rows i and i + size / 2."""
    rows = np.arange(1.0, 9.0, dtype=np.float32).reshape(8, 1)
    pairs = rows.reshape(4, 2)
    turned = np.stack([-pairs[:, 1], pairs[:, 0]], axis=1).reshape(8, 1)
    expected = rotate_half(torch.tensor(unpermuted(rows, 1)).T).T
    np.testing.assert_array_equal(unpermuted(turned, 1), expected.numpy())


def test_a_gguf_file_becomes_a_plain_bf16_llama(tmp_path):
    weights = write_llama(tmp_path / "tiny.gguf", np.random.default_rng(0))
    model = read_llama(tmp_path / "tiny.gguf")
    state = model.state_dict()
    assert model.config.num_key_value_heads == 1
    assert model.config.tie_word_embeddings
    assert state.keys() - {"lm_head.weight"} == weights.keys()
    for name, weight in weights.items():
        assert state[name].dtype == torch.bfloat16
        # Q8_0 has 8 bits relative to the largest of 32 values, bf16 8 bits of each value.
        np.testing.assert_allclose(state[name].float().numpy(), weight, atol=0.03)
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").is_file()


def test_another_architecture_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ZooError, match="expected the architecture `llama`, got `gpt2`"):
        read_llama(tmp_path / "other.gguf")


def test_manual_pages_are_read_without_markup():
    page = (
        ".TH BEISPIEL 1\n.SH NAME\nbeispiel \\- zeigt \\fIDateien\\fP an\n"
        "und \\fBmehr\\fR\n.PP\nZweiter\\ Absatz mit \\(aqZeichen\\(aq\\&.\n'\\\" Kommentar\nEnde\\e\n"
    )
    assert language.plain(page) == "beispiel - zeigt Dateien an und mehr\nZweiter Absatz mit 'Zeichen'.\nEnde\\"


def test_error_for_too_little_german_text_says_what_to_type(tmp_path):
    with pytest.raises(ZooError, match=r"apt-get install manpages-de, or: evomerge zoo build language --text DIR"):
        language.plan(tmp_path)


def test_text_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "alt.txt").write_bytes("Größe".encode("latin-1"))
    with pytest.raises(ZooError, match=r"alt\.txt`: expected text in UTF-8"):
        language.plan(tmp_path)


def test_digest_depends_on_the_german_text(tmp_path):
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"Seite {number}. " * 100, encoding="utf-8")
    (tmp_path / "seite.1.gz").write_bytes(gzip.compress(b".SH NAME\n" + b"Handbuch. " * 100))
    before = language.plan(tmp_path).digest(0)
    assert language.plan(tmp_path).digest(0) == before
    (tmp_path / "seite.1.gz").write_bytes(gzip.compress(b".SH NAME\n" + b"Heftchen. " * 100))
    assert language.plan(tmp_path).digest(0) != before


def test_pieces_of_a_document_are_in_one_split():
    documents = ["".join(f"{number:03}-{i:06} " for i in range(200)) for number in range(40)]
    settings = language.Settings(precision="float32", german="", python="")
    pieces = language._pieces(documents, settings, "seed")
    seen = {split: {re.search(r"(\d{3})-\d{6}", row["text"])[1] for row in rows} for split, rows in pieces.items()}
    assert all(seen.values())
    assert sum(map(len, seen.values())) == len(set().union(*seen.values()))


def test_sums_are_correct_and_in_one_split_each():
    sums = language._sums(language.Settings(precision="float32", german="", python=""), 0)
    prompts = [row["prompt"] for rows in sums.values() for row in rows]
    assert len(set(prompts)) == len(prompts) == 1000 + 48 + 200
    for row in sums["report"]:
        a, b = row["prompt"].removesuffix("=").split("+")
        assert int(a) + int(b) == int(row["answer"])


def test_sums_in_german_words_are_the_same_sums():
    row = {"prompt": "12+34=", "answer": "46"}
    assert language._in_german(row) == {"prompt": "Die Summe von 12 und 34 ist ", "answer": "46"}
