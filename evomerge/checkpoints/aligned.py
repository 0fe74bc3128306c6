"""Aligned: a model of a pool, read with its rows in the order of the pool's vocabulary."""

from collections.abc import Iterable, Mapping
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.folder import Checkpoint, Folder, read_object
from evomerge.checkpoints.header import TensorInfo
from evomerge.checkpoints.vocabulary import Vocabulary


class Aligned(Checkpoint):
    """The checkpoint of a model whose rows are permuted, left out and added to, tensor by tensor, when they are read.

    Let H be the models that have a row for a token. An expert that lacks it has the base's row, so that its task vector is zero
    there; with `missing: mean`, the mean over H. A base that lacks it has the mean over the experts in H, so that their task
    vectors are relative to it: with one such expert they are zero, and merges of task vectors keep its row as it is, whatever
    the weights. With `missing: zero` the base has zeros, and the task vector of an expert is its whole row. A row of no token
    that no model has is zero. Means are in fp32 (fp64 where a model is), and rounded once.
    """

    def __init__(
        self,
        label: str,
        model: Folder | Adapter,
        vocabulary: Vocabulary,
        models: Mapping[str, Folder | Adapter],
        base: "Aligned | None" = None,
    ) -> None:
        """Align `model`, called `label` among the pool's `models`; `base` is the aligned base, None for the base itself.

        No weights are read.
        """
        self.model = model
        self._label, self._vocabulary, self._models, self._base = label, vocabulary, models, base
        self._borrowed = frozenset[str]() if base is None else vocabulary.ignored
        self.info: Mapping[str, TensorInfo] = {name: self._described(name, entry) for name, entry in model.info.items()}

    def again(self, model: Folder) -> "Aligned":
        """Return this checkpoint by the names in `model`, the same files opened anew."""
        return Aligned(self._label, model, self._vocabulary, self._models, self._base)

    @property
    def path(self) -> Path:
        """The folder of the model."""
        return self.model.path

    @property
    def files(self) -> tuple[Path, ...]:
        """The files with the model's weights."""
        return self.model.files

    @property
    def settings(self) -> Path:
        """The folder with the `config.json` of merges."""
        return self._vocabulary.folder

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of `config.json`; the base's has the size of the vocabulary and the new numbers of tokens."""
        return read_object(self.settings / "config.json") if self._base is None else self.model.config

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor: a view of a file where no row moves, else computed at each call."""
        if name in self._borrowed and self._base is not None:
            return self._base.tensor(name)
        if not self._moves(name):
            return self.model.tensor(name)
        return self.rows(name, torch.arange(self._vocabulary.rows))

    def rows(self, name: str, at: torch.Tensor) -> torch.Tensor:
        """Return the rows of a tensor with a row for each token at the numbers `at`, int64 `(n,)`, as `(n, …)`."""
        index = self._vocabulary.index(self._label, name)[at]
        rows = self.model.tensor(name).index_select(0, index.clamp(min=0)).to(self.info[name].dtype)
        lacking = (index < 0).nonzero().flatten()
        if len(lacking):
            rows[lacking] = self._missing(name, at[lacking]).to(rows.dtype)
        return rows

    def makes(self, name: str) -> bool:
        """Return whether the tensor is computed, which costs more than reading it."""
        return self._moves(name) or (isinstance(self.model, Adapter) and self.model.makes(name))

    def forget(self) -> None:
        """Close the files of all models of the pool, since rows may come from each."""
        self.model.forget()
        for model in self._models.values():
            model.forget()

    def _moves(self, name: str) -> bool:
        if name not in self._vocabulary.tensors or name in self._borrowed:
            return False
        rows = self.model.info[name].shape[0]
        index = self._vocabulary.index(self._label, name)
        return rows != len(index) or not torch.equal(index, torch.arange(rows))

    def _described(self, name: str, entry: TensorInfo) -> TensorInfo:
        if name not in self._vocabulary.tensors:
            return entry
        if self._base is None:
            return TensorInfo((self._vocabulary.rows, *entry.shape[1:]), entry.dtype)
        if name in self._borrowed:
            return self._base.info[name]
        dtype = entry.dtype
        if bool((self._vocabulary.index(self._label, name) < 0).any()):
            # The base's rows must not be rounded: their task vectors would not be zero.
            dtype = torch.promote_types(dtype, self._base.info[name].dtype)
        return TensorInfo((self._vocabulary.rows, *entry.shape[1:]), dtype)

    def _missing(self, name: str, at: torch.Tensor) -> torch.Tensor:
        """Return the rows at the numbers `at` of tokens that the model lacks."""
        rule, everyone = self._vocabulary.choice.missing, tuple(self._models)
        if self._base is None:
            return self._mean(name, at, everyone[1:] if rule != "zero" else ())
        return self._mean(name, at, everyone) if rule == "mean" else self._base.rows(name, at)

    def _mean(self, name: str, at: torch.Tensor, labels: Iterable[str]) -> torch.Tensor:
        """Return the mean over those of the models `labels` that have a row, zeros where none has one."""
        having = [label for label in labels if label == "base" or name not in self._vocabulary.ignored]
        wide = reduce(torch.promote_types, (self._models[label].info[name].dtype for label in having), torch.float32)
        total = torch.zeros((len(at), *self.info[name].shape[1:]), dtype=wide)
        count = torch.zeros((len(at), *(1 for _ in self.info[name].shape[1:])), dtype=wide)
        for label in having:
            index = self._vocabulary.index(label, name)[at]
            has = index >= 0
            total[has] += self._models[label].tensor(name)[index[has]].to(wide)
            count[has] += 1
        return total / count.clamp(min=1)
