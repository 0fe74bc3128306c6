"""Whether models can be merged: each expert by the pool's rules, all of them named."""

import json

import pytest
import torch
from pools import CONFIG, Models, write_checkpoint, write_pool
from tiny_models import tiny_model

from evomerge.checkpoints import folder as folders
from evomerge.checkpoints.compatibility import compare
from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.task_vectors import measure
from evomerge.errors import CheckpointError, PoolError


@pytest.fixture
def folder(tmp_path):
    """A base, one expert that can be merged with it, and some that cannot."""
    models = Models.random(experts=2)
    write_pool(tmp_path, models)
    maths = models.experts["maths"]
    name = next(name for name in maths if name.endswith("weight"))
    write_checkpoint(tmp_path / "wide", {**maths, name: torch.zeros(2, 2)})
    write_checkpoint(tmp_path / "packed", maths, CONFIG | {"quantization_config": {"quant_method": "gptq"}})
    write_checkpoint(tmp_path / "broken", {**maths, name: torch.full_like(maths[name], torch.nan)})
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle/pytorch_model.bin").touch()
    return tmp_path


def paths(folder, *names):
    return {name: str(folder / name) for name in names}


def test_every_expert_that_cannot_be_merged_has_the_pools_reason(folder):
    names = ("maths", "wide", "packed", "broken", "pickle")
    found = compare(str(folder / "base"), paths(folder, *names))
    assert [model.name for model in found.models] == ["base", *names]
    assert [model.name for model in found.refused] == ["wide", "packed", "broken", "pickle"]
    assert list(found.pool.experts) == ["maths"]
    for model in found.refused:
        with pytest.raises((PoolError, CheckpointError)) as error:
            Pool(folder / "base", paths(folder, model.name))
        assert model.problem == str(error.value)
    assert [model.kind for model in found.models] == ["full", "full", "full", "quantised", "full", "unreadable"]


def test_without_weights_only_what_headers_say_is_refused(folder):
    found = compare(str(folder / "base"), paths(folder, "maths", "wide", "broken"), weights=False)
    assert [model.name for model in found.refused] == ["wide"]
    assert found.pool.digests == {}


def test_a_base_that_cannot_be_merged_is_named_alone(folder):
    found = compare(str(folder / "packed"), paths(folder, "maths"))
    assert [model.name for model in found.refused] == ["base"]
    assert "the model is quantised" in found.models[0].problem
    assert found.pool is None


def test_dtypes_vocabulary_and_differences_are_said(folder):
    config = folder / "code/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rope_theta": 5.0}))
    _, code = compare(str(folder / "base"), paths(folder, "code"), weights=False).models
    assert code.dtypes["float32"] == sum(t.numel() for t in Models.random(2).base.values() if t.is_floating_point())
    assert code.vocabulary == CONFIG["vocab_size"]
    assert any("rope_theta" in note for note in code.notes)
    assert code.problem is None


def test_about_one_tensor_of_each_model_is_mapped_at_a_time(tmp_path, monkeypatch):
    models = [tiny_model(tmp_path / name, "llama", seed) for seed, name in enumerate(("base", "a", "b"))]
    mapped, most = {}, []
    read, forget = Folder.tensor, Folder.forget

    def counted(self, name):
        mapped.setdefault(id(self), {})[name] = self.info[name].nbytes
        most.append(sum(sum(sizes.values()) for sizes in mapped.values()))
        return read(self, name)

    def forgotten(self):
        mapped.pop(id(self), None)
        forget(self)

    monkeypatch.setattr(Folder, "tensor", counted)
    monkeypatch.setattr(Folder, "forget", forgotten)
    monkeypatch.setattr(folders, "_OPEN_BYTES", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    checked = compare(str(models[0]), {"a": str(models[1]), "b": str(models[2])})
    measure(checked.pool)
    largest = max(entry.nbytes for entry in checked.pool.base.info.values())
    assert len(most) > 4 * len(checked.pool.merged)
    assert max(most) <= 3 * largest
    assert not mapped
