"""Adapters: W + s·B·A up to rounding, computed when it is requested; all other tensors are the base's or the adapter's."""

import math
import pickle

import numpy as np
import pytest
import torch
from adapters import SHAPES, UP, Q, base_tensors, draw, embedding_factors, exact, factors, opened, same_bytes
from hypothesis import given
from hypothesis import strategies as st
from pools import CONFIG, write_checkpoint

from evomerge.checkpoints import folder as folder_module
from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.folder import Folder
from evomerge.errors import CheckpointError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("module", [Q, UP, "model.conv", "model.wave"])
def test_weight_is_w_plus_s_b_a_in_fp32_or_wider(tmp_path, module, dtype):
    base, tensors = base_tensors(dtype), factors(module)
    adapter = opened(tmp_path, tensors, base)
    name = f"{module}.weight"
    wide = torch.promote_types(dtype, torch.float32)
    assert adapter.info[name].dtype == adapter.tensor(name).dtype == wide
    assert adapter.tensor(name).shape == adapter.info[name].shape == base[name].shape
    expected = exact(base[name], tensors, module, 3 / 2)
    np.testing.assert_allclose(
        adapter.tensor(name).double(), expected, rtol=0, atol=1e-14 if wide.itemsize == 8 else 2e-6
    )
    out = torch.empty(SHAPES[name], dtype=torch.bfloat16)
    adapter.write(name, out)
    assert torch.equal(out, adapter.tensor(name).bfloat16())


def test_embeddings_and_fan_in_fan_out_weights_are_transposed(tmp_path):
    base = base_tensors()
    embedding = embedding_factors("model.embed")
    tensor = opened(tmp_path / "embedding", embedding).tensor("model.embed.weight")
    a, b = (embedding[f"base_model.model.model.embed.lora_embedding_{x}"].double() for x in "AB")
    assert torch.allclose(
        tensor.double(), base["model.embed.weight"] + 1.5 * torch.einsum("rn,dr->nd", a, b), atol=2e-6
    )

    turned = factors(Q, transposed=True) | factors("model.conv")
    adapter = opened(tmp_path / "turned", turned, fan_in_fan_out=True)
    a, b = (turned[f"base_model.model.{Q}.lora_{x}.weight"].double() for x in "AB")
    expected = base[f"{Q}.weight"] + 1.5 * torch.einsum("ri,or->io", a, b)
    assert torch.allclose(adapter.tensor(f"{Q}.weight").double(), expected, atol=2e-6)
    np.testing.assert_allclose(  # a convolution has no other order
        adapter.tensor("model.conv.weight"), exact(base["model.conv.weight"], turned, "model.conv", 1.5), atol=2e-6
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
    tensor = opened(tmp_path, tensors, **config).tensor(f"{Q}.weight")
    np.testing.assert_allclose(tensor, exact(base_tensors()[f"{Q}.weight"], tensors, Q, scale), rtol=0, atol=3e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("alpha", [3, -3])
def test_zero_factor_gives_the_base_bit_for_bit(tmp_path, dtype, alpha):
    base = base_tensors(dtype)
    base[f"{Q}.weight"][:2] = torch.tensor([0.0, -0.0]).repeat(3)
    tensors = factors(Q)
    tensors[f"base_model.model.{Q}.lora_B.weight"].zero_()
    adapter = opened(tmp_path, tensors, base, lora_alpha=alpha)
    for name, entry in adapter.info.items():
        assert same_bytes(adapter.tensor(name), base[name].to(entry.dtype))


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
    adapter = opened(tmp_path, factors("q", 24, shape=(700, 500)), base, r=24)
    expected = adapter.tensor("q.weight")
    torch.set_num_threads(3)  # the fixture of all tests sets it back
    assert torch.equal(adapter.tensor("q.weight"), expected)


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
            adapter = Adapter(tmp_path / bias / f"{rslora}", Folder(tmp_path / bias / "base"))
            expected = net.state_dict()
            assert set(adapter.info) == set(expected)
            for name, tensor in expected.items():
                assert torch.allclose(adapter.tensor(name), tensor, rtol=1e-5, atol=2e-6), (bias, name)
            write_checkpoint(tmp_path / bias / "base", {k: v.detach().clone() for k, v in expected.items()})


def test_complete_tensors_replace_those_of_the_base(tmp_path):
    head, bias, embedding = draw(3, 6, seed=90), draw(8, seed=91).bfloat16(), draw(11, 6, seed=92)
    tensors = factors(Q) | embedding_factors("model.embed")
    tensors |= {
        "base_model.model.head.weight": head,
        "base_model.model.head.original_module.weight": draw(3, 6, seed=93),
        "base_model.model.head.modules_to_save.weight": head.clone(),
        f"base_model.model.{Q}.base_layer.bias": bias,
        "base_model.model.model.embed.base_layer.weight": embedding,
    }
    adapter = opened(tmp_path, tensors)
    assert same_bytes(adapter.tensor("head.weight"), head)
    assert same_bytes(adapter.tensor(f"{Q}.bias"), bias)
    assert adapter.info[f"{Q}.bias"].dtype == torch.bfloat16
    a, b = (tensors[f"base_model.model.model.embed.lora_embedding_{x}"] for x in "AB")
    assert torch.allclose(adapter.tensor("model.embed.weight"), embedding + 1.5 * (b @ a).T, atol=2e-6)
    assert adapter.changed == ("head.weight", "model.embed.weight", f"{Q}.bias", f"{Q}.weight")


def test_other_tensors_are_views_of_the_base(tmp_path):
    adapter = opened(tmp_path, factors(Q))
    for name in set(adapter.info) - set(adapter.changed):
        assert adapter.info[name] == adapter.base.info[name]
        assert adapter.tensor(name).data_ptr() == adapter.base.tensor(name).data_ptr()
    assert list(adapter.info) == list(adapter.base.info)
    assert adapter.config == CONFIG


def test_tensors_are_read_only_on_request(tmp_path, monkeypatch):
    adapter = opened(tmp_path, factors(Q))
    expected = adapter.tensor(f"{Q}.weight")
    adapter.forget()
    copy = pickle.loads(pickle.dumps(adapter))

    def fail(file, framework):
        raise OSError("gone")

    monkeypatch.setattr(folder_module, "safe_open", fail)
    again = opened(tmp_path, factors(Q))  # opening reads no tensor
    for closed in (again, copy, adapter):
        with pytest.raises(CheckpointError, match=r"cannot be opened .gone.; it was readable before"):
            closed.tensor(f"{Q}.weight")
    monkeypatch.undo()
    for reopened in (again, copy, adapter):
        assert torch.equal(reopened.tensor(f"{Q}.weight"), expected)


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
def test_one_prefix_more_or_less_is_recognised(tmp_path, in_base, in_adapter, wrapper):
    base = {f"{in_base}.weight": draw(8, 6), "norm.weight": draw(6)}
    tensors = {key.replace("base_model.model.", wrapper): t for key, t in factors(in_adapter, shape=(8, 6)).items()}
    assert opened(tmp_path, tensors, base).changed == (f"{in_base}.weight",)


def test_exact_name_takes_precedence_over_a_longer_one(tmp_path):
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


def test_two_targets_never_map_to_one_tensor(tmp_path):
    tensors = factors("model.q", shape=(8, 6)) | factors("q", shape=(8, 6))
    with pytest.raises(CheckpointError, match=r"changes `.*q.weight`, which the base"):
        opened(tmp_path, tensors, {"q.weight": draw(8, 6)})
