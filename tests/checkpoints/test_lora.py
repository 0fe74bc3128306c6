"""An adapter's files: what is not plain LoRA on this base is refused before any tensor is read."""

import contextlib
import json

import pytest
import torch
from adapters import PLAIN, Q, base_tensors, draw, factors, opened, write_adapter
from hypothesis import HealthCheck, given, settings
from pools import write_checkpoint
from strategies import changed

from evomerge.checkpoints import folder as folder_module
from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.lora import is_adapter
from evomerge.errors import CheckpointError

A, B = (f"base_model.model.{Q}.lora_{x}.weight" for x in "AB")
REFUSED = [
    ({"peft_type": "BOFT"}, {}, r"`peft_type` is 'BOFT'; expected 'LORA'"),
    ({"peft_type": None}, {}, r"`peft_type` is None; expected 'LORA'"),
    ({"use_dora": True}, {}, r"lora_A.weight` has no magnitude beside it; .*the norms of DoRA"),
    (
        {"use_qalora": True},
        {},
        r"`use_qalora` is True, so the weights may not be W \+ s·B·A alone; merge it into its base",
    ),
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
    ({}, {f"base_model.model.{Q}.lora_magnitude_vector": draw(8)}, "is of DoRA, but `use_dora` is not set"),
    (
        {"use_dora": True},
        {f"base_model.model.{Q}.lora_magnitude_vector": draw(6)},
        r"norms \[6\] of DoRA for .*; expected \[8\]",
    ),
    ({}, {f"{Q}.lora_B.bias": draw(8)}, "changes `.*q.lora_B.bias`, which the base .* does not have"),
    (
        {},
        {"head.weight": draw(4, 6)},
        r"tensor `head.weight` has shape \[4, 6\], `head.weight` of the base .* \[3, 6\]",
    ),
]


@pytest.mark.parametrize(("config", "tensors", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_anything_but_plain_lora_on_this_base_is_refused_unread(tmp_path, monkeypatch, config, tensors, message):
    monkeypatch.setattr(folder_module, "safe_open", None)
    given_tensors = {key: tensor for key, tensor in (factors(Q) | tensors).items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, given_tensors, **config)


def test_folder_without_an_adapter_is_an_error_naming_the_missing_file(tmp_path):
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
    with pytest.raises(CheckpointError, match="expected a JSON object, got list"):
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


def test_complete_model_beside_an_adapter_is_no_adapter(tmp_path):
    write_adapter(tmp_path, factors(Q))
    assert is_adapter(tmp_path)
    write_checkpoint(tmp_path, base_tensors())
    assert not is_adapter(tmp_path)


CONFIG = PLAIN | {
    "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {"k": 3},
    "use_rslora": True,
    "fan_in_fan_out": False,
    "bias": "none",
    "target_modules": ["q"],
    "modules_to_save": None,
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(changed(CONFIG))
def test_any_configuration_is_read_or_refused(tmp_path, config):
    write_adapter(tmp_path / "adapter", factors(Q))
    if not (tmp_path / "base").exists():
        write_checkpoint(tmp_path / "base", base_tensors())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with contextlib.suppress(CheckpointError):
        adapter = Adapter(tmp_path / "adapter", Folder(tmp_path / "base"))
        for name in adapter.changed:
            adapter.tensor(name)
