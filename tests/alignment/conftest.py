"""Tiny models of several architectures, and their symmetries."""

import pytest
import torch
import transformers
from architectures import build

from evomerge.alignment import symmetry
from evomerge.models.live import LiveModel


@pytest.fixture(scope="session")
def symmetric(tmp_path_factory):
    """By architecture, a live model and its symmetry, found once; no test changes its weights."""
    transformers.utils.logging.disable_progress_bar()
    made = {}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            build(name, 0).save_pretrained(folder)
            live = LiveModel(folder)
            made[name] = live, symmetry(live)
        return made[name]

    return of


@pytest.fixture
def resnet(tmp_path):
    """A network of convolutions with batch norms whose statistics differ, saved in a folder."""
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=3
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.ResNetForImageClassification(config)
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
        model.save_pretrained(tmp_path / "resnet")
    return tmp_path / "resnet"
