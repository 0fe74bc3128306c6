"""Statistics of gradients by hand, and against autograd over the whole model at once."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from subjects import jsonl, subject_of

from evomerge import tasks
from evomerge.errors import TaskError
from evomerge.merging import unwatched
from evomerge.models import LiveModel
from evomerge.statistics import STATISTICS, Subject

LOGISTIC = """
import torch

class Logistic(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))

    def forward(self, pixel_values):
        x = pixel_values.flatten(1)
        return torch.cat([torch.zeros_like(x), self.w * x], 1)

def make(folder):
    return Logistic()
"""
BY_HAND = [
    # (w, exact, empirical), of the specification
    (0.0, 0.625, 0.625),
    (1.0, 0.308293, 1.587772),
]


def logistic(folder, w):
    (folder / "made.py").write_text(LOGISTIC, encoding="utf-8")
    (folder / "model").mkdir()
    save_file({"w": torch.tensor([w])}, folder / "model" / "model.safetensors")
    (folder / "model" / "config.json").write_text('{"model_type": "own"}', encoding="utf-8")
    rows = [{"x": [[[1.0]]], "y": 1}, {"x": [[[2.0]]], "y": 0}]
    paths = {"search": jsonl(folder / "s.jsonl", rows), "report": jsonl(folder / "r.jsonl", [{"x": [[[3.0]]], "y": 1}])}
    task = tasks.make("t", {"kind": "classification", "input": "x", "label": "y", **paths}, folder)
    live = LiveModel(folder / "model", module=f"{folder / 'made.py'}:make")
    return subject_of(folder / "model", task, live=live)


@pytest.mark.parametrize(("w", "exact", "empirical"), BY_HAND)
def test_logistic_regression_by_hand(tmp_path, w, exact, empirical):
    subject = logistic(tmp_path, w)
    for kind, expected in (("fisher_exact", exact), ("fisher_empirical", empirical)):
        found = STATISTICS[kind].collect(subject, unwatched)["w"]["square"]
        assert found.tolist() == pytest.approx([expected], abs=5e-7)


def test_sampled_labels_have_the_exact_fisher_information_on_average(tmp_path):
    """Each draw is p(1-p)x² on average; the mean of 400 draws is within four standard errors."""
    subject = logistic(tmp_path, 1.0)
    draws = []
    for i in range(400):
        drawn = Subject(subject.live, subject.task, subject.examples, subject.matrices, subject.shapes, f"draw {i}")
        draws.append(float(STATISTICS["fisher_sampled"].collect(drawn, unwatched)["w"]["square"]))
    assert np.mean(draws) == pytest.approx(0.308293, abs=4 * np.std(draws) / 20)
    assert len(set(draws)) > 1


def logs_of(subject, example):
    logs, right = subject.task.predictions(subject.live, "search", example)
    return logs, right


@pytest.mark.parametrize(
    ("architecture", "kind", "estimate"),
    [
        ("bert", "classification", "exact"),
        ("bert", "classification", "empirical"),
        ("llama_tied", "language_modelling", "empirical"),
        ("mixtral", "generation", "empirical"),
        ("llama", "multiple_choice", "exact"),
        ("gpt2", "multiple_choice", "empirical"),
    ],
)
def test_squares_are_of_each_example_by_itself(tiny, architecture, kind, estimate):
    """The oracle squares the module's own gradients, parameter by parameter, and sums them in float64."""
    subject = tiny(architecture, kind)
    found = STATISTICS[f"fisher_{estimate}"].collect(subject, unwatched)
    module = subject.live.module
    parameters = dict(module.named_parameters())
    expected = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    for p in parameters.values():
        p.requires_grad_()
    for example in subject.examples:
        logs, right = logs_of(subject, example)
        terms = (
            [(float(log.detach().exp()), log) for log in logs[0]]
            if estimate == "exact"
            else [(1.0, logs[range(len(right)), right].sum())]
        )
        for weight, term in terms:
            grads = torch.autograd.grad(term, list(parameters.values()), retain_graph=True, allow_unused=True)
            for name, grad in zip(parameters, grads, strict=True):
                expected[name] += 0 if grad is None else weight * grad.double().square() / len(subject.examples)
    for p in parameters.values():
        p.requires_grad_(requires_grad=False)
    squares = {name: float(table.sum()) for name, table in expected.items()}
    assert sum(float(tables["square"].double().sum()) for tables in found.values()) == pytest.approx(
        sum(squares.values()), rel=1e-5
    )
    for name in set(found) & set(expected):
        scale = float(expected[name].max())
        torch.testing.assert_close(found[name]["square"].double(), expected[name], rtol=1e-4, atol=1e-6 * scale)
    assert set(found) == set(subject.matrices)


def test_mean_gradient_is_that_of_the_mean_log_likelihood(tiny):
    subject = tiny("bert")
    found = STATISTICS["gradient"].collect(subject, unwatched)
    weight = subject.live.module.classifier.weight.requires_grad_()
    mean = sum(logs[0, right].sum() for logs, right in (logs_of(subject, i) for i in subject.examples)) / 5
    (expected,) = torch.autograd.grad(mean, [weight])
    weight.requires_grad_(requires_grad=False)
    torch.testing.assert_close(found["classifier.weight"]["mean"], expected, rtol=1e-5, atol=1e-7)


def test_exact_is_refused_for_texts_of_many_tokens(tiny):
    with pytest.raises(
        TaskError, match=r"task `maths`: example 0 has \d+ predictions of 99 outcomes.*type `estimate: sampled`"
    ):
        STATISTICS["fisher_exact"].collect(tiny("llama"), unwatched)


def test_a_function_has_no_labels(tmp_path, tiny):
    subject = tiny("bert")
    (tmp_path / "own_scores.py").write_text(
        "def score(model, split, examples):\n    return [0.0] * len(examples)\n", encoding="utf-8"
    )
    task = tasks.make("own", {"kind": "callable", "function": "own_scores:score", "search": 5, "report": 1}, tmp_path)
    own = Subject(subject.live, task, [0], subject.matrices, subject.shapes, "")
    with pytest.raises(TaskError, match="task `own`: kind `callable` has no predicted distribution and no labels"):
        STATISTICS["fisher_empirical"].collect(own, unwatched)
