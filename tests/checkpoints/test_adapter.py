"""Adapters: W + s·B·A to the last digit, made when asked for; whatever is not that is refused before any work."""

import json
import math
import pickle

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from pools import CONFIG, write_checkpoint
from safetensors.torch import load_file, save_file

from evomerge import strict_yaml
from evomerge.build import Builder
from evomerge.checkpoints import Adapter, Folder, Pool, save
from evomerge.checkpoints import folder as folder_module
from evomerge.checkpoints.lora import is_adapter
from evomerge.errors import CheckpointError
from evomerge.models import LiveModel
from evomerge.recipe import Recipe, expert, merge
from evomerge.report.export import export
from evomerge.testing import merge_tensors, tiny_model

SHAPES = {
    "model.embed.weight": (11, 6),
    "model.layers.0.attn.q.weight": (8, 6),
    "model.layers.0.attn.q.bias": (8,),
    "model.layers.0.mlp.up.weight": (5, 6),
    "model.layers.1.attn.q.weight": (8, 6),
    "model.layers.1.mlp.up.weight": (5, 6),
    "model.conv.weight": (6, 4, 3, 2),
    "model.wave.weight": (6, 4, 3),
    "model.norm.weight": (6,),
    "head.weight": (3, 6),
}
Q, UP = "model.layers.0.attn.q", "model.layers.0.mlp.up"
PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "base_model_name_or_path": "somebody/something"}


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def base_tensors(dtype=torch.float32):
    made = {name: draw(*shape, seed=i, dtype=dtype) for i, (name, shape) in enumerate(SHAPES.items())}
    return made | {"steps": torch.tensor(3)}


def factors(module, rank=2, *, seed=50, shape=None, transposed=False):
    """Random factors for a matrix or a convolution, under PEFT's names."""
    out, into, *kernel = shape or SHAPES[f"{module}.weight"]
    if transposed:
        out, into = into, out
    return {
        f"base_model.model.{module}.lora_A.weight": draw(rank, into, *kernel, seed=seed),
        f"base_model.model.{module}.lora_B.weight": draw(out, rank, *(1 for _ in kernel), seed=seed + 1),
    }


def embedding_factors(module, rank=2, seed=70):
    rows, columns = SHAPES[f"{module}.weight"]
    return {
        f"base_model.model.{module}.lora_embedding_A": draw(rank, rows, seed=seed),
        f"base_model.model.{module}.lora_embedding_B": draw(columns, rank, seed=seed + 1),
    }


def write_adapter(folder, tensors, **config):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(PLAIN | config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def opened(folder, tensors, base=None, **config):
    """The adapter of `tensors` on `base`, both written first."""
    write_checkpoint(folder / "base", base_tensors() if base is None else base)
    return Adapter(write_adapter(folder / "lora", tensors, **config), Folder(folder / "base"))


def exact(weight, tensors, module, scale):
    """W + s·Σᵣ B[o, r]·A[r, i, ...] in float64, by numpy."""
    a, b = (tensors[f"base_model.model.{module}.lora_{x}.weight"].double().numpy() for x in "AB")
    return weight.double().numpy() + scale * np.einsum("or,ri...->oi...", b.reshape(b.shape[:2]), a)


def same_bytes(left, right):
    return left.dtype == right.dtype and torch.equal(
        left.flatten().view(torch.uint8), right.flatten().view(torch.uint8)
    )


# -- arithmetic --


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("module", [Q, UP, "model.conv", "model.wave"])
def test_weight_is_w_plus_s_b_a_in_fp32_or_wider(tmp_path, module, dtype):
    base, tensors = base_tensors(dtype), factors(module)
    found = opened(tmp_path, tensors, base)
    name = f"{module}.weight"
    wide = torch.promote_types(dtype, torch.float32)
    assert found.info[name].dtype == found.tensor(name).dtype == wide
    assert found.tensor(name).shape == found.info[name].shape == base[name].shape
    expected = exact(base[name], tensors, module, 3 / 2)
    np.testing.assert_allclose(
        found.tensor(name).double(), expected, rtol=0, atol=1e-14 if wide.itemsize == 8 else 2e-6
    )
    out = torch.empty(SHAPES[name], dtype=torch.bfloat16)
    found.write(name, out)
    assert torch.equal(out, found.tensor(name).bfloat16())


def test_embeddings_and_turned_weights_are_transposed(tmp_path):
    base = base_tensors()
    embedding = embedding_factors("model.embed")
    found = opened(tmp_path / "embedding", embedding).tensor("model.embed.weight")
    a, b = (embedding[f"base_model.model.model.embed.lora_embedding_{x}"].double() for x in "AB")
    assert torch.allclose(found.double(), base["model.embed.weight"] + 1.5 * torch.einsum("rn,dr->nd", a, b), atol=2e-6)

    turned = factors(Q, transposed=True) | factors("model.conv")
    found = opened(tmp_path / "turned", turned, fan_in_fan_out=True)
    a, b = (turned[f"base_model.model.{Q}.lora_{x}.weight"].double() for x in "AB")
    expected = base[f"{Q}.weight"] + 1.5 * torch.einsum("ri,or->io", a, b)
    assert torch.allclose(found.tensor(f"{Q}.weight").double(), expected, atol=2e-6)
    np.testing.assert_allclose(  # a convolution has no other order
        found.tensor("model.conv.weight"), exact(base["model.conv.weight"], turned, "model.conv", 1.5), atol=2e-6
    )


SCALES = [
    ({}, 3 / 2),
    ({"use_rslora": True}, 3 / math.sqrt(2)),
    ({"lora_alpha": 0.5}, 0.25),
    ({"r": 8, "rank_pattern": {"q": 2}}, 3 / 2),
    ({"r": 8, "rank_pattern": {"q": 2}, "alpha_pattern": {"attn.q": 7}, "use_rslora": True}, 7 / math.sqrt(2)),
    ({"alpha_pattern": {"q": 5, "attn.q": 7}}, 5 / 2),  # the first that matches
    ({"alpha_pattern": {r"layers\.\d+\.attn\.q": 5}}, 5 / 2),
    ({"alpha_pattern": {r"model.layers.0.attn.q": 5}}, 5 / 2),
    ({"alpha_pattern": {r"^model.*q": 5}}, 5 / 2),
    ({"alpha_pattern": {r"((\w|\.)+)+!": 5, r"(q|q)*(q|q)*": 7}}, 7 / 2),  # `re` would backtrack for ever
    ({"alpha_pattern": {"layers.1.*": 5, "up": 6, "n.q": 7, "attn": 8}}, 3 / 2),  # whole names between dots, to the end
    ({"rank_pattern": None, "alpha_pattern": {}}, 3 / 2),
]


@pytest.mark.parametrize(("config", "scale"), SCALES, ids=[str(config) for config, _ in SCALES])
def test_scale_is_alpha_over_the_rank_or_its_root(tmp_path, config, scale):
    tensors = factors(Q)
    found = opened(tmp_path, tensors, **config).tensor(f"{Q}.weight")
    np.testing.assert_allclose(found, exact(base_tensors()[f"{Q}.weight"], tensors, Q, scale), rtol=0, atol=3e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("alpha", [3, -3])
def test_zero_factor_gives_the_base_bit_for_bit(tmp_path, dtype, alpha):
    base = base_tensors(dtype)
    base[f"{Q}.weight"][:2] = torch.tensor([0.0, -0.0]).repeat(3)
    tensors = factors(Q)
    tensors[f"base_model.model.{Q}.lora_B.weight"].zero_()
    found = opened(tmp_path, tensors, base, lora_alpha=alpha)
    for name, entry in found.info.items():
        assert same_bytes(found.tensor(name), base[name].to(entry.dtype))


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.floats(-4, 4, width=16), st.integers(0, 99))
def test_change_is_linear_in_the_scale_and_free_of_the_gauge(tmp_path_factory, rank, rows, columns, alpha, seed):
    """2·alpha doubles it; (A, B) and (D·A, B·D⁻¹) are the same adapter."""
    folder = tmp_path_factory.mktemp("linear")
    base = {"q.weight": torch.zeros(rows, columns, dtype=torch.float64)}
    tensors = factors("q", rank, seed=seed, shape=(rows, columns))
    once = opened(folder / "once", tensors, base, r=rank, lora_alpha=alpha).tensor("q.weight")
    twice = opened(folder / "twice", tensors, base, r=rank, lora_alpha=2 * alpha).tensor("q.weight")
    assert torch.equal(2 * once, twice)
    gauge = 2.0 ** torch.arange(rank)
    a, b = tensors.values()
    turned = dict(zip(tensors, (gauge[:, None] * a, b / gauge), strict=True))
    assert torch.equal(opened(folder / "gauge", turned, base, r=rank, lora_alpha=alpha).tensor("q.weight"), once)


def test_threads_do_not_change_a_bit(tmp_path):
    base = {"q.weight": draw(700, 500)}
    found = opened(tmp_path, factors("q", 24, shape=(700, 500)), base, r=24)
    expected = found.tensor("q.weight")
    torch.set_num_threads(3)  # the fixture of all tests sets it back
    assert torch.equal(found.tensor("q.weight"), expected)


def test_peft_makes_the_same_model(tmp_path):
    peft = pytest.importorskip("peft")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.q, self.k = torch.nn.Embedding(11, 6), torch.nn.Linear(6, 8), torch.nn.Linear(6, 6)
            self.wave, self.conv, self.dot = (
                torch.nn.Conv1d(4, 6, 3),
                torch.nn.Conv2d(4, 6, (3, 2)),
                torch.nn.Conv2d(4, 6, 1),
            )
            self.head, self.norm = torch.nn.Linear(6, 3), torch.nn.LayerNorm(6)

    targets = ["embed", "q", "k", "wave", "conv", "dot"]
    patterns = {"rank_pattern": {"q": 3, "w.*": 1}, "alpha_pattern": {"k|conv": 5}}
    for bias in ("none", "lora_only", "all"):
        net = Net()
        write_checkpoint(tmp_path / bias / "base", {k: v.detach().clone() for k, v in net.state_dict().items()})
        for rslora in (False, True):
            config = peft.LoraConfig(
                r=2, bias=bias, target_modules=targets, modules_to_save=["head", "norm"], use_rslora=rslora, **patterns
            )
            model = peft.get_peft_model(net, config)
            for i, parameter in enumerate(model.parameters()):
                if parameter.requires_grad:
                    parameter.data += draw(*parameter.shape, seed=i)
            model.save_pretrained(tmp_path / bias / f"{rslora}")
            net = model.merge_and_unload()
            found = Adapter(tmp_path / bias / f"{rslora}", Folder(tmp_path / bias / "base"))
            expected = net.state_dict()
            assert set(found.info) == set(expected)
            for name, tensor in expected.items():
                assert torch.allclose(found.tensor(name), tensor, rtol=1e-5, atol=2e-6), (bias, name)
            write_checkpoint(tmp_path / bias / "base", {k: v.detach().clone() for k, v in expected.items()})


# -- what is stored whole, and laziness --


def test_tensors_stored_whole_take_the_place_of_the_bases(tmp_path):
    head, bias, embedding = draw(3, 6, seed=90), draw(8, seed=91).bfloat16(), draw(11, 6, seed=92)
    tensors = factors(Q) | embedding_factors("model.embed")
    tensors |= {
        "base_model.model.head.weight": head,
        "base_model.model.head.original_module.weight": draw(3, 6, seed=93),
        "base_model.model.head.modules_to_save.weight": head.clone(),
        f"base_model.model.{Q}.base_layer.bias": bias,
        "base_model.model.model.embed.base_layer.weight": embedding,
    }
    found = opened(tmp_path, tensors)
    assert same_bytes(found.tensor("head.weight"), head)
    assert same_bytes(found.tensor(f"{Q}.bias"), bias)
    assert found.info[f"{Q}.bias"].dtype == torch.bfloat16
    a, b = (tensors[f"base_model.model.model.embed.lora_embedding_{x}"] for x in "AB")
    assert torch.allclose(found.tensor("model.embed.weight"), embedding + 1.5 * (b @ a).T, atol=2e-6)
    assert found.changed == ("head.weight", "model.embed.weight", f"{Q}.bias", f"{Q}.weight")


def test_what_is_not_adapted_is_the_bases_own_view(tmp_path):
    found = opened(tmp_path, factors(Q))
    for name in set(found.info) - set(found.changed):
        assert found.info[name] == found.base.info[name]
        assert found.tensor(name).data_ptr() == found.base.tensor(name).data_ptr()
    assert list(found.info) == list(found.base.info)
    assert found.config == CONFIG


def test_numbers_are_read_only_when_asked_for(tmp_path, monkeypatch):
    found = opened(tmp_path, factors(Q))
    expected = found.tensor(f"{Q}.weight")
    found.forget()
    copy = pickle.loads(pickle.dumps(found))

    def fail(file, framework):
        raise OSError("gone")

    monkeypatch.setattr(folder_module, "safe_open", fail)
    again = opened(tmp_path, factors(Q))  # opening reads no tensor
    for closed in (again, copy, found):
        with pytest.raises(CheckpointError, match=r"cannot be opened .gone.; it was readable before"):
            closed.tensor(f"{Q}.weight")
    monkeypatch.undo()
    for reopened in (again, copy, found):
        assert torch.equal(reopened.tensor(f"{Q}.weight"), expected)


# -- names --


@pytest.mark.parametrize(
    ("in_base", "in_adapter"),
    [
        ("model.layers.0.q", "model.layers.0.q"),
        ("layers.0.q", "model.layers.0.q"),
        ("model.layers.0.q", "layers.0.q"),
        ("model.layers.0.q", "module.model.layers.0.q"),
    ],
)
@pytest.mark.parametrize("wrapper", ["base_model.model.", ""])
def test_prefix_more_or_less_is_seen_through(tmp_path, in_base, in_adapter, wrapper):
    base = {f"{in_base}.weight": draw(8, 6), "norm.weight": draw(6)}
    tensors = {key.replace("base_model.model.", wrapper): t for key, t in factors(in_adapter, shape=(8, 6)).items()}
    assert opened(tmp_path, tensors, base).changed == (f"{in_base}.weight",)


def test_exact_name_goes_before_a_longer_one(tmp_path):
    base = {"q.weight": draw(8, 6), "vision.q.weight": draw(8, 6)}
    assert opened(tmp_path, factors("q", shape=(8, 6)), base).changed == ("q.weight",)


def test_names_that_fit_twice_are_refused(tmp_path):
    base = {"text.q.weight": draw(8, 6), "vision.q.weight": draw(8, 6)}
    with pytest.raises(CheckpointError, match=r"lora: `q.weight` could be `text.q.weight` or `vision.q.weight` of the"):
        opened(tmp_path, factors("q", shape=(8, 6)), base)


def test_block_that_the_base_lacks_is_no_prefix(tmp_path):
    """`layers.9.norm.weight` is not the base's `norm.weight`, though one name ends with the other."""
    base = {"norm.weight": draw(6), "layers.0.norm.weight": draw(6)}
    with pytest.raises(CheckpointError, match=r"changes `layers.9.norm.weight`, which the base .* does not have;"):
        opened(tmp_path, {"base_model.model.layers.9.norm.weight": draw(6)}, base)


def test_two_targets_never_become_one_tensor(tmp_path):
    tensors = factors("model.q", shape=(8, 6)) | factors("q", shape=(8, 6))
    with pytest.raises(CheckpointError, match=r"changes `.*q.weight`, which the base"):
        opened(tmp_path, tensors, {"q.weight": draw(8, 6)})


# -- refusals --

A, B = (f"base_model.model.{Q}.lora_{x}.weight" for x in "AB")
REFUSED = [
    ({"peft_type": "IA3"}, {}, r"`peft_type` is 'IA3'; expected 'LORA'"),
    ({"peft_type": None}, {}, r"`peft_type` is None; expected 'LORA'"),
    ({"use_dora": True}, {}, r"`use_dora` is True, so the weights may not be W \+ s·B·A alone; merge it into its base"),
    ({"trainable_token_indices": [1, 2]}, {}, r"`trainable_token_indices` is \[1, 2\], so"),
    ({"layer_replication": [[0, 2], [1, 2]]}, {}, "`layer_replication` is"),
    ({"not_yet_invented": {"x": 1}}, {}, "`not_yet_invented` is"),
    ({"init_lora_weights": "pissa_niter_4"}, {}, "`init_lora_weights` is 'pissa_niter_4', which changes the base, too"),
    ({"r": 0}, {}, "adapter_config.json `r`: .*greater than or equal to 1, got 0"),
    ({"r": "two"}, {}, "`r`: .*, got 'two'"),
    ({"lora_alpha": float("nan")}, {}, "`lora_alpha`: .*finite number, got nan"),
    ({"rank_pattern": {"q": -1}}, {}, "`rank_pattern.q`: .*greater than or equal to 1, got -1"),
    ({"rank_pattern": {"q": int("9" * 400)}}, {}, "`rank_pattern.q`: .*got 999"),
    ({"lora_alpha": int("9" * 400)}, {}, "`lora_alpha`: .*got "),
    ({"alpha_pattern": {"(": 1}}, {}, r"`alpha_pattern`: expected regular expressions, got `\(`"),
    ({"alpha_pattern": {r"(q)\1": 1}}, {}, r"`alpha_pattern`: expected regular expressions, got .* \(GROUPREF\)"),
    (
        {"r": 4},
        {},
        r"factors A \[2, 6\] and B \[8, 2\] of rank r = 4 do not fit `model.layers.0.attn.q.weight`, \[8, 6\] in the base \(.*base\); expected A \[4, 6\] and B \[8, 4\]",
    ),
    ({"fan_in_fan_out": True}, {}, r"weights are \(in, out\), says the adapter\); expected A \[2, 8\] and B \[6, 2\]"),
    ({}, {A: draw(2, 7)}, r"A \[2, 7\] and B \[8, 2\] .* expected A \[2, 6\]"),
    ({}, {B: draw(8, 2, 1)}, r"A \[2, 6\] and B \[8, 2, 1\] .* expected A \[2, 6\] and B \[8, 2\]"),
    ({}, {A: torch.ones(2, 6, dtype=torch.int64)}, "A of the product for `.*` is torch.int64; expected floating point"),
    ({}, {B: None}, r"`base_model.model.model.layers.0.attn.q.lora_A.weight` has no B beside it; expected both"),
    ({}, {A: None}, r"lora_B.weight` has no A beside it"),
    ({}, {A: None, B: None}, "holds no tensor; expected the factors of at least one module"),
    ({}, factors("model.layers.7.attn.q", shape=(8, 6)), r"changes `model.layers.7.attn.q.weight`, which the base"),
    (
        {},
        factors("model.norm", shape=(6, 1)),
        r"`model.norm.weight`, \[6\] in the base .*; expected a matrix or a conv",
    ),
    ({}, {f"{Q}.lora_magnitude_vector": draw(8)}, "changes `.*lora_magnitude_vector`, which the base .* does not have"),
    ({}, {f"{Q}.lora_B.bias": draw(8)}, "changes `.*q.lora_B.bias`, which the base .* does not have"),
    (
        {},
        {"head.weight": draw(4, 6)},
        r"tensor `head.weight` has shape \[4, 6\], `head.weight` of the base .* \[3, 6\]",
    ),
]


@pytest.mark.parametrize(("config", "tensors", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_what_is_not_plain_lora_on_this_base_is_refused_unread(tmp_path, monkeypatch, config, tensors, message):
    monkeypatch.setattr(folder_module, "safe_open", None)
    given_tensors = {key: tensor for key, tensor in (factors(Q) | tensors).items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, given_tensors, **config)


def test_folders_that_are_no_adapter_say_what_is_missing(tmp_path):
    write_checkpoint(tmp_path / "base", base_tensors())
    base = Folder(tmp_path / "base")
    folder = tmp_path / "lora"
    with pytest.raises(CheckpointError, match=r"adapter_config.json: cannot be read .No such file"):
        Adapter(folder, base)
    folder.mkdir()
    for content in ("{", "[" * 100_000, "\xff"):
        (folder / "adapter_config.json").write_text(content, encoding="latin-1")
        with pytest.raises(CheckpointError, match=r"adapter_config.json: not valid JSON"):
            Adapter(folder, base)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="expected 'LORA'"):
        Adapter(folder, base)
    (folder / "adapter_config.json").write_text(json.dumps(PLAIN))
    with pytest.raises(
        CheckpointError, match=r"no adapter_model.safetensors beside adapter_config.json; expected both"
    ):
        Adapter(folder, base)
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    with pytest.raises(CheckpointError, match=r"only pickle weights \(adapter_model.bin\)"):
        Adapter(folder, base)
    (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: header of"):
        Adapter(folder, base)


# -- in a pool --


def adapter_pool(folder, tensors, base=None, **config):
    """A pool with the expert `maths`, a whole model, and `code`, an adapter."""
    base = base_tensors() if base is None else base
    write_checkpoint(folder / "base", base)
    write_checkpoint(folder / "maths", {k: v + 0.5 if v.is_floating_point() else v for k, v in base.items()})
    write_adapter(folder / "code", tensors, **config)
    return Pool(folder / "base", {"maths": folder / "maths", "code": folder / "code"})


def test_whole_model_beside_an_adapter_is_a_whole_model(tmp_path):
    write_adapter(tmp_path, factors(Q))
    assert is_adapter(tmp_path)
    write_checkpoint(tmp_path, base_tensors())
    assert not is_adapter(tmp_path)


def test_adapter_is_no_base(tmp_path):
    write_adapter(tmp_path / "lora", factors(Q))
    with pytest.raises(
        CheckpointError, match=r"a LoRA adapter, not a whole model; .* give it as an expert of that base"
    ):
        Pool(tmp_path / "lora", {"maths": tmp_path / "lora"})


@pytest.mark.parametrize("key", [A, B])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_factors_that_are_not_finite_are_refused(tmp_path, key, value):
    tensors = factors(Q)
    tensors[key][1, 1] = value
    with pytest.raises(
        CheckpointError, match=rf"code: tensor `{Q}.weight` holds \d+ elements that are NaN or infinite"
    ):
        adapter_pool(tmp_path, tensors)


def test_digest_is_of_the_factors_the_scale_and_the_base(tmp_path):
    first = adapter_pool(tmp_path / "1", factors(Q)).digests
    assert adapter_pool(tmp_path / "2", factors(Q)).digests == first
    assert adapter_pool(tmp_path / "3", factors(Q, seed=7)).digests["code"] != first["code"]
    assert adapter_pool(tmp_path / "4", factors(Q), lora_alpha=4).digests["code"] != first["code"]
    other = adapter_pool(tmp_path / "5", factors(Q), base_tensors(torch.bfloat16)).digests
    assert other["code"] not in (first["code"], other["base"])


def test_contents_are_read_once_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = adapter_pool(tmp_path, factors(Q))
    monkeypatch.setattr(folder_module, "safe_open", None)
    assert Pool(tmp_path / "base", {"maths": tmp_path / "maths", "code": tmp_path / "code"}).digests == first.digests


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "linear"])
def test_merge_is_that_of_the_whole_models_in_memory_and_on_disk(tmp_path, method, dtype):
    base = base_tensors(dtype)
    tensors = factors(Q) | factors(UP, seed=60) | {"head.weight": draw(3, 6, seed=9, dtype=dtype)}
    pool = adapter_pool(tmp_path, tensors, base)
    recipe = merge(method, ["maths", "code"], {"weight": 0.3})
    floats = {name: tensor for name, tensor in base.items() if tensor.is_floating_point()}
    code = floats | {
        f"{module}.weight": torch.from_numpy(exact(base[f"{module}.weight"], tensors, module, 1.5)).float()
        for module in (Q, UP)
    }
    code["head.weight"] = tensors["head.weight"]
    expected = merge_tensors(recipe, floats, [{name: tensor + 0.5 for name, tensor in floats.items()}, code])
    merged = Builder(pool).build(recipe)
    save(merged, tmp_path / "merged", like=tmp_path / "base")
    found = load_file(tmp_path / "merged" / "model.safetensors")
    for name, tensor in expected.items():
        assert same_bytes(found[name], merged.tensor(name))
        assert found[name].dtype == dtype
        assert torch.allclose(found[name], tensor, rtol=2**-7 if dtype == torch.bfloat16 else 0, atol=2e-6), name
    assert torch.equal(found["steps"], base["steps"])


def test_export_can_be_made_again_from_its_own_recipe(tmp_path):
    pool = adapter_pool(tmp_path, factors(Q))
    export(merge("task_arithmetic", ["maths", "code"]), pool, tmp_path / "out")
    file = strict_yaml.read(tmp_path / "out" / "recipe.yaml")
    again = Pool(file["pool"]["base"], file["pool"]["experts"])
    assert again.digests == pool.digests
    made = Builder(again).build(Recipe.parse(file["recipe"], experts=list(again.experts)))
    exported = Folder(tmp_path / "out")
    assert all(same_bytes(made.tensor(name), exported.tensor(name)) for name in exported.info)


def test_factors_merged_apart_would_be_another_model(tmp_path):
    """Halves of two adapters: ½(B₁A₁ + B₂A₂), not ½(B₁ + B₂)·½(A₁ + A₂), which has cross terms."""
    base = {"q.weight": draw(8, 6)}
    write_checkpoint(tmp_path / "base", base)
    one, two = (factors("q", shape=(8, 6), seed=seed) for seed in (10, 20))
    experts = {name: write_adapter(tmp_path / name, t, lora_alpha=2) for name, t in (("one", one), ("two", two))}
    recipe = merge("task_arithmetic", ["one", "two"], {"lambda": 0.5})
    found = Builder(Pool(tmp_path / "base", experts)).build(recipe).tensor("q.weight")
    (a1, b1), (a2, b2) = one.values(), two.values()
    assert torch.allclose(found, base["q.weight"] + 0.5 * (b1 @ a1 + b2 @ a2), atol=2e-6)
    assert not torch.allclose(found, base["q.weight"] + 0.25 * (b1 + b2) @ (a1 + a2), atol=0.1)


def test_adapter_runs_as_a_model_and_is_saved_as_one(tmp_path):
    tiny_model(tmp_path / "base", "llama")
    shapes = Folder(tmp_path / "base").info
    modules = [name.removesuffix(".weight") for name in shapes if name.endswith(("q_proj.weight", "down_proj.weight"))]
    tensors = {}
    for i, module in enumerate(modules):
        tensors |= factors(module, shape=shapes[f"{module}.weight"].shape, seed=2 * i)
    pool = Pool(tmp_path / "base", {"maths": write_adapter(tmp_path / "maths", tensors)})
    recipe = expert("maths")
    live = LiveModel(tmp_path / "base")
    live.write(Builder(pool).build(recipe))
    save(Builder(pool).build(recipe), tmp_path / "saved", like=tmp_path / "base")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").state_dict()
    for name, tensor in live.module.state_dict().items():
        assert torch.equal(tensor, loaded[name])
    for module in modules:
        expected = exact(pool.base.tensor(f"{module}.weight"), tensors, module, 1.5)
        np.testing.assert_allclose(loaded[f"{module}.weight"], expected, rtol=0, atol=5e-6)


def test_a_search_makes_each_product_once(tmp_path, monkeypatch):
    """Its candidates read what the first of them made; a single merge keeps nothing."""
    pool = adapter_pool(tmp_path, factors("q", shape=(8, 6)), {"q.weight": draw(8, 6)})
    made = []
    tensor = Adapter.tensor
    monkeypatch.setattr(Adapter, "tensor", lambda self, name: made.append(name) or tensor(self, name))
    found = {}
    for search in (True, False):
        builder = Builder(pool, search=search)
        found[search] = [
            builder.build(merge("task_arithmetic", list(pool.experts), {"lambda": scale})).tensor("q.weight")
            for scale in (0.5, 0.7, 0.9)
        ]
        assert made == ["q.weight"] * (1 if search else 3)
        made.clear()
    assert all(same_bytes(*pair) for pair in zip(*found.values(), strict=True))
