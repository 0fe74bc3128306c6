"""Symmetries: which units of real architectures can be reordered, and that nothing else is."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from architectures import ALIGNED, outputs

from evomerge.alignment import symmetry
from evomerge.errors import ModelError
from evomerge.models.live import LiveModel


def sizes(symmetry):
    """Return the size of each free unit and those of the units that it is within, sorted."""
    return sorted(
        (unit.size, tuple(symmetry.units[outer].size for outer in unit.within)) for unit in symmetry.units if unit.free
    )


@torch.no_grad()
def permuted(live, symmetry, seed):
    """Return another module with the units in a random order."""
    module = live.module
    permutations = symmetry.random(seed)
    state = {
        name: symmetry.permute(name, tensor, permutations) if name in symmetry.shapes else tensor
        for name, tensor in module.state_dict().items()
    }
    kept = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    other = type(module)(module.config).eval()
    other.load_state_dict(state)
    assert any(not torch.equal(state[name], kept[name]) for name in kept)
    return other


@pytest.mark.parametrize("name", ALIGNED)
def test_random_orders_of_all_units_give_the_same_outputs(name, symmetric):
    live, symmetry = symmetric(name)
    wanted = outputs(name, live.module)
    for seed in (1, 2):
        came = outputs(name, permuted(live, symmetry, seed))
        torch.testing.assert_close(came, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_decoder_has_its_stream_the_query_heads_of_a_group_value_dims_and_hidden_units(symmetric):
    _, symmetry = symmetric("llama")
    assert sizes(symmetry) == sorted([(16, ()), *[(2, ()), (8, ()), (24, ())] * 2])


def test_fused_projections_have_heads_and_the_dims_of_each_head(symmetric):
    # GPT-2 has no rotary embedding: the dims of queries with those of keys are free, too.
    _, symmetry = symmetric("gpt2")
    assert sizes(symmetry) == sorted([(16, ()), *[(2, ()), (8, (2,)), (8, (2,)), (64, ())] * 2])
    fused = symmetry.pieces["transformer.h.0.attn.c_attn.weight"]
    assert [piece.at[1].min() for piece in fused] == [0, 16, 32]


def test_rotated_dims_of_queries_and_keys_stay_in_order(symmetric):
    _, symmetry = symmetric("gpt_neox")  # which rotates 2 of 8 dims
    assert sizes(symmetry) == sorted([(16, ()), *[(2, ()), (6, (2,)), (8, (2,)), (24, ())] * 2])


def test_mixture_has_its_experts_and_the_hidden_units_of_each(symmetric):
    _, symmetry = symmetric("mixtral")
    assert sizes(symmetry) == sorted([(16, ()), *[(2, ()), (8, ()), (3, ()), (24, (3,))] * 2])
    experts = next(unit for unit in symmetry.units if unit.size == 3)
    assert [name.removeprefix("model.layers.0.mlp.") for name in experts.tensors] == [
        "gate.weight",
        "experts.gate_up_proj",
        "experts.down_proj",
    ]


def test_grouped_queries_are_reordered_with_their_key_and_within_it(tmp_path):
    settings = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 6, "num_key_value_heads": 3}
    config = transformers.LlamaConfig(
        **settings, head_dim=4, intermediate_size=12, vocab_size=32, max_position_embeddings=32
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    symmetry_ = symmetry(LiveModel(tmp_path))
    assert sizes(symmetry_) == sorted([(24, ()), (3, ()), (2, (3,)), (4, (3,)), (12, ())])


def test_channels_are_reordered_with_their_batch_norms(resnet):
    live = LiveModel(resnet)
    found = symmetry(live)
    assert sizes(found) == [(8, ()), (8, ()), (12, ()), (12, ())]
    running = {name for unit in found.units for name in unit.tensors if name.endswith("running_var")}
    assert running == {name for name in live.module.state_dict() if name.endswith("running_var")}


def test_weights_are_as_before(symmetric):
    live, _ = symmetric("vit")
    before = {name: tensor.clone() for name, tensor in live.module.state_dict().items()}
    symmetry(live)
    assert all(torch.equal(tensor, before[name]) for name, tensor in live.module.state_dict().items())


def test_identity_changes_nothing(symmetric):
    live, symmetry = symmetric("gpt2")
    for name, tensor in live.module.state_dict().items():
        assert torch.equal(symmetry.permute(name, tensor, symmetry.identity()), tensor)


def user_module(folder: Path, forward: str) -> LiveModel:
    code = f"""
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(4, 6), torch.nn.Linear(6, 2)
    def forward(self, x):
        {forward}
def make(folder):
    return Net()
"""
    folder.mkdir()
    (folder / "net.py").write_text(code)
    (folder / "config.json").write_text("{}")
    net = {"first.weight": (6, 4), "first.bias": (6,), "last.weight": (2, 6), "last.bias": (2,)}
    drawn = torch.Generator().manual_seed(0)
    from safetensors.torch import save_file

    save_file({name: torch.randn(shape, generator=drawn) for name, shape in net.items()}, folder / "model.safetensors")
    return LiveModel(folder, module=f"{folder / 'net.py'}:make")


INPUTS = [{"x": torch.linspace(-1, 1, 12).view(3, 4)}]


def test_module_of_the_user_is_followed_on_the_inputs_given(tmp_path):
    live = user_module(tmp_path / "net", "return self.last(torch.relu(self.first(x)))")
    assert sizes(symmetry(live, INPUTS)) == [(6, ())]


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        ("return self.last(torch.cumsum(self.first(x), 1))", "cumsum"),
        ("return self.last(self.first(x) * torch.arange(6))", "input"),
        ("return self.last(torch.roll(self.first(x), 1, 1))", "roll"),
    ],
)
def test_model_whose_units_have_an_order_is_refused_with_what_fixes_it(tmp_path, forward, why):
    live = user_module(tmp_path / "net", forward)
    with pytest.raises(ModelError, match=rf"no units of Net .*`first.weight`: .*{why}"):
        symmetry(live, INPUTS)


def test_inputs_of_a_module_of_the_user_must_be_given(tmp_path):
    with pytest.raises(ModelError, match="module of yours"):
        symmetry(user_module(tmp_path / "net", "return self.last(self.first(x))"))


def test_permutation_takes_the_source_of_each_target(tmp_path):
    live = user_module(tmp_path / "net", "return self.last(torch.relu(self.first(x)))")
    found = symmetry(live, INPUTS)
    bias = live.module.state_dict()["first.bias"]
    order = {0: np.array([5, 3, 1, 0, 2, 4])}
    assert torch.equal(found.permute("first.bias", bias, order), bias[torch.tensor([5, 3, 1, 0, 2, 4])])
