"""Artefacts: what is written, what comes back, and what is refused."""

import contextlib
import json

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import Models, write_pool
from safetensors.torch import load_file, save_file
from strategies import changed
from tiny_models import tiny_model

from evomerge import codecs
from evomerge.checkpoints.folder import CheckpointError
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.save import save
from evomerge.codecs import Artefact, encode
from evomerge.codecs.artefact import preview
from evomerge.errors import PoolError, RecipeError


def formula(codec, base, experts):
    """Return the task vectors of a model by the formulas of the papers, in fp64, without the package's codecs."""
    vectors = {name: torch.stack([expert[name].double() - base[name].double() for expert in experts]) for name in base}
    if codec == "tall":
        total = {name: vector.sum(0) for name, vector in vectors.items()}
        return [
            {name: total[name] * (v[k].abs() > 0.375 * (total[name] - v[k]).abs()) for name, v in vectors.items()}
            for k in range(len(experts))
        ]
    unified, masks = {}, {}
    for name, v in vectors.items():
        sign = v.sum(0).sign()
        unified[name] = sign * (v * sign).clamp(min=0).amax(0)
        masks[name] = (v * unified[name]) > 0
    decoded = []
    for k in range(len(experts)):
        total = sum(v[k].abs().sum() for v in vectors.values())
        shared = sum((masks[name][k] * unified[name]).abs().sum() for name in vectors)
        decoded.append({name: total / shared * masks[name][k] * unified[name] for name in vectors})
    return decoded


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize(("codec", "parameters"), [("tall", {"lambda": 0.375}), ("emr", {})])
def test_saved_experts_follow_the_formula_in_fp64_to_one_ulp(codec, parameters, low, request, tmp_path):
    pool = request.getfixturevalue("bf16_pool" if low else "pool")
    artefact = encode(pool, codecs.make(codec, parameters), tmp_path / "artefact")
    base = {name: pool.base.tensor(name) for name in pool.merged}
    experts = [{name: expert.tensor(name) for name in base} for expert in pool.experts.values()]
    for k, (expert, vectors) in enumerate(zip(pool.experts, formula(codec, base, experts), strict=True)):
        folder = tmp_path / expert
        save(artefact.decode(expert), folder, like=artefact.base.path)
        saved = load_file(folder / "model.safetensors")
        assert saved.keys() == pool.base.info.keys()
        for name, vector in vectors.items():
            wanted = base[name].double() + vector
            # The vector itself is rounded to storage: where it and the base nearly cancel, its ulp is the larger one.
            ulp = torch.finfo(base[name].dtype).eps * torch.stack([wanted, base[name], vector]).abs().amax(0)
            assert saved[name].dtype == base[name].dtype
            assert ((saved[name].double() - wanted).abs() <= ulp).all(), name
            frozen = torch.stack([expert[name] == base[name] for expert in experts]).all(0)
            as_bits = torch.int16 if low else torch.int32
            assert torch.equal(saved[name].view(as_bits)[frozen], base[name].view(as_bits)[frozen])
        for name in pool.base.info.keys() - base.keys():  # integers are each expert's own
            assert torch.equal(saved[name], list(pool.experts.values())[k].tensor(name))


def test_lambda_0_of_a_single_expert_is_the_expert(pool, tmp_path):
    alone = Pool(pool.base.path, {"maths": pool.experts["maths"].path})
    decoded = encode(alone, codecs.make("tall", {"lambda": 0}), tmp_path / "artefact").decode("maths")
    for name in alone.merged:
        torch.testing.assert_close(decoded.tensor(name), alone.experts["maths"].tensor(name), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("basis", ["position", "matrix"])
def test_low_rank_experts_come_back_from_k_minus_1_directions(lora_pool, tmp_path, basis):
    artefact = encode(lora_pool, codecs.make("low_rank", {"p": 3, "basis": basis}), tmp_path / "artefact")
    assert artefact.figures.keys() == {"layers.0.up.weight", "layers.1.up.weight"}
    for name, expert in lora_pool.experts.items():
        for key in expert.info:
            torch.testing.assert_close(artefact.decode(name).tensor(key), expert.tensor(key), atol=1e-6, rtol=0)
        assert torch.equal(artefact.decode(name).tensor("layers.1.up.bias"), expert.tensor("layers.1.up.bias"))


@pytest.mark.parametrize("codec", codecs.CODECS)
def test_bytes_on_disk_are_the_formulas_but_for_headers_and_padding(codec, lora_pool, tmp_path):
    artefact = encode(lora_pool, codecs.make(codec), tmp_path / "artefact")
    n = 24 * 16 + 20 * 16 + 20
    base = 4 * (n + 16)
    if codec in ("tall", "emr"):
        assert artefact.formula == base + 4 * n + 4 * n / 8
    files = [file for part in ("base", "codes") for file in (artefact.folder / part).glob("*.safetensors")]
    weights = sum(tensor.nbytes for file in files for tensor in load_file(file).values())
    assert 0 <= weights - artefact.formula < 4 * 3  # at most a byte for each mask
    assert artefact.nbytes > sum(file.stat().st_size for file in files)


def test_unchanged_tensors_cost_nothing(lora_pool, tmp_path):
    for codec in codecs.CODECS:
        artefact = encode(lora_pool, codecs.make(codec), tmp_path / codec)
        stored = load_file(next((artefact.folder / "codes").glob("*.safetensors")))
        assert not [key for key in stored if key.endswith("norm.weight")]
        assert torch.equal(artefact.decode("law").tensor("layers.0.norm.weight"), torch.ones(16))


def test_a_pool_whose_experts_are_the_base_is_the_base(pool, tmp_path):
    same = Pool(pool.base.path, {"twin": pool.base.path})
    decoded = encode(same, codecs.make("emr"), tmp_path / "artefact").decode("twin")
    assert all(torch.equal(decoded.tensor(name), pool.base.tensor(name)) for name in pool.base.info)


@pytest.mark.parametrize("codec", codecs.CODECS)
def test_slices_change_nothing(codec, pool, tmp_path, monkeypatch):
    unsliced = encode(pool, codecs.make(codec), tmp_path / "whole")
    monkeypatch.setattr("evomerge.codecs.artefact._SLICE", 4096)
    sliced = encode(pool, codecs.make(codec), tmp_path / "sliced")
    assert {key: pytest.approx(numbers) for key, numbers in unsliced.constants.items()} == sliced.constants
    assert sliced.formula == pytest.approx(unsliced.formula)
    for file in (unsliced.folder / "codes").iterdir():
        assert (sliced.folder / "codes" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("codec", codecs.CODECS)
def test_preview_equals_decoding_and_sharding_changes_nothing(codec, lora_pool, tmp_path, monkeypatch):
    monkeypatch.setattr("evomerge.codecs.artefact._SHARD", 2000)
    chosen = codecs.make(codec)
    seen = []
    artefact = encode(lora_pool, chosen, tmp_path / "artefact", progress=lambda done, total: seen.append((done, total)))
    assert len(list((artefact.folder / "codes").glob("*.safetensors"))) > 1
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    for k, expert in enumerate(lora_pool.experts):
        previewed, decoded = preview(lora_pool, chosen, artefact.constants, k), artefact.decode(expert)
        for name in previewed.info:
            assert torch.equal(previewed.tensor(name), decoded.tensor(name))
            out = torch.empty_like(decoded.tensor(name))
            decoded.write(name, out)
            assert torch.equal(out, decoded.tensor(name))


def test_transformers_loads_a_tied_expert_from_an_artefact_that_was_moved(tmp_path):
    for seed, name in enumerate(("base", "maths", "code")):
        tiny_model(tmp_path / name, "llama_tied", seed=seed)
    pool = Pool(tmp_path / "base", {name: tmp_path / name for name in ("maths", "code")})
    encode(pool, codecs.make("tall", {"lambda": {"maths": 0.2}}), tmp_path / "made")
    (tmp_path / "made").rename(tmp_path / "moved")
    artefact = Artefact(tmp_path / "moved")
    assert artefact.digests == pool.digests
    assert artefact.constants == {"lambda": [0.2, 0.4]}
    save(artefact.decode("maths"), tmp_path / "out", like=artefact.base.path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, tensor in model.state_dict().items():
        if name in artefact.base.info:
            assert torch.equal(tensor, artefact.decode("maths").tensor(name)), name
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("ab").input_ids


def test_a_number_that_storage_cannot_hold_is_refused_and_nothing_is_left(tmp_path):
    far = {"layers.0.up.weight": torch.full((2, 2), 6e4, dtype=torch.float16)}
    near = {"layers.0.up.weight": torch.zeros(2, 2, dtype=torch.float16)}
    write_pool(tmp_path / "pool", Models(near, {"a": far, "b": far}))
    pool = Pool(tmp_path / "pool" / "base", {name: tmp_path / "pool" / name for name in "ab"})
    with pytest.raises(PoolError, match=r"`unified` does not fit into the base's torch\.float16"):
        encode(pool, codecs.make("tall"), tmp_path / "out" / "artefact")
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_with_something_in_it_is_left_alone(pool, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty"):
        encode(pool, codecs.make("tall"), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]


def test_unknown_names_are_refused_with_a_suggestion(pool, tmp_path):
    with pytest.raises(RecipeError, match="no codec `tal`; did you mean `tall`"):
        codecs.make("tal")
    with pytest.raises(RecipeError, match="codec `tall`: unknown key `lamda`; did you mean `lambda`"):
        codecs.make("tall", {"lamda": 1})
    artefact = encode(pool, codecs.make("tall"), tmp_path / "artefact")
    with pytest.raises(PoolError, match="no expert `coed`; did you mean `code`"):
        artefact.decode("coed")


def flip(folder, file):
    path = folder / file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # the last byte of a tensor
    path.write_bytes(data)


def change(key, value):
    def edit(folder):
        path = folder / "artefact.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    return edit


def drop(folder):
    path = folder / "codes" / "model-00001.safetensors"
    codes = load_file(path)
    codes.pop("mask.0/embed.weight")
    save_file(codes, path)


def cut(folder):
    path = folder / "codes" / "model-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: flip(folder, "codes/model-00001.safetensors"), "damaged: the bytes of `.*` have changed"),
        (lambda folder: flip(folder, "base/model.safetensors"), "damaged: the bytes of `base/.*` have changed"),
        (drop, "damaged: `mask.0/embed.weight` is missing"),
        (cut, "needs .* bytes"),
        (lambda folder: (folder / "artefact.json").write_text("{"), "artefact.json: not valid JSON"),
        (lambda folder: (folder / "artefact.json").unlink(), "expected an artefact, a folder that `evomerge compress`"),
        (change("version", 2), "artefact version 2; expected 1"),
        (lambda folder: (folder / "artefact.json").write_text("[" * 100_000), "artefact.json: not valid JSON"),
        (change("codec", {}), "unknown codec `{}`"),
        (change("constants", {}), "damaged: its constants are not those of `tall` and 3 experts"),
        (change("constants", {"lambda": [0.4]}), "damaged: its constants are not those of `tall` and 3 experts"),
        (change("codec", "zip"), "unknown codec `zip`; known: emr, low_rank, singular, tall"),
        (change("codec", "emr"), "damaged: its parameters are not those of `emr`"),
        (change("experts", 3), "damaged: artefact.json: experts"),
        (change("extra", 3), "damaged: artefact.json: extra"),
    ],
)
def test_damaged_artefacts_are_refused(damage, message, pool, tmp_path):
    encode(pool, codecs.make("tall"), tmp_path / "artefact")
    damage(tmp_path / "artefact")
    with pytest.raises(CheckpointError, match=message):  # noqa: PT012  # when it shows depends on what was damaged
        artefact = Artefact(tmp_path / "artefact")
        for expert in artefact.experts:
            for name in artefact.base.info:
                artefact.decode(expert).tensor(name)


@pytest.fixture(scope="module")
def written(pool, tmp_path_factory):
    """An artefact folder, and the text of its manifest."""
    folder = tmp_path_factory.mktemp("written") / "artefact"
    encode(pool, codecs.make("tall", {}), folder)
    return folder, (folder / "artefact.json").read_text()


@settings(derandomize=True)
@given(st.data())
def test_any_manifest_is_read_or_refused(written, data):
    folder, content = written
    (folder / "artefact.json").write_text(json.dumps(data.draw(changed(json.loads(content)))))
    with contextlib.suppress(CheckpointError):
        artefact = Artefact(folder)
        for expert in artefact.experts:
            decoded = artefact.decode(expert)
            for name in decoded.info:
                decoded.tensor(name)
