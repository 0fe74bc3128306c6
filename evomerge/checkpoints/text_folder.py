"""A folder with tokenizer, configuration and generation settings for merges whose vocabulary no model of the pool has.

It is in the cache, under the hash of its content, and looks like the folder of a model without weights.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge import files
from evomerge.checkpoints.beside import TOKEN_IDS, tokenizer_files
from evomerge.checkpoints.folder import read_object
from evomerge.checkpoints.tokens import extended
from evomerge.errors import CheckpointError, PoolError

_TOKEN_KEY = re.compile(r"(.*_)?token_(id|ids|index|indices)")
_CONFIG, _GENERATION = "config.json", "generation_config.json"
_NOT_OF_TOKENS = re.compile(r"(generation_config|chat_template|additional_chat_templates/).*")


def write_text(
    *,
    owner: Path,
    base: Path,
    more: Sequence[tuple[Path, str]],
    ours: Mapping[str, int],
    numbers: Mapping[str, int],
    rows: Callable[[Mapping[str, int]], int],
) -> tuple[Path, Mapping[str, int]]:
    """Write the folder for the tokenizer in `owner` with `more` tokens, and return it, and the number of each of its tokens.

    `numbers` are those in `owner`, `ours` those in `base`, whose configuration is rewritten: the size of the vocabulary is
    `rows` of the new numbers, and keys that name tokens get them. Without more tokens, the tokenizer's files are copied.
    Raises `PoolError` where the configuration names a token that there is no more, `CheckpointError` without a cache.
    """
    parent = files.cache() / "tokenizers"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".") as scratch:
            new = Path(scratch) / "new"
            new.mkdir()
            if more:
                numbers = extended(owner, more, new)
            for name, file in tokenizer_files(owner).items():
                if not more or (_NOT_OF_TOKENS.fullmatch(name) and not (new / name).exists()):
                    (new / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, new / name)
            _write_settings(new, owner, base, ours, numbers, rows(numbers))
            digest = hashlib.sha256()
            for file in sorted(path for path in new.rglob("*") if path.is_file()):
                digest.update(f"{file.relative_to(new)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
            folder = parent / digest.hexdigest()
            if not folder.exists():
                new.replace(folder)
    except OSError as error:
        msg = f"{parent}: cannot be written ({error.strerror}), and holds the tokenizers of pools; set XDG_CACHE_HOME to a folder that can"
        raise CheckpointError(msg) from None
    return folder, numbers


def _write_settings(
    new: Path, owner: Path, base: Path, ours: Mapping[str, int], numbers: Mapping[str, int], rows: int
) -> None:
    lost: dict[str, int] = {}
    tokens = {number: token for token, number in ours.items()}
    config = _renumbered(read_object(base / _CONFIG), tokens, numbers, lost)
    own = owner / _CONFIG
    if own.is_file() and owner != base:
        config = _with_ids_of(config, read_object(own))
        lost = {key: number for key, number in lost.items() if key not in TOKEN_IDS}
    if lost:
        key, number = next(iter(lost.items()))
        msg = f"{base / _CONFIG}: `{key}` names the token `{tokens[number]}`, which the tokenizer of {owner} does not have; type `tokenizer: union`, which keeps it"
        raise PoolError(msg)
    _dump(new / _CONFIG, _with_size(config, rows))
    if (base / _GENERATION).is_file() and not (new / _GENERATION).is_file():  # the owner is an adapter
        _dump(new / _GENERATION, _renumbered(read_object(base / _GENERATION), tokens, numbers, lost))


def settings_by_tokens(
    config: Mapping[str, Any], ours: Mapping[str, int], numbers: Mapping[str, int], rows: int, where: str
) -> dict[str, Any]:
    """Return a model's configuration with `rows` of tokens, whose numbers, `ours` in the model, are `numbers`.

    Raises `PoolError` naming `where` it is, if it names a token that there is no more.
    """
    lost: dict[str, int] = {}
    tokens = {number: token for token, number in ours.items()}
    renumbered = _renumbered(config, tokens, numbers, lost)
    if lost:
        key, number = next(iter(lost.items()))
        msg = f"{where}: `{key}` in its configuration names the token `{tokens[number]}`, which merges would not have; type `tokenizer: union`, which keeps it"
        raise PoolError(msg)
    return _with_size(renumbered, rows)


def _dump(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _renumbered(
    data: Mapping[str, Any], tokens: Mapping[int, str], numbers: Mapping[str, int], lost: dict[str, int]
) -> dict[str, Any]:
    """Return settings whose numbers of tokens are the new ones. A token that is not there is left out, and put into `lost`."""

    def moved(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return [new for new in (moved(key, part) for part in value) if new is not None]
        if type(value) is not int or value not in tokens:  # as -1, or a row without a token
            return value
        if tokens[value] not in numbers:
            lost[key] = value
        return numbers.get(tokens[value])

    return {
        key: _renumbered(value, tokens, numbers, lost)
        if isinstance(value, dict)
        else moved(key, value)
        if _TOKEN_KEY.fullmatch(key)
        else value
        for key, value in data.items()
    }


def _with_ids_of(config: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config` with the numbers of begin, end and padding that `own` has, also in the configurations nested in it."""
    ids = {key: own[key] for key in TOKEN_IDS if key in own}
    nested = {
        key: _with_ids_of(value, own[key])
        for key, value in config.items()
        if isinstance(value, dict) and isinstance(own.get(key), dict)
    }
    return {**config, **nested, **ids}


def _with_size(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return `config` with `vocab_size` where it has that key, else where its class reads it."""
    text = config.get("text_config")
    if isinstance(text, dict):
        both = {"vocab_size": rows} if "vocab_size" in config else {}
        return {**config, **both, "text_config": {**text, "vocab_size": rows}}
    return {**config, "vocab_size": rows}
