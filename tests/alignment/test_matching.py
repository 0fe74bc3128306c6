"""Matching: permuted copies are recovered exactly, and noise is seen through."""

import pytest
import torch
import transformers
from architectures import ALIGNED, build
from safetensors.torch import save_file

from evomerge.alignment import Permuted, match, matching, symmetry
from evomerge.checkpoints.folder import Computed, Folder
from evomerge.errors import ModelError
from evomerge.models.live import LiveModel


@pytest.fixture
def opened(symmetric):
    """By architecture, a checkpoint and its symmetry."""

    def of(name):
        live, symmetry = symmetric(name)
        return Folder(live.folder), symmetry

    return of


def shuffled(model, symmetry, seed):
    order = symmetry.random(seed)
    return Permuted(model, symmetry, lambda: order)


def apart(one, other):
    """Return the sum of squares of the differences of all weights."""
    return sum(
        float((one.tensor(name).double() - other.tensor(name).double()).square().sum())
        for name, entry in one.info.items()
        if entry.dtype.is_floating_point
    )


@pytest.mark.parametrize("name", ALIGNED)
def test_permuted_copy_is_recovered_exactly(name, opened):
    model, symmetry = opened(name)
    copy = shuffled(model, symmetry, 1)
    assert any(not torch.equal(copy.tensor(key), model.tensor(key)) for key in model.info)
    found = match(copy, model, symmetry)
    back = Permuted(copy, symmetry, lambda: found)
    for key in model.info:
        assert torch.equal(back.tensor(key), model.tensor(key)), key


def test_permuted_channels_are_recovered_with_their_batch_norms(resnet):
    model, found = Folder(resnet), symmetry(LiveModel(resnet))
    copy = shuffled(model, found, 1)
    order = match(copy, model, found)
    back = Permuted(copy, found, lambda: order)
    variance = next(name for name in model.info if name.endswith("running_var"))
    assert not torch.equal(copy.tensor(variance), model.tensor(variance))
    assert all(torch.equal(back.tensor(name), model.tensor(name)) for name in model.info)


@pytest.mark.parametrize("name", ["llama", "gpt2", "vit"])
def test_noisy_permuted_copy_comes_as_near_as_the_noise(name, opened, tmp_path):
    model, symmetry = opened(name)
    drawn = torch.Generator().manual_seed(0)
    noisy = {key: model.tensor(key) + 0.02 * torch.randn(model.info[key].shape, generator=drawn) for key in model.info}
    save_file(noisy, tmp_path / "model.safetensors")
    other = Folder(tmp_path)
    copy = shuffled(other, symmetry, 1)
    found = match(copy, model, symmetry)
    assert apart(copy, model) > 10 * apart(other, model)
    assert apart(Permuted(copy, symmetry, lambda: found), model) <= apart(other, model) * 1.0001


def test_unlike_models_come_nearer_and_the_same_order_is_found_again(opened, tmp_path):
    model, symmetry = opened("vit")
    build("vit", 7).save_pretrained(tmp_path)
    other = Folder(tmp_path)
    found, again = (match(other, model, symmetry) for _ in range(2))
    assert apart(Permuted(other, symmetry, lambda: found), model) < apart(other, model)
    assert all((found[unit] == again[unit]).all() for unit in found)


def test_each_turn_of_many_brings_a_model_nearer_to_the_others(opened, monkeypatch):
    model, symmetry = opened("gpt2")
    drawn = torch.Generator().manual_seed(0)

    def noisy():
        return {
            key: model.tensor(key) + 0.1 * torch.randn(model.info[key].shape, generator=drawn) for key in model.info
        }

    models = [shuffled(Computed(model.info, noisy().__getitem__), symmetry, seed) for seed in range(3)]
    turns = []

    def watched(source, to, symmetry, activations=None, *, start=None):
        found = match(source, to, symmetry, activations, start=start)
        if start is not None:
            before, after = (apart(Permuted(source, symmetry, lambda o=o: o), to) for o in (start, found))
            turns.append((before, after, found is start))
        return found

    monkeypatch.setattr(matching, "match", watched)
    matching.match_many(models, symmetry)
    assert all(after == before if same else after < before for before, after, same in turns)
    assert not all(same for _, _, same in turns)
    assert all(same for _, _, same in turns[-3:])


def test_models_of_other_widths_are_refused_with_the_tensor(opened, tmp_path):
    model, symmetry = opened("llama")
    config = transformers.LlamaConfig.from_pretrained(model.path, intermediate_size=20)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"mlp.down_proj.weight` has shape \[16, 20\].*\[16, 24\].*equal widths"):
        match(Folder(tmp_path), model, symmetry)
