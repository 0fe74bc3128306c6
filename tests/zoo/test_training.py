"""Training of the zoo's models: the same bits with any number of threads."""

import copy
from functools import partial

import torch
from torch import nn
from torch.nn.functional import mse_loss

from evomerge.zoo.training import reproducible, side_by_side, train


def fit(start, seed, progress):
    model = copy.deepcopy(start)
    inputs = torch.randn(20, 4, generator=torch.Generator().manual_seed(seed))
    train(
        model,
        lambda chosen: mse_loss(model(inputs[chosen]), inputs[chosen, :2]),
        examples=20,
        steps=30,
        batch=8,
        rate=0.05,
        seed=seed,
        progress=progress,
    )
    return model


def fit_three(processors, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: processors)
    told = []
    with reproducible(0):
        start = nn.Linear(4, 2)
        models = side_by_side({str(seed): partial(fit, start, seed) for seed in range(3)}, told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0
    return {name: model.weight for name, model in models.items()}


def test_number_of_processors_has_no_effect(monkeypatch):
    one, many = fit_three(1, monkeypatch), fit_three(4, monkeypatch)
    assert list(one) == list(many) == ["0", "1", "2"]
    assert all(torch.equal(one[name], many[name]) for name in one)
    assert not torch.equal(one["0"], one["1"])


def test_training_reaches_the_target():
    with reproducible(1):
        model = fit(nn.Linear(4, 2), 0, lambda share: None)
    assert torch.allclose(model.weight, torch.eye(4)[:2], atol=0.2)


def test_jobs_use_one_thread_each_and_the_number_of_threads_is_restored():
    before = torch.get_num_threads()
    with reproducible(0):
        counts = side_by_side({name: lambda tell: torch.get_num_threads() for name in "ab"}, lambda share: None)
    assert set(counts.values()) == {1}
    assert torch.get_num_threads() == before
