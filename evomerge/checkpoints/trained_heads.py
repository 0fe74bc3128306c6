"""Trained heads: the complete model that an adapter and its base make, where the adapter brings a head that the base lacks.

PEFT stores such a head complete (`modules_to_save`), as a classifier's, and neither its class nor the number of labels. The
class follows from `task_type` or `auto_mapping`, the number from the shapes.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from evomerge import files
from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.folder import Folder, Stored, read_object
from evomerge.checkpoints.header import read_header
from evomerge.checkpoints.lora import ADAPTER_WEIGHTS, CONFIG, AdapterFiles
from evomerge.checkpoints.naming import Names, Reading, read, read_shapes
from evomerge.checkpoints.ties import untied
from evomerge.errors import CheckpointError, PoolError

_AUTO = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}
"""The class that PEFT's documentation loads for each `task_type`."""
_LABELS = ("id2label", "label2id", "num_labels")


class Headed(Folder):
    """The base's files with the head in an adapter's file, by the names of the class that the adapter was trained on.

    The tensors of the base that the class has no place for, such as another head, are left out.
    """

    def __init__(self, base: Folder, config: Mapping[str, Any], stored: Mapping[str, Stored]) -> None:
        """Take the tensors `stored`. `config` is the content of `config.json`, and is written to the cache."""
        super().__init__(base.path)
        self.stored = dict(sorted(stored.items()))
        self.read_as({name: (self, name) for name in self.stored})
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        self._settings = files.cache() / "heads" / hashlib.sha256(text.encode()).hexdigest()
        if not (self._settings / "config.json").is_file():
            try:
                files.write(self._settings / "config.json", text)
            except OSError as error:
                msg = f"{self._settings}: cannot be written ({error.strerror}), and holds configurations of pools; set XDG_CACHE_HOME to a folder that can"
                raise CheckpointError(msg) from None

    @property
    def settings(self) -> Path:
        """The folder with the `config.json` of the class."""
        return self._settings

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of that file."""
        return read_object(self.settings / "config.json")


def complete(base: Folder, adapter: AdapterFiles, own: frozenset[str]) -> tuple[Headed, Adapter, Reading, str]:
    """Return the class's view of the files, the complete model, what the class makes of it, and what precedes the base's names.

    `own` are the adapter's tensors of the head, by names of the trained model. No tensor is read. Raises `PoolError` where the
    class is not known, or base and adapter do not make a complete model of it.
    """
    held = {
        target: Stored(adapter.path / ADAPTER_WEIGHTS, key, header.spans[key], header.info[key])
        for header in [read_header(adapter.path / ADAPTER_WEIGHTS)]
        for target, key in adapter.replaced.items()
        if target in own
    }
    for config, auto in _candidates(base, adapter, held):
        found = read_shapes(Headed(base, config, base.stored), auto)
        if found is None:
            continue
        named, shapes = found
        if all(shapes.get(target) == entry.info.shape for target, entry in held.items()):
            return _on(base, adapter, {**config, "architectures": [named]}, held)
    listed = ", ".join(f"`{name}` {list(entry.info.shape)}" for name, entry in held.items())
    msg = f"{adapter.path}: trained the head {listed or ', '.join(map(repr, sorted(own)))}, and no class with such a head is known: {CONFIG} says {_said(adapter)}, the base ({base.path}) {base.config.get('architectures')}. Expected `task_type` SEQ_CLS, TOKEN_CLS or QUESTION_ANS, or the class in `auto_mapping`, as PEFT writes them"
    raise PoolError(msg)


def _candidates(
    base: Folder, adapter: AdapterFiles, held: Mapping[str, Stored]
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Yield configurations, each with the class that chooses the model's: with the base's labels, then by the sizes of the head."""
    settings = adapter.config.model_extra or {}
    mapping = settings.get("auto_mapping")
    named = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    auto = _AUTO.get(str(settings.get("task_type")))
    config = base.config if auto is not None or named is None else {**base.config, "architectures": [str(named)]}
    yield config, auto
    without = {key: value for key, value in config.items() if key not in _LABELS}
    for count in sorted({entry.info.shape[0] for entry in held.values() if entry.info.shape}):
        labels = {str(number): f"LABEL_{number}" for number in range(count)}
        yield {**without, "id2label": labels, "label2id": {label: int(n) for n, label in labels.items()}}, auto


def _on(
    base: Folder, adapter: AdapterFiles, config: dict[str, Any], held: Mapping[str, Stored]
) -> tuple[Headed, Adapter, Reading, str]:
    """Return what `complete` does, for the class in `config`."""
    probe = read(Headed(base, config, base.stored))
    if probe is None:
        raise PoolError(f"{adapter.path}: the class {config['architectures'][0]} cannot be loaded for its head")
    prefix = f"{probe.prefix}." if probe.prefix else ""
    if any(name.startswith(prefix) for name in base.stored):
        prefix = ""
    if any(target in tie for target in held for tie in probe.ties.values()):
        config = untied(config)
    view = Headed(base, config, {**{f"{prefix}{name}": entry for name, entry in base.stored.items()}, **held})
    reading = read(view)
    if reading is None:
        raise PoolError(f"{adapter.path}: the class {config['architectures'][0]} cannot be loaded for its head")
    for what, names in (("needs", reading.missing), ("has no", [name for name in held if not reading.fills[name]])):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            where = (
                "which is neither in the base nor in the adapter" if what == "needs" else "which the adapter trained"
            )
            msg = f"{adapter.path}: {config['architectures'][0]} {what} `{names[0]}`{more}, {where} (base: {base.path}). Expected an adapter of this base with its complete head in `modules_to_save`"
            raise PoolError(msg)
    view = Headed(base, config, {name: entry for name, entry in view.stored.items() if reading.fills[name]})
    return view, Adapter(adapter, view, Names(view, {})), reading, prefix


def _said(adapter: AdapterFiles) -> str:
    settings = adapter.config.model_extra or {}
    return f"`task_type` {settings.get('task_type')!r} and `auto_mapping` {settings.get('auto_mapping')!r}"
