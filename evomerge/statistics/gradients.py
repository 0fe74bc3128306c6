"""Statistics of gradients: the diagonal Fisher information of each element, and the mean gradient.

A Fisher information is the mean over examples of squared gradients, each of one example: the square of a batch's gradient would
have the products of its examples too. F = E_x E_y (∂ log p(y|x) / ∂θ)² (Matena and Raffel, https://arxiv.org/abs/2111.09832, eq. 4).
Of a sequence, log p(y|x) is the sum over its tokens, each given the right tokens before it.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from evomerge.merging import Tables, Watch
from evomerge.statistics.statistic import Statistic, Subject
from evomerge.tasks.data import task_error

Terms = Callable[[Subject, int], Iterator[tuple[float, Tensor]]]
"""(subject, example) → weights, each with a number with a graph, whose gradients are summed."""

_MOST_OUTCOMES = 1024
"""Most outcomes of one prediction, for each of which `exact` goes back through the model."""


def _exact(subject: Subject, example: int) -> Iterator[tuple[float, Tensor]]:
    """Yield each outcome's log-probability, with its probability."""
    logs, _ = subject.task.predictions(subject.live, "search", example)
    if len(logs) > 1 or logs.shape[1] > _MOST_OUTCOMES:
        msg = (
            f"example {example} has {len(logs)} predictions of {logs.shape[1]} outcomes each, and `estimate: exact` goes back through the "
            f"model for each outcome of one prediction, of at most {_MOST_OUTCOMES}; type `estimate: sampled`"
        )
        raise task_error(subject.task.name, msg)
    yield from zip(logs[0].detach().exp().tolist(), logs[0].unbind(), strict=True)


def _sampled(subject: Subject, example: int) -> Iterator[tuple[float, Tensor]]:
    """Yield the log-probability of outcomes drawn from the model's own prediction, which depend on nothing else."""
    logs, _ = subject.task.predictions(subject.live, "search", example)
    key = hashlib.sha256(f"{subject.seed}\n{example}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
    drawn = torch.multinomial(logs.detach().double().cpu().exp(), 1, generator=generator)
    yield 1.0, logs.gather(1, drawn.to(logs.device)).sum()


def _right(subject: Subject, example: int) -> Iterator[tuple[float, Tensor]]:
    """Yield the log-probability of the right outcomes."""
    logs, right = subject.task.predictions(subject.live, "search", example)
    yield 1.0, logs.gather(1, right.to(logs.device)[:, None]).sum()


def _entropy(subject: Subject, example: int) -> Iterator[tuple[float, Tensor]]:
    """Yield the mean entropy of the predictions, which needs no labels."""
    logs, _ = subject.task.predictions(subject.live, "search", example)
    yield 1.0, -(logs.exp() * logs).sum(1).mean()


def _collector(terms: Terms, field: str, *, squared: bool) -> Callable[[Subject, Watch], dict[str, Tables]]:
    """Return a collector of the mean over examples of gradients, or of their squares."""

    def collect(subject: Subject, watch: Watch) -> dict[str, Tables]:
        live = subject.live
        tensors = [
            name for name in dict.fromkeys(m.tensor for m in subject.matrices.values()) if live.has_gradient(name)
        ]
        sums = {name: torch.zeros(subject.shapes[name], device=live.device) for name in tensors}
        pieces = Counter(mapping.source for mapping in live.mappings)
        waiting: dict[str, Tensor] = {}
        weight = 1.0

        def add(name: str, gradient: Tensor) -> None:
            if squared:
                sums[name].addcmul_(gradient, gradient, value=weight)
            else:
                sums[name].add_(gradient, alpha=weight)

        def take(name: str, gradient: Tensor) -> None:
            wide = gradient.detach().float()
            if pieces[name] > 1 and squared:  # its gradient is the sum of several
                waiting[name] = wide if name not in waiting else waiting[name] + wide
            else:
                add(name, wide)

        with live.gradients(tensors, take), torch.enable_grad():
            for done, example in enumerate(subject.examples):
                watch("examples", done, len(subject.examples))
                for weight, value in terms(subject, example):  # noqa: B007  # `add` reads it
                    value.backward(retain_graph=True)  # type: ignore[no-untyped-call]  # the library has no types here
                    for name, gradient in waiting.items():
                        add(name, gradient)
                    waiting.clear()
        tables: dict[str, Tables] = {}
        for name, matrix in subject.matrices.items():
            if matrix.tensor in sums:
                mean = sums[matrix.tensor].cpu() / len(subject.examples)
                tables[name] = {field: matrix.of(mean).contiguous()}
        return tables

    return collect


def _sample(field: str) -> Callable[[tuple[int, ...], torch.Generator], Tables]:
    def sample(shape: tuple[int, ...], generator: torch.Generator) -> Tables:
        normal = torch.randn(shape, generator=generator)
        return {field: normal.square() if field == "square" else normal}

    return sample


def _elements(shape: tuple[int, ...]) -> int:
    return 4 * torch.Size(shape).numel()


def _fisher(terms: Terms, labels: str) -> Statistic:
    about = f"`square`, the mean over examples of the squared gradient of log p(y|x), for {labels}, float32 of the tensor's shape"
    return Statistic(about, _collector(terms, "square", squared=True), _elements, _sample("square"))


def _mask_sample(shape: tuple[int, ...], generator: torch.Generator) -> Tables:
    return {"logits": torch.randn(shape, generator=generator)}


GRADIENTS = {
    "fisher_exact": _fisher(_exact, "each y by its probability under the model"),
    "fisher_sampled": _fisher(_sampled, "y drawn from the model's prediction, of a sequence for each token"),
    "fisher_empirical": _fisher(_right, "the right y"),
    "gradient": Statistic(
        "`mean`, the mean over examples of the gradient of log p(y|x) for the right y, float32 of the tensor's shape",
        _collector(_right, "mean", squared=False),
        _elements,
        _sample("mean"),
    ),
    "mask": Statistic(
        "`logits`, of a mask that all task vectors share, float32 of the tensor's shape, learnt on the examples of all experts without their "
        "labels; `experts`, the number of experts",
        _collector(_entropy, "slope", squared=False),
        _elements,
        _mask_sample,
        of_mask=True,
    ),
}
"""The statistics of gradients, by name."""
