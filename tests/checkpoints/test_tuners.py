"""Every kind of adapter of PEFT, and every option of LoRA: equal to PEFT's own merge, or refused with what to do."""

import dataclasses
import json
import pickle

import pytest
import torch
from adapters import draw, factors, opened, write_adapter
from pools import write_checkpoint
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.tuners import TUNERS
from evomerge.errors import CheckpointError

peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),  # of PEFT's SHiRA
    pytest.mark.filterwarnings("ignore:Unsupported layer type"),  # LayerNorm, for which PEFT has a tuner
]


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.q, self.k = torch.nn.Embedding(11, 6), torch.nn.Linear(6, 8), torch.nn.Linear(8, 8, bias=False)
        self.norm, self.head = torch.nn.LayerNorm(8), torch.nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(self.norm(self.k(self.q(self.embed(ids)))))


ON = {"target_modules": ["q", "k"], "modules_to_save": ["head"]}
EQUAL = {
    "LoRA": lambda: peft.LoraConfig(r=2, lora_alpha=3, **ON),
    "LoRA of some layers": lambda: peft.LoraConfig(r=2, target_modules=r".*\.?q", exclude_modules=["k"]),
    "rsLoRA": lambda: peft.LoraConfig(r=2, use_rslora=True, **ON),
    "DoRA": lambda: peft.LoraConfig(r=2, use_dora=True, rank_pattern={"k": 3}, **ON),
    "LoHa": lambda: peft.LoHaConfig(r=2, alpha=3, rank_pattern={"k": 3}, alpha_pattern={"k": 5}, **ON),
    "LoKr": lambda: peft.LoKrConfig(r=2, alpha=3, decompose_factor=2, **ON),
    "LoKr, one factored": lambda: peft.LoKrConfig(r=1, alpha=3, **ON),
    "LoKr, both factored": lambda: peft.LoKrConfig(r=1, decompose_both=True, decompose_factor=4, **ON),
    "IA3": lambda: peft.IA3Config(feedforward_modules=["k"], **ON),
    "OFT": lambda: peft.OFTConfig(oft_block_size=2, r=0, **ON),
    "OFT by two terms": lambda: peft.OFTConfig(oft_block_size=2, r=0, num_cayley_neumann_terms=2, **ON),
    "OFT by Cayley": lambda: peft.OFTConfig(oft_block_size=2, r=0, use_cayley_neumann=False, **ON),
    "OFT with one block": lambda: peft.OFTConfig(oft_block_size=2, r=0, block_share=True, **ON),
    "HRA": lambda: peft.HRAConfig(r=2, **ON),
    "HRA orthogonalised": lambda: peft.HRAConfig(r=2, apply_GS=True, **ON),
    "HiRA": lambda: peft.HiraConfig(r=2, **ON),
    "SHiRA": lambda: peft.ShiraConfig(r=1, **ON),
    "VeRA": lambda: peft.VeraConfig(r=3, **ON),
    "LN tuning": lambda: peft.LNTuningConfig(target_modules=["norm"]),
}


@pytest.mark.parametrize("name", EQUAL)
def test_weights_are_those_of_pefts_own_merge(tmp_path, name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net = Net()
        base = {key: tensor.detach().clone() for key, tensor in net.state_dict().items()}
        write_checkpoint(tmp_path / "base", base)
        model = peft.get_peft_model(net, EQUAL[name]())
    for i, (_, parameter) in enumerate(model.named_parameters()):
        if parameter.requires_grad:
            parameter.data += 0.4 * draw(*parameter.shape, seed=i)
    model.save_pretrained(tmp_path / "adapter")
    expected = model.eval().merge_and_unload().state_dict()
    adapter = Adapter(tmp_path / "adapter", Folder(tmp_path / "base"))
    assert set(adapter.info) == set(expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(adapter.tensor(key), tensor, rtol=1e-5, atol=3e-6)
        assert adapter.tensor(key).shape == adapter.info[key].shape
    changed = {key for key in expected if not torch.equal(expected[key], base[key])}
    assert changed
    assert changed <= set(adapter.changed)
    copy = pickle.loads(pickle.dumps(adapter))
    assert all(torch.equal(copy.tensor(key), adapter.tensor(key)) for key in adapter.changed)


@pytest.mark.parametrize("kind", sorted({str(kind.value) for kind in peft.PeftType} - {"LORA", *TUNERS}))
def test_every_other_kind_is_refused_by_name(tmp_path, kind):
    write_checkpoint(tmp_path / "base", {"q.weight": draw(8, 6)})
    write_adapter(tmp_path / "adapter", factors("q", shape=(8, 6)), peft_type=kind)
    with pytest.raises(
        CheckpointError, match=rf"`peft_type` is '{kind}'; expected 'LORA' or one of .*merge_and_unload"
    ):
        Adapter(tmp_path / "adapter", Folder(tmp_path / "base"))


READ = {
    *("r", "lora_alpha", "use_rslora", "fan_in_fan_out", "ensure_weight_tying", "rank_pattern", "alpha_pattern"),
    *("init_lora_weights", "use_dora"),
}
HARMLESS = {  # they say how the factors are trained, where they are, or how they are loaded
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("target_modules", "exclude_modules", "lora_dropout", "bias", "modules_to_save", "layers_to_transform"),
    *("layers_pattern", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("qalora_group_size", "peft_type"),
}


@pytest.mark.parametrize(
    "option", sorted({field.name for field in dataclasses.fields(peft.LoraConfig)} - READ - HARMLESS)
)
def test_every_other_option_of_lora_is_refused_by_name(tmp_path, option):
    with pytest.raises(
        CheckpointError, match=rf"`{option}` is .*, so the weights may not be W \+ s·B·A alone; merge it"
    ):
        opened(tmp_path, factors("q", shape=(8, 6)), {"q.weight": draw(8, 6)}, **{option: {"any": 1}})


@pytest.mark.parametrize("kind", sorted(TUNERS))
def test_unknown_setting_of_another_kind_is_refused(tmp_path, kind):
    with pytest.raises(CheckpointError, match=rf"`newer` is True, .* {kind} .*; merge it"):
        opened(tmp_path, factors("q", shape=(8, 6)), {"q.weight": draw(8, 6)}, peft_type=kind, lora_alpha=0, newer=True)


def saved(folder, name):
    net = Net()
    write_checkpoint(folder / "base", {key: tensor.detach().clone() for key, tensor in net.state_dict().items()})
    peft.get_peft_model(net, EQUAL[name]()).save_pretrained(folder / "adapter")
    return folder / "adapter", load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "name", [name for name in EQUAL if "LoRA" not in name and "DoRA" not in name and name != "LN tuning"]
)
def test_adapter_of_a_base_of_other_shapes_is_refused(tmp_path, name):
    path, _ = saved(tmp_path, name)
    other = {
        key: draw(5, 9) if tensor.ndim == 2 else tensor
        for key, tensor in load_file(tmp_path / "base" / "model.safetensors").items()
    }
    write_checkpoint(tmp_path / "other", {**other, "head.weight": draw(3, 8)})
    with pytest.raises(
        CheckpointError, match=r"do not fit `[qk].weight`, \[5, 9\] in the base .*expected an adapter trained"
    ):
        Adapter(path, Folder(tmp_path / "other"))


def test_part_that_is_missing_is_refused(tmp_path):
    path, tensors = saved(tmp_path, "LoHa")
    del tensors["base_model.model.q.hada_w1_b"]
    save_file(tensors, path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"do not fit `q.weight`.*'hada_w1_b'"):
        Adapter(path, Folder(tmp_path / "base"))


def test_vera_without_its_projections_is_refused(tmp_path):
    path, tensors = saved(tmp_path, "VeRA")
    save_file(
        {key: tensor for key, tensor in tensors.items() if "vera_A" not in key}, path / "adapter_model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"no tensor `base_model.vera_A`, which PEFT draws anew"):
        Adapter(path, Folder(tmp_path / "base"))


def test_indices_outside_of_the_weight_are_refused(tmp_path):
    path, tensors = saved(tmp_path, "SHiRA")
    for number in (-1, 99):
        tensors["base_model.model.q.shira_indices"][0, 0] = number
        save_file(tensors, path / "adapter_model.safetensors")
        with pytest.raises(CheckpointError, match=r"the change of `q.weight`: .*(negative|out of range|out of bounds)"):
            Adapter(path, Folder(tmp_path / "base")).tensor("q.weight")


def test_dora_and_its_norms_come_together(tmp_path):
    path, tensors = saved(tmp_path, "DoRA")
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | {"use_dora": False}))
    with pytest.raises(CheckpointError, match="is of DoRA, but `use_dora` is not set"):
        Adapter(path, Folder(tmp_path / "base"))
    (path / "adapter_config.json").write_text(json.dumps(config))
    save_file(
        {key: tensor for key, tensor in tensors.items() if "magnitude" not in key}, path / "adapter_model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"has no magnitude beside it; .* the norms of DoRA"):
        Adapter(path, Folder(tmp_path / "base"))
