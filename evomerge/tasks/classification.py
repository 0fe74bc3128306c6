"""Classification of texts or images: accuracy, and the log-likelihood of the label.

With a head, the model is an encoder, and the head is the task's own and frozen, as CLIP's zero-shot heads
are: so that tasks with different classes share a model. Without a head the model's own logits are scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from evomerge.checkpoints.folder import read_header
from evomerge.errors import TaskError, nearest
from evomerge.models import LiveModel
from evomerge.models.live import PRECISIONS
from evomerge.tasks.batches import by_length, pad
from evomerge.tasks.causal import check_length
from evomerge.tasks.data import Columns, indices, read_splits, texts
from evomerge.tasks.task import Scores, SplitTask, TaskSettings, choose_metrics, vector
from evomerge.trial import Split

_IMAGE_AXES = 3


class ClassificationSettings(TaskSettings):
    """`kind: classification`."""

    kind: Literal["classification"]
    search: Path
    report: Path
    input: str
    """The column of texts, or of images as nested lists `(channels, height, width)`."""
    label: str
    """The column of class numbers, from 0."""
    head: Path | None = None
    """Safetensors with `weight` `(classes, width)`, and optionally `bias` `(classes,)`, `mean` `(width,)` and `scale` `()`."""
    max_length: int = Field(default=128, ge=1)
    """Tokens after which a text is cut."""
    batch: int = Field(default=64, ge=1)
    metrics: tuple[Literal["accuracy", "log_likelihood"], ...] = ("accuracy", "log_likelihood")
    """What is scored."""
    keep_margins: bool = False
    """Keep how far the label's logit is above that of each other class, too: driver `front` predicts accuracy from it, with
    half the error and less. Four bytes for each example and class, in each candidate's record."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Examples that run together: their places among those scored, and what the model is given."""

    places: Tensor
    given: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Head:
    """A frozen linear classifier on the direction of the mean hidden state.

    logits = scale · (h - mean) / |h - mean| @ weightᵀ + bias, with h the mean of the last hidden states that
    are not padding.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor

    def __call__(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return logits `(batch, classes)` for hidden states `(batch, tokens, width)` and their mask `(batch, tokens)`."""
        weights = mask.to(hidden)[:, :, None]
        pooled = (hidden * weights).sum(1) / weights.sum(1)
        return self.scale * normalize(pooled - self.mean, dim=1) @ self.weight.T + self.bias


class Classification(SplitTask):
    """Texts or images, each with one of a few classes."""

    def __init__(self, name: str, settings: ClassificationSettings, folder: Path) -> None:
        """Read and check the examples and the head. Raises `TaskError`."""
        splits = read_splits(name, settings.search, settings.report, (settings.input, settings.label), folder)
        super().__init__(
            name,
            settings,
            metrics=choose_metrics(settings.metrics, settings.keep_margins),
            sizes={split: len(columns[settings.label]) for split, columns in splits.items()},
        )
        self._settings = settings
        self._head = None if settings.head is None else _read_head(name, folder / settings.head)
        classes = None if self._head is None else len(self._head.weight)
        self._labels = {
            split: torch.tensor(
                indices(name, settings.label, columns[settings.label], [classes] * len(columns[settings.label]))
            )
            for split, columns in splits.items()
        }
        self._inputs: dict[Split, list[str] | Tensor] = {
            split: _inputs(name, settings.input, columns) for split, columns in splits.items()
        }
        self._tokens: dict[tuple[Split, Path], list[list[int]]] = {}
        self._whole: dict[tuple[Split, Path], list[_Batch]] = {}

    @torch.inference_mode()
    def score(self, model: LiveModel, split: Split, examples: Sequence[int] | None = None) -> Scores:
        """Return the metrics of each example, the log-likelihood of the label in nats; `margins` if they are kept.

        `margins` are `(examples, classes - 1)`, in the order of the classes: `accuracy` is 1 where all are positive.
        """
        labels = self._labels[split]
        if examples is None:
            batches = self._whole.get((split, model.folder)) or self._batches(model, split, self.indices(split, None))
            self._whole[split, model.folder] = batches
        else:
            numbers = self.indices(split, examples)
            labels, batches = labels[numbers], self._batches(model, split, numbers)
        logits = self._logits(model, batches)
        classes = logits.shape[1]
        if int(labels.max()) >= classes:
            msg = f"label {int(labels.max())} in the {split} split, but the model has {classes} classes; another model or a `head` is needed"
            raise self.error(msg)
        measures = {"accuracy": _accuracy, "log_likelihood": _log_likelihood}
        scores = {metric: vector(measures[metric](logits, labels)) for metric in self.metrics}
        return Scores(scores, {"margins": vector(_margins(logits, labels))} if self._settings.keep_margins else {})

    def _batches(self, model: LiveModel, split: Split, numbers: Sequence[int]) -> list[_Batch]:
        """Return what the model is given for these examples of a split."""
        inputs = self._inputs[split]
        if isinstance(inputs, Tensor):
            return [
                _Batch(torch.tensor(batch), {"pixel_values": inputs[[numbers[i] for i in batch]]})
                for batch in by_length([0] * len(numbers), self._settings.batch)
            ]
        tokens = self._tokenised(model, split, inputs)
        made = []
        for batch in by_length([len(tokens[number]) for number in numbers], self._settings.batch):
            ids, mask = pad([tokens[numbers[i]] for i in batch], model.tokenizer.pad_token_id)
            made.append(_Batch(torch.tensor(batch), {"input_ids": ids, "attention_mask": mask}))
        return made

    def _logits(self, model: LiveModel, batches: Sequence[_Batch]) -> Tensor:
        """Return the logits of the examples, fp32 `(examples, classes)` on the CPU."""
        precision = PRECISIONS[model.precision]
        parts = []
        for batch in batches:
            given = {
                name: tensor.to(model.device, precision if tensor.is_floating_point() else tensor.dtype)
                for name, tensor in batch.given.items()
            }
            parts.append(self._run(model, given))
        logits = torch.cat(parts)
        found = torch.empty_like(logits)
        found[torch.cat([batch.places for batch in batches])] = logits
        return found

    def _run(self, model: LiveModel, given: Mapping[str, Tensor]) -> Tensor:
        if self._head is None:
            found = model.module(**given)
            logits = found if isinstance(found, Tensor) else getattr(found, "logits", None)
            if logits is None or logits.ndim != 2:  # (batch, classes)
                msg = (
                    f"{type(model.module).__name__} does not classify; set `auto` to a class that does, such as "
                    "AutoModelForSequenceClassification, or give the task a `head`; a `module` of your own returns logits"
                )
                raise self.error(msg)
            return torch.as_tensor(logits.float().cpu())
        hidden = model.module.base_model(**given).last_hidden_state.float().cpu()
        width = self._head.weight.shape[1]
        if hidden.shape[2] != width:
            msg = f"the head is for hidden states of width {width}, the model's have {hidden.shape[2]}"
            raise self.error(msg)
        mask = given["attention_mask"].cpu() if "attention_mask" in given else torch.ones(hidden.shape[:2])
        return self._head(hidden, mask)

    def _tokenised(self, model: LiveModel, split: Split, inputs: Sequence[str]) -> list[list[int]]:
        """Return the tokens of all texts of a split, made once for all candidates of a base."""
        key = (split, model.folder)
        if key not in self._tokens:
            made = model.tokenizer(list(inputs), truncation=True, max_length=self._settings.max_length)["input_ids"]
            check_length(self.name, model, max(map(len, made)))
            self._tokens[key] = made
        return self._tokens[key]


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    right = (logits.argmax(1) == labels).float()
    if bool(logits.sum().isfinite()):  # only if all are
        return right
    return torch.where(logits.isfinite().all(1), right, torch.nan)


def _log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.log_softmax(1).gather(1, labels[:, None])[:, 0]


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    own = labels[:, None]
    others = torch.arange(logits.shape[1]) != own
    return (logits.gather(1, own) - logits)[others].reshape(len(labels), -1)


def _inputs(task: str, column: str, columns: Columns) -> list[str] | Tensor:
    """Return the texts, or the images as fp32 `(examples, channels, height, width)`."""
    values = columns[column]
    if isinstance(values[0], str):
        return texts(task, column, values)
    try:
        images = torch.tensor(np.array(values, dtype=np.float32))
    except (TypeError, ValueError):
        msg = f"task `{task}`: column `{column}`: expected texts, or arrays of numbers of one shape (channels, height, width)"
        raise TaskError(msg) from None
    if images.ndim != 1 + _IMAGE_AXES or not bool(images.isfinite().all()):
        what = (
            f"arrays of shape {list(images.shape[1:])}"
            if images.ndim != 1 + _IMAGE_AXES
            else "numbers that are not finite"
        )
        msg = f"task `{task}`: column `{column}`: expected images (channels, height, width), got {what}"
        raise TaskError(msg)
    return images


def _read_head(task: str, path: Path) -> Head:
    """Return the head in a safetensors file, in fp32. Raises `TaskError`."""
    if not path.is_file():
        msg = f"task `{task}`: no such file: {path}; expected the head as safetensors"
        raise TaskError(msg)
    known = {"weight", "bias", "mean", "scale"}
    for name in read_header(path):
        if name not in known:
            msg = f"task `{task}`: {path}: unknown tensor `{name}`; {nearest(name, known)}"
            raise TaskError(msg)
    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    weight = tensors.get("weight")
    if weight is None or weight.ndim != 2:  # (classes, width)
        msg = f"task `{task}`: {path}: expected a tensor `weight` of shape (classes, width)"
        raise TaskError(msg)
    classes, width = weight.shape
    shapes: dict[str, Any] = {"bias": (classes,), "mean": (width,), "scale": ()}
    for name, tensor in tensors.items():
        expected = tuple(shapes.get(name, weight.shape))
        if tuple(tensor.shape) != expected and not (name == "scale" and tensor.numel() == 1):
            msg = f"task `{task}`: {path}: expected `{name}` of shape {list(expected)}, got {list(tensor.shape)}"
            raise TaskError(msg)
        if not bool(tensor.isfinite().all()):
            msg = f"task `{task}`: {path}: `{name}` holds numbers that are not finite"
            raise TaskError(msg)
    return Head(
        weight,
        tensors.get("bias", torch.zeros(classes)),
        tensors.get("mean", torch.zeros(width)),
        tensors.get("scale", torch.ones(())).reshape(()),
    )
