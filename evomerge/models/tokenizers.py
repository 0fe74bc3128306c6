"""Tokenizers of local folders: which token has which number, and one tokenizer extended by tokens of others."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from evomerge.checkpoints.folder import read_object
from evomerge.checkpoints.tokens import Tokens
from evomerge.errors import ModelError
from evomerge.models.pretrained import load_tokenizer

_ROLES = ("bos", "eos", "pad", "unk")
_OF_LOADING = ("is_local", "local_files_only")  # how transformers opened a folder, which it then saves
_PARTS = ("normalizer", "pre_tokenizer")


def read(folder: Path) -> Tokens:
    """Return what the tokenizer in `folder` says. Raises `ModelError` for one that the library tokenizers does not have."""
    tokenizer = _load(folder)
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    model = data["model"]
    listed = model.pop("vocab")
    vocabulary = listed if isinstance(listed, dict) else dict(listed)
    special = {role: getattr(tokenizer, f"{role}_token") for role in _ROLES}
    return Tokens(
        numbers=_numbers(tokenizer),
        added=frozenset(token["content"] for token in data["added_tokens"]),
        special={role: str(token) for role, token in special.items() if token is not None},
        core={**model, "vocabulary": vocabulary, **{part: data[part] for part in _PARTS}},
    )


def extend(folder: Path, more: Sequence[tuple[Path, str]], out: Path) -> Mapping[str, int]:
    """Write the tokenizer in `folder` to `out` with tokens added at its end, and return the number of each of its tokens.

    `more` names for each new token the folder of a tokenizer that has it: where it is an added token, it stays as special
    and as wide as there. Raises `ModelError` where what was written does not read back as it was.
    """
    tokenizer = _load(folder)
    before = _numbers(tokenizer)
    flags: dict[Path, Mapping[str, Any]] = {}
    for source, token in more:
        if source not in flags:
            flags[source] = {str(added): added for added in _load(source).added_tokens_decoder.values()}
        added = flags[source].get(token) or AddedToken(token, normalized=False)
        tokenizer.add_tokens([added], special_tokens=added.special)
    numbers = _numbers(tokenizer)
    tokenizer.save_pretrained(out)
    settings = out / "tokenizer_config.json"
    kept = {key: value for key, value in read_object(settings).items() if key not in _OF_LOADING}
    settings.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    again = _numbers(_load(out))
    wrong = [token for token in numbers if again.get(token) != numbers[token]]
    wrong += [token for token in before if numbers.get(token) != before[token]]
    wrong += [token for _, token in more if token not in numbers]
    if wrong:
        msg = f"{folder}: transformers does not keep the number of the token {wrong[0]!r} when this tokenizer is extended and saved; give another `source` for `tokenizer`"
        raise ModelError(msg)
    return numbers


def _numbers(tokenizer: Any) -> dict[str, int]:
    """Return the number of each token, in the order of the numbers: the library lists them in any."""
    numbers: dict[str, int] = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True)
    return dict(sorted(numbers.items(), key=lambda pair: pair[1]))


def _load(folder: Path) -> Any:
    tokenizer = load_tokenizer(folder)
    if not tokenizer.is_fast:
        msg = f"{folder}: {type(tokenizer).__name__} is not a tokenizer of the library tokenizers; expected tokenizer.json, as `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)` writes it for most"
        raise ModelError(msg)
    return tokenizer
