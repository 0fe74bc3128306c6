"""What all tests share: a cache of their own, tiny pools, and zoos that are built once."""

import os
from contextlib import contextmanager
from functools import partial

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test asks the real hub

import pytest
import torch
from hypothesis import settings
from pools import Models, RandomEvidence, write_pool

from evomerge import zoo
from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.zoo import digits
from evomerge.zoo.store import cache_folder, publish

settings.register_profile("house", deadline=None, max_examples=60)
settings.load_profile("house")


def pytest_collection_modifyitems(items):
    """Let what shares fixtures run in one process, and what starts Ray, which takes all cores, in one too.

    The longest test is the first, so that no process waits for it in the end.
    """
    items.sort(key=lambda item: item.path.name != "test_readme.py")
    for item in items:
        alone = item.get_closest_marker("ray") is not None
        item.add_marker(pytest.mark.xdist_group("ray" if alone else str(item.path)))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Keep out of the user's cache, in this process and in those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        yield os.environ["XDG_CACHE_HOME"]


@pytest.fixture(autouse=True)
def _one_thread():
    """Leave the cores to others, and the number of threads as it was."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_digits(_own_cache):
    """The digits zoo after little training."""
    with digits_cut_short(600, 200, 200):
        return publish(digits.plan(small=True), cache_folder(), 0, lambda done, doing: None)


_all_digits, _Settings = digits._digits, digits.Settings


@contextmanager
def digits_cut_short(train, search, report):
    """Build zoos of digits with so many examples in each split: what is tested are searches, many of them."""
    images, labels = _all_digits()  # also inside another cut
    last = train + search + report
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "_digits", lambda: (images[:last], labels[:last]))
        patch.setattr(digits, "Settings", partial(_Settings, train=train, search=search))
        yield patch


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory):
    """The digits zoo by its name, for documents."""
    with digits_cut_short(400, 100, 100) as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("few_digits")))
        yield zoo.find_or_build("digits", progress=lambda done, step: None)


@pytest.fixture(scope="session")
def cluster(_own_cache):
    """A Ray cluster on this machine, for all tests of this process: starting one takes ten seconds."""
    import ray

    from evomerge.evaluate.ray import connect

    assert connect(cpus=4)  # room for two evaluators at a time
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def models():
    """The tensors of a tiny base and its experts."""
    return Models.random(experts=3)


@pytest.fixture(scope="session")
def pool_folder(models, tmp_path_factory):
    """A folder with the checkpoints `base`, `maths`, `code` and `prose`; do not write into it."""
    return write_pool(tmp_path_factory.mktemp("pool"), models)


@pytest.fixture(scope="session")
def pool(pool_folder, models):
    """A pool of a tiny base and three experts, with random statistics of them."""
    pool = Pool(pool_folder / "base", {name: pool_folder / name for name in models.experts})
    pool.evidence = RandomEvidence(models.base)
    return pool


@pytest.fixture
def builder(pool):
    """A fresh builder of the tiny pool's recipes."""
    return Builder(pool)


@pytest.fixture
def resnet(tmp_path):
    """A network of convolutions with batch norms whose statistics differ, saved in a folder."""
    import transformers

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
