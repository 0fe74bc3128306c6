"""Classification of texts or images: accuracy, the log-likelihood of the label, and the entropy of the prediction.

With a `head`, the model is an encoder and the task brings a frozen linear classifier, as CLIP's zero-shot heads: tasks
with different classes can share a model. Without a head the model's logits are scored.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from evomerge.checkpoints.header import read_header
from evomerge.errors import EvomergeError, nearest
from evomerge.models import LiveModel
from evomerge.models.live import PRECISIONS
from evomerge.tasks.batches import by_length, pad
from evomerge.tasks.causal import check_length, check_tokens
from evomerge.tasks.data import class_numbers, read_splits, task_error, texts
from evomerge.tasks.task import FileSettings, Part, Scores, Task, choose_metrics, joined, negative_entropy
from evomerge.trial import Split

_IMAGE_AXES = 3


class ClassificationSettings(FileSettings):
    """`kind: classification`.

    Example: `mood: {kind: classification, search: mood.search.jsonl, report: mood.report.jsonl, input: text, label: class}`
    """

    kind: Literal["classification"]
    input: str
    """The column of texts, or of images as nested lists `(channels, height, width)`."""
    label: str
    """The column of class numbers, from 0."""
    head: Path | None = None
    """Safetensors with `weight` `(classes, width)`, and optionally `bias` `(classes,)`, `mean` `(width,)` and `scale` `()`."""
    max_length: int = Field(default=128, ge=1)
    """Texts are truncated to this many tokens."""
    batch: int = Field(default=64, ge=1)
    """Number of examples that run together; another number changes the last bits of scores."""
    metrics: tuple[Literal["accuracy", "log_likelihood", "entropy"], ...] = ("accuracy", "log_likelihood")
    """The metrics to score: accuracy, log_likelihood, entropy; entropy also where it is searched or reported."""
    keep_margins: bool = False
    """Also record the label's logit minus that of each other class. Driver `front` predicts accuracy from these margins with
    at most half the error. Costs four bytes for each example and class in each candidate's record."""


_Batch = tuple[list[int], Mapping[str, Tensor]]
"""Examples that run together: their positions among those scored, and the model's keyword arguments."""


@dataclass(frozen=True, slots=True)
class Head:
    """A frozen linear classifier on the direction of the mean hidden state.

    logits = scale · (h - mean) / |h - mean| @ weightᵀ + bias, where h is the mean of the last hidden states without padding.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor

    def __call__(self, state: Tensor) -> Tensor:
        """Return logits `(batch, classes)` for mean hidden states `(batch, width)`."""
        return self.scale * normalize(state - self.mean, dim=1) @ self.weight.T + self.bias


def mean_state(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean without padding, `(batch, width)`, of hidden states `(batch, tokens, width)`; `mask` is 0 at padding."""
    weights = mask.to(hidden)[:, :, None]
    return (hidden * weights).sum(1) / weights.sum(1)


class Classification(Task):
    """A task of texts or images, each with one class.

    `accuracy` is 1 where the label has the largest logit; `log_likelihood` is the log-softmax of the label's logit over all
    classes, in nats; `entropy` is minus the entropy of the softmax of all logits, in nats, and does not use the label.
    """

    def __init__(self, name: str, settings: ClassificationSettings, folder: Path) -> None:
        """Read and check the examples and the head. Raises `TaskError`."""
        columns = (settings.input, settings.label)
        inputs, labels = read_splits(name, settings.paths, columns, folder)
        metrics = choose_metrics(settings, settings.metrics, settings.keep_margins)
        super().__init__(name, settings, metrics, inputs=inputs)
        self._settings = settings
        self._head = None if settings.head is None else _read_head(name, folder / settings.head)
        classes = None if self._head is None else len(self._head.weight)
        self._labels: dict[Split, Tensor] = {}
        self._inputs: dict[Split, list[str] | Tensor] = {}
        for split, values in labels.items():
            self._labels[split] = torch.tensor(class_numbers(name, settings.label, values, [classes] * len(values)))
            self._inputs[split] = _inputs(name, settings.input, inputs[split])
        self._tokens: dict[tuple[Split, Path], list[list[int]]] = {}

    def check(self, model: LiveModel) -> None:
        """Raise `TaskError` for texts or images that the model cannot read, for labels without a logit, and for a wrong head."""
        for split, inputs in self._inputs.items():
            if not isinstance(inputs, Tensor):
                check_tokens(self.name, model, self._tokenised(model, split, inputs))
            try:
                self.score(model, split, [int(self._labels[split].argmax())])
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                if isinstance(error, EvomergeError):
                    raise
                what = f"{type(model.module).__name__} cannot run its {split} examples: {type(error).__name__}: {error}"
                raise task_error(self.name, what) from error

    @torch.inference_mode()
    def score(self, model: LiveModel, split: Split, examples: Sequence[int] | None = None) -> Scores:
        """Return the metrics of each example, and `margins` if they are kept.

        `margins` are `(examples, classes - 1)`, in class order; `accuracy` is 1 where all are positive.
        """
        return joined((part.positions, part.scores) for part in self.parts(model, split, self.indices(split, examples)))

    def parts(self, model: LiveModel, split: Split, indices: Sequence[int]) -> Iterator[Part]:
        """Yield the scores of one batch after another."""
        for positions, inputs in self._batches(model, split, indices):
            labels = self._labels[split][[indices[i] for i in positions]]
            logits = self._logits(model, inputs)
            classes = logits.shape[1]
            if int(labels.max()) >= classes:
                msg = f"label {int(labels.max())} in the {split} split, but the model has {classes} classes; another model or a `head` is needed"
                raise task_error(self.name, msg)
            yield self.part(positions, *self._measured(logits, labels))

    def _measured(self, logits: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the metrics, and `margins` if they are kept, from logits `(batch, classes)` and labels `(batch,)`."""
        label = labels[:, None]
        values: dict[str, Tensor] = {}
        for metric in self.metrics:
            match metric:
                case "accuracy":
                    right = (logits.argmax(1) == labels).float()
                    values[metric] = torch.where(logits.isfinite().all(1), right, torch.nan)
                case "log_likelihood":
                    values[metric] = logits.log_softmax(1).gather(1, label)[:, 0]
                case "entropy":
                    values[metric] = negative_entropy(logits)
        if not self._settings.keep_margins:
            return values, {}
        margins = (logits.gather(1, label) - logits)[torch.arange(logits.shape[1]) != label]
        return values, {"margins": margins.reshape(len(labels), -1)}

    def _batches(self, model: LiveModel, split: Split, indices: Sequence[int]) -> list[_Batch]:
        inputs = self._inputs[split]
        if isinstance(inputs, Tensor):
            return [
                (positions, {"pixel_values": inputs[[indices[i] for i in positions]]})
                for positions in by_length([0] * len(indices), self._settings.batch)
            ]
        tokens = self._tokenised(model, split, inputs)
        batches: list[_Batch] = []
        for positions in by_length([len(tokens[index]) for index in indices], self._settings.batch):
            ids, mask = pad([tokens[indices[i]] for i in positions], model.tokenizer.pad_token_id)
            batches.append((positions, {"input_ids": ids, "attention_mask": mask}))
        return batches

    def _logits(self, model: LiveModel, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of a batch, fp32 `(batch, classes)` on the CPU."""
        precision = PRECISIONS[model.precision]
        inputs = {
            name: tensor.to(model.device, precision if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in inputs.items()
        }
        if self._head is None:
            output = model.module(**inputs)
            logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
            if logits is None or logits.ndim != 2:  # (batch, classes)
                msg = (
                    f"{type(model.module).__name__} does not classify; set `auto` to a class that does, such as "
                    "AutoModelForSequenceClassification, or give the task a `head`; a custom `module` must return logits"
                )
                raise task_error(self.name, msg)
            return torch.as_tensor(logits.float().cpu())
        hidden = model.module.base_model(**inputs).last_hidden_state.float().cpu()
        width = self._head.weight.shape[1]
        if hidden.shape[2] != width:
            msg = f"the head expects hidden states of width {width}, the model's have {hidden.shape[2]}"
            raise task_error(self.name, msg)
        mask = inputs["attention_mask"].cpu() if "attention_mask" in inputs else torch.ones(hidden.shape[:2])
        return self._head(mean_state(hidden, mask))

    def _tokenised(self, model: LiveModel, split: Split, inputs: Sequence[str]) -> list[list[int]]:
        """Return the token ids of all texts of a split, computed once for all candidates of a base."""
        key = (split, model.folder)
        if key not in self._tokens:
            tokens = model.tokenizer(list(inputs), truncation=True, max_length=self._settings.max_length)["input_ids"]
            check_length(self.name, model, max(map(len, tokens)))
            self._tokens[key] = tokens
        return self._tokens[key]


def _inputs(task: str, column: str, values: Sequence[Any]) -> list[str] | Tensor:
    """Return the texts, or the images as fp32 `(examples, channels, height, width)`."""
    if isinstance(values[0], str):
        return texts(task, column, values)
    try:
        images = torch.tensor(np.array(values, dtype=np.float32))
    except (TypeError, ValueError):
        msg = f"column `{column}`: expected texts, or arrays of numbers of one shape (channels, height, width)"
        raise task_error(task, msg) from None
    problem = "" if bool(images.isfinite().all()) else "numbers that are not finite"
    if images.ndim != 1 + _IMAGE_AXES:
        problem = f"arrays of shape {list(images.shape[1:])}"
    if problem:
        raise task_error(task, f"column `{column}`: expected images (channels, height, width), got {problem}")
    return images


def _read_head(task: str, path: Path) -> Head:
    """Return the head in a safetensors file, as fp32. Raises `TaskError`."""
    if not path.is_file():
        raise task_error(task, f"no such file: {path}; expected the head as safetensors")
    for name in read_header(path).info:
        if name not in Head.__slots__:
            raise task_error(task, f"{path}: unknown tensor `{name}`; {nearest(name, Head.__slots__)}")
    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    weight = tensors.get("weight")
    if weight is None or weight.ndim != 2:  # (classes, width)
        raise task_error(task, f"{path}: expected a tensor `weight` of shape (classes, width)")
    classes, width = weight.shape
    defaults = {"weight": weight, "bias": torch.zeros(classes), "mean": torch.zeros(width), "scale": torch.ones(())}
    for name, tensor in tensors.items():
        expected = defaults[name].shape
        if tensor.shape != expected and not (name == "scale" and tensor.numel() == 1):
            raise task_error(task, f"{path}: expected `{name}` of shape {list(expected)}, got {list(tensor.shape)}")
        if not bool(tensor.isfinite().all()):
            raise task_error(task, f"{path}: `{name}` has elements that are not finite")
    return Head(*(tensors.get(name, default).reshape(default.shape) for name, default in defaults.items()))
