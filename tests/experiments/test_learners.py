"""Learners that average with each other: who has which examples, who averages with which, when, and what it costs."""

import pytest
import torch
from shared.deep_perceptron import start
from shared.learners import (
    BATCH,
    DECAY,
    LEARNERS,
    LEAST,
    MOMENTUM,
    RATE,
    WHEN,
    Schedule,
    mixing,
    sent,
    shares,
    train,
)
from torch.nn.functional import cross_entropy

WIDTH = 4


@pytest.fixture(scope="module")
def data():
    drawn = torch.Generator().manual_seed(0)
    return torch.rand((600, 64), generator=drawn) * 16, torch.arange(600) % 10


@pytest.fixture(scope="module")
def owned(data):
    return shares(data[1], 1.0, 0)


def test_each_example_has_one_learner_and_each_learner_has_some(data):
    classes = {}
    for concentration in (0.3, 100.0):
        owned = shares(data[1], concentration, 0)
        assert torch.equal(torch.cat(owned).sort().values, torch.arange(600))
        assert min(map(len, owned)) >= LEAST
        classes[concentration] = sum(len(data[1][rows].unique()) for rows in owned)
    assert classes[0.3] < classes[100.0]


@pytest.mark.parametrize("by", ["pairs", "server"])
def test_averages_keep_the_mean_of_all_learners(by):
    matrix = mixing(by, torch.Generator().manual_seed(0))
    torch.testing.assert_close(matrix.sum(0), torch.ones(LEARNERS))
    torch.testing.assert_close(matrix.sum(1), torch.ones(LEARNERS))
    torch.testing.assert_close(matrix @ matrix, matrix)
    assert {int(row.count_nonzero()) for row in matrix} == {2 if by == "pairs" else LEARNERS}


def test_budgets_are_equal_and_lie_where_they_say():
    steps = {when: sorted(Schedule(rounds=rounds).steps(100)) for when, rounds in WHEN.items()}
    assert steps["never"] == []
    assert (steps["early"], steps["evenly"], steps["late"]) == ([10, 20], [50, 100], [90, 100])
    assert steps["each round"] == list(range(10, 101, 10))
    assert Schedule("server").steps(3) == {1, 2, 3}
    assert (sent("pairs", 10), sent("server", 10)) == (10 * LEARNERS, 20 * LEARNERS)


def test_a_server_after_each_step_is_sgd_with_the_mean_slope(data, owned):
    steps = 4
    states = train(WIDTH, 3, Schedule("server"), owned, data, steps, {steps})[steps]
    network = start(WIDTH, 300).double()
    optimiser = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    drawn, sizes = torch.Generator().manual_seed(30), torch.tensor([[len(rows)] for rows in owned])
    images, labels = data
    for _ in range(steps):
        places = (torch.rand((LEARNERS, BATCH), generator=drawn) * sizes).long()
        rows = torch.cat([mine[at] for mine, at in zip(owned, places, strict=True)])
        optimiser.zero_grad()
        cross_entropy(network(images[rows].double()), labels[rows]).backward()
        optimiser.step()
    for state in states:
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(state[name].double(), tensor, rtol=1e-4, atol=1e-6)


def test_pairs_share_weights_and_starts_differ_only_where_asked(data, owned):
    def first(schedule):
        return torch.stack([state["first.weight"] for state in train(WIDTH, 0, schedule, owned, data, 1, {1})[1]])

    alone, paired = first(Schedule(rounds=WHEN["never"])), first(Schedule())
    torch.testing.assert_close(paired.mean(0), alone.mean(0))
    assert len(paired.flatten(1).unique(dim=0)) == LEARNERS // 2
    assert first(Schedule(rounds=WHEN["never"], shared=False)).std(0).mean() > 10 * alone.std(0).mean()
