"""Classification of texts or images: accuracy, the log-likelihood of the label, and the entropy of the prediction.

With a `head`, the model is an encoder and the task brings a frozen linear classifier, as CLIP's zero-shot heads: tasks
with different classes can share a model. Without a head the model's logits are scored.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from evomerge.errors import EvomergeError
from evomerge.models import LiveModel
from evomerge.placement import PRECISIONS
from evomerge.tasks.batches import by_length, of_one_length, pad
from evomerge.tasks.causal import check_length, check_tokens
from evomerge.tasks.data import shown, task_error, texts
from evomerge.tasks.examples import FileSettings, read_splits
from evomerge.tasks.heads import Pooling, pooled, read_head
from evomerge.tasks.images import are_images, check_images, pixel_values
from evomerge.tasks.labels import Labels, check_words
from evomerge.tasks.task import Part, Scores, Task, choose_metrics, joined, negative_entropy
from evomerge.trial import Split

_IMAGE_AXES = 3

_PATCH = 256
"""Pixels of an image that count as a token, when images run together."""


class ClassificationSettings(FileSettings):
    """`kind: classification`.

    Example: `mood: {kind: classification, search: mood.search.jsonl, report: mood.report.jsonl, input: text, label: class}`
    Images: `pets: {kind: classification, search: train, report: test, input: image, label: label}`, with `train/cat/1.png`
    """

    kind: Literal["classification"]
    input: str
    """The column of texts, or of images: files (column `image` of a folder with a folder of images for each class, or a column
    of `datasets`' type `Image`) and arrays of bytes, which the model's processor resizes and normalises; or arrays of other
    numbers `(channels, height, width)`, taken as they are."""
    label: str
    """The column of class numbers, from 0, or of words; of a folder of images, `label`."""
    labels: Annotated[tuple[str, ...] | dict[str, int] | None, BeforeValidator(check_words)] = None
    """The words in the order of the classes, or the number of each. Default: the model's `id2label`, else the words sorted."""
    head: Path | None = None
    """Safetensors with `weight` `(classes, width)`, and optionally `bias` `(classes,)`, `mean` `(width,)` and `scale` `()`."""
    head_input: Pooling = "mean"
    """The last hidden state that `head` is applied to: the mean of all, the first (cls), or the last without padding."""
    plain_head: bool = False
    """Whether `head` is a plain linear layer; otherwise it is applied to the direction of its input."""
    max_length: int = Field(default=128, ge=1)
    """Texts are truncated to this many tokens."""
    batch: int = Field(default=64, ge=1)
    """Number of examples that run together; another number changes the last bits of scores."""
    metrics: tuple[Literal["accuracy", "log_likelihood", "entropy"], ...] = ("accuracy", "log_likelihood")
    """The metrics to score: accuracy, log_likelihood, entropy; entropy also where it is searched or reported."""
    keep_margins: bool = False
    """Also record the label's logit minus that of each other class. Driver `front` predicts accuracy from these margins with
    at most half the error. Costs four bytes for each example and class in each candidate's record."""

    @model_validator(mode="after")
    def _keys_of_a_head(self) -> Self:
        for key in ("head_input", "plain_head"):
            if self.head is None and key in self.model_fields_set:
                raise ValueError(f"`{key}` is about the task's `head`; give one, or leave out `{key}`")
        return self


_Batch = tuple[list[int], Mapping[str, Tensor]]
"""Examples that run together: their positions among those scored, and the model's keyword arguments."""


class Classification(Task):
    """A task of texts or images, each with one class.

    `accuracy` is 1 where the label has the largest logit; `log_likelihood` is the log-softmax of the label's logit over all
    classes, in nats; `entropy` is minus the entropy of the softmax of all logits, in nats, and does not use the label.

    The pixel values of all images are kept in memory, four bytes for each.
    """

    def __init__(self, name: str, settings: ClassificationSettings, folder: Path) -> None:
        """Read and check the examples and the head. Raises `TaskError`."""
        columns = (settings.input, settings.label)
        inputs, labels = read_splits(name, settings, columns, folder)
        metrics = choose_metrics(settings, settings.metrics, settings.keep_margins)
        super().__init__(name, settings, metrics, inputs=inputs)
        self._settings = settings
        head = settings.head
        self._head = None if head is None else read_head(name, folder / head, plain=settings.plain_head)
        classes = None if self._head is None else len(self._head.weight)
        self._labels = Labels(name, settings.label, labels, settings.labels, classes)
        self._inputs = {split: _checked(name, settings.input, values) for split, values in inputs.items()}
        self._prepared: dict[tuple[Split, Path], list[list[int]] | Tensor] = {}

    def check(self, model: LiveModel) -> None:
        """Raise `TaskError` for texts or images that the model cannot read, for labels without a logit, and for a wrong head."""
        self._check_column(model)
        for split in self._inputs:
            inputs = self._model_inputs(model, split)
            if not isinstance(inputs, Tensor):
                check_tokens(self.name, model, inputs)
            try:
                self.score(model, split, [self._labels.highest(split)])
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
            logits = self._logits(model, inputs)
            classes = logits.shape[1]
            labels = self._labels.numbers(split, model.module, classes)[[indices[i] for i in positions]]
            if int(labels.max()) >= classes:
                msg = f"label {int(labels.max())} in the {split} split, but the model has {classes} classes; another model or a `head` is needed"
                raise task_error(self.name, msg)
            yield self.part(positions, *self._measured(logits, labels))

    def predictions(self, model: LiveModel, split: Split, index: int) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of the classes, and the label."""
        ((_, inputs),) = self._batches(model, split, [index])
        logits = self._logits(model, inputs)
        return logits.log_softmax(1), self._labels.numbers(split, model.module, logits.shape[1])[[index]]

    def unpadded(self, model: LiveModel, split: Split, indices: Sequence[int]) -> list[list[int]]:
        """Return images in batches, and texts of the same number of tokens."""
        inputs = self._model_inputs(model, split)
        lengths = [0 if isinstance(inputs, Tensor) else len(inputs[index]) for index in indices]
        return [
            [indices[i] for i in positions] for positions in of_one_length(lengths, self._settings.batch, model.device)
        ]

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
        inputs = self._model_inputs(model, split)
        if isinstance(inputs, Tensor):
            patches = max(1, inputs.shape[-2] * inputs.shape[-1] // _PATCH)
            return [
                (positions, {"pixel_values": inputs[[indices[i] for i in positions]]})
                for positions in by_length([patches] * len(indices), self._settings.batch, model.device)
            ]
        batches: list[_Batch] = []
        lengths = [len(inputs[index]) for index in indices]
        for positions in by_length(lengths, self._settings.batch, model.device):
            ids, mask = pad([inputs[indices[i]] for i in positions], model.tokenizer.pad_token_id)
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
        return self._head(pooled(hidden, mask, self._settings.head_input))

    def _model_inputs(self, model: LiveModel, split: Split) -> list[list[int]] | Tensor:
        """Return the token ids of all texts of a split, or pixel values of all images, made once for all candidates of a base."""
        inputs = self._inputs[split]
        if isinstance(inputs, Tensor):
            return inputs
        key = (split, model.folder)
        if key not in self._prepared:
            column = self._settings.input
            made = pixel_values(self.name, column, inputs, model) if are_images(inputs) else self._tokens(model, inputs)
            self._prepared[key] = made
        return self._prepared[key]

    def _tokens(self, model: LiveModel, inputs: Sequence[str]) -> list[list[int]]:
        tokens: list[list[int]] = model.tokenizer(list(inputs), truncation=True, max_length=self._settings.max_length)[
            "input_ids"
        ]
        check_length(self.name, model, max(map(len, tokens)))
        return tokens

    def _check_column(self, model: LiveModel) -> None:
        """Raise `TaskError` where the column has texts and the model takes none, or images."""
        takes = inspect.signature(model.module.forward).parameters
        main = getattr(model.module, "main_input_name", None)
        # A module of the user, which has no such name, may take whatever comes.
        if main is None and any(taken.kind is taken.VAR_KEYWORD for taken in takes.values()):
            return
        inputs, column, who = self._inputs["search"], self._settings.input, type(model.module).__name__
        who = f"{who} takes `{main or ', '.join(takes)}`"
        if not isinstance(inputs, Tensor) and isinstance(inputs[0], str):
            if "input_ids" not in takes:
                msg = (
                    f"column `{column}` has texts, such as {shown(inputs[0])}, and {who}; for images in files, type `search: FOLDER, "
                    "input: image, label: label`, a folder with a folder of images for each class, or give a column of `datasets`' type `Image`"
                )
                raise task_error(self.name, msg)
        elif "pixel_values" not in takes:
            raise task_error(self.name, f"column `{column}` has images, and {who}; set `input` to a column of texts")


def _checked(task: str, column: str, values: Sequence[Any]) -> list[Any] | Tensor:
    """Return the texts, or the images as they came, or arrays of pixel values as fp32 `(examples, channels, height, width)`."""
    if isinstance(values[0], str):
        return texts(task, column, values)
    if are_images(values):
        check_images(task, column, values)
        return list(values)
    try:
        images = torch.tensor(np.array(values, dtype=np.float32))
    except (TypeError, ValueError):
        msg = f"column `{column}`: expected texts, images, or arrays of numbers of one shape (channels, height, width), got {shown(values[0])}"
        raise task_error(task, msg) from None
    problem = "" if bool(images.isfinite().all()) else "numbers that are not finite"
    if images.ndim != 1 + _IMAGE_AXES:
        problem = (
            f"arrays of shape {list(images.shape[1:])}" if images.ndim > 1 else f"numbers, such as {shown(values[0])}"
        )
    if problem:
        expected = "images (channels, height, width)" if images.ndim > 1 else "texts or images"
        raise task_error(task, f"column `{column}`: expected {expected}, got {problem}")
    return images
