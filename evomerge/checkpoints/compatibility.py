"""Compatibility: whether, and how, models can be merged, before any work. The pool decides; here each expert is asked alone."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from evomerge.checkpoints.adapter import UNION
from evomerge.checkpoints.beside import words_about_text
from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.header import TensorInfo
from evomerge.checkpoints.lora import is_adapter, read_stored
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.quantised import check_not_quantised, check_not_wrapped
from evomerge.checkpoints.vocabulary import TokenizerChoice
from evomerge.errors import CheckpointError, PoolError


@dataclass(frozen=True)
class Checked:
    """What one model is, and what keeps it from being merged."""

    name: str
    kind: str
    """`full`, `adapter`, `quantised`, or `unreadable`."""
    dtypes: Mapping[str, int] = field(default_factory=dict)
    """Number of elements by dtype, of what is in the files."""
    architecture: str = ""
    vocabulary: int | None = None
    """`vocab_size` of the configuration."""
    text: Mapping[str, str] = field(default_factory=dict)
    """What its files say about chat template, end tokens and vocabulary; empty without a tokenizer."""
    problem: str | None = None
    """Why it cannot be merged."""
    notes: tuple[str, ...] = ()
    """How it differs from the base in what is not merged."""


@dataclass(frozen=True)
class Compatibility:
    """Whether a base and experts can be merged."""

    models: tuple[Checked, ...]
    """The base first."""
    pool: Pool | None
    """The pool of all that can be merged, None where there is no expert that can."""

    @property
    def refused(self) -> tuple[Checked, ...]:
        """The models that cannot be merged."""
        return tuple(model for model in self.models if model.problem is not None)


def compare(
    base: str,
    experts: Mapping[str, str],
    tokenizer: TokenizerChoice | None = None,
    *,
    weights: bool = True,
    progress: Callable[[str], None] = lambda what: None,
) -> Compatibility:
    """Return whether the model in the folder `base` and the `experts` can be merged, by the rules of `Pool`.

    `tokenizer` says which tokens merges have. Without it, an expert that only its tokens keep from being merged is said to be
    one that `tokenizer: union` merges. Without `weights` only headers and configurations are read: integers and NaN are not compared.
    """
    checked = [_checked("base", base, _refusal(lambda: _open_base(base)))]
    if checked[0].problem is not None:
        checked += [_checked(name, path, None) for name, path in experts.items()]
        return Compatibility(tuple(checked), None)
    mergeable = {}
    told: set[str] = set()

    def once(what: str) -> None:
        if what not in told:
            progress(what)
        told.add(what)

    for name, path in experts.items():
        notes: list[str] = []

        def open_pair(name: str = name, path: str = path, notes: list[str] = notes) -> None:
            pool = Pool(base, {name: path}, tokenizer=tokenizer, weights=weights, progress=once)
            notes += [*pool.notes, *pool.differences_in_text]

        problem = _refusal(open_pair)
        if problem is not None and UNION in problem and tokenizer is None:
            other = _refusal(partial(Pool, base, {name: path}, tokenizer=TokenizerChoice(), weights=False))
            problem += ". With it, they can be merged" if other is None else f". Even so: {other}"
        checked.append(_checked(name, path, problem, tuple(notes)))
        if problem is None:
            mergeable[name] = path
    pool = Pool(base, mergeable, tokenizer=tokenizer, weights=weights) if mergeable else None
    return Compatibility(tuple(checked), pool)


def _open_base(path: str) -> None:
    folder = Folder(path)
    check_not_quantised(folder)
    check_not_wrapped(folder)
    _ = folder.config


def _refusal(open_: Callable[[], object]) -> str | None:
    try:
        open_()
    except (CheckpointError, PoolError) as error:
        return str(error)
    return None


def _checked(name: str, path: str, problem: str | None, notes: tuple[str, ...] = ()) -> Checked:
    dtypes: dict[str, int] = {}
    folder = Path(path)
    if is_adapter(path):
        with suppress(CheckpointError):
            _count(read_stored(folder), dtypes)
        return Checked(name, "adapter", dtypes, text=words_about_text(folder), problem=problem, notes=notes)
    try:
        opened = Folder(path)
        config = opened.config
    except CheckpointError as error:
        return Checked(name, "unreadable", problem=problem or str(error))
    try:
        check_not_quantised(opened)
        check_not_wrapped(opened)
        kind = "full"
    except PoolError:
        kind = "quantised"
    _count(opened.info, dtypes)
    size = config.get("vocab_size")
    return Checked(
        name,
        kind,
        dtypes,
        architecture=str(next(iter(config.get("architectures") or ()), config.get("model_type", ""))),
        vocabulary=size if isinstance(size, int) else None,
        text=words_about_text(folder),
        problem=problem,
        notes=notes,
    )


def _count(info: Mapping[str, TensorInfo], dtypes: dict[str, int]) -> None:
    for entry in info.values():
        word = str(entry.dtype).removeprefix("torch.")
        dtypes[word] = dtypes.get(word, 0) + entry.numel
