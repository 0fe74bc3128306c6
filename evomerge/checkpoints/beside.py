"""The files beside a checkpoint's weights: which belong to an export, and what they say about text.

The configuration and everything else is the base's. Tokenizer, chat template and generation settings belong together: they
are the base's or one expert's.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.checkpoints.folder import PICKLES, check_inside, read_object
from evomerge.errors import CheckpointError

_ADAPTER = "adapter_config.json"  # in the folder of a complete model, it makes transformers load another one
_WEIGHTS = (  # ends of names: weights in any form, and what lists or continues them
    ".safetensors",
    ".index.json",
    *(pattern[1:] for pattern in PICKLES),
    *(".h5", ".hdf5", ".keras", ".msgpack", ".ot", ".pb", ".pbtxt", ".tflite", ".meta", ".index"),
    *(".onnx", ".onnx_data", ".onnx.data", ".ort", ".mlmodel", ".mlpackage", ".engine", ".plan", ".xml"),
    *(
        ".gguf",
        ".ggml",
        ".llamafile",
        ".npz",
        ".npy",
        ".pkl",
        ".pickle",
        ".joblib",
        ".params",
        ".pdparams",
        ".pdiparams",
    ),
    *(".nemo", ".torchscript", ".ptl", ".pte", ".mar", ".distcp", ".tar", ".tar.gz", ".tgz", ".zip", ".7z"),
)
_TF_DATA = re.compile(r".*\.data-\d+-of-\d+")
_CONFIGURATION = (
    ".json",
    ".jinja",
    ".jinja2",
    ".txt",
    ".model",
    ".yaml",
    ".yml",
    ".py",
    ".tiktoken",
    ".vocab",
    ".bpe",
    ".spm",
)
_TEXT = re.compile(  # files that turn text into tokens, conversations into text, or say where a text ends
    r"(tokenizer|tokenization|vocab|merges|special_tokens|added_tokens|chat_template|generation_config|spiece|sentencepiece|"
    r"additional_chat_templates/).*|[\w.-]+\.(tiktoken|bpe|spm)|bpe\.\w+"
)
_VOCABULARY = re.compile(r"(tokenizer\.json|vocab.*|merges.*|.*\.(model|tiktoken|bpe|spm)|added_tokens\.json)")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Keys of `config.json` that name tokens of the tokenizer."""
_SHOWN = 40  # characters of a chat template in a note


def files_beside(folder: Path, tokenizer: Path | None = None) -> dict[str, Path]:
    """Return the files that belong beside the weights of a merge, by name relative to the folder; never weights.

    They are those of `folder`, and those in its folders that hold configuration alone. Folders that `modules.json` lists, as
    sentence-transformers writes it, are complete, with weights that are no part of the merge. With `tokenizer`, the folder of
    an expert, the files about text are from there. Raises `CheckpointError` for a file that links out of its folder, and for a
    `tokenizer` without one.
    """
    files = _listed(folder)
    if tokenizer is not None:
        texts = tokenizer_files(tokenizer)
        if not has_tokenizer(tokenizer):
            msg = f"{tokenizer}: no tokenizer here; expected tokenizer.json or the like beside the weights; leave out `like`, or name an expert that has one"
            raise CheckpointError(msg)
        adapter = (tokenizer / _ADAPTER).exists()  # which has no generation settings of its own
        kept = {"generation_config.json"} if adapter else set()
        files = {name: file for name, file in files.items() if name in kept or not _TEXT.fullmatch(name)} | texts
    for name, file in files.items():
        check_inside(file, file.parents[len(Path(name).parts) - 1])
    return dict(sorted(files.items()))


def text_files(folder: Path, tokenizer: Path | None = None) -> dict[str, Path]:
    """Return those of `files_beside` that decide what a model computes: its configuration, and the files about text."""
    beside = files_beside(folder, tokenizer)
    return {name: file for name, file in beside.items() if name == "config.json" or _TEXT.fullmatch(name)}


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """Return the files about text, by name relative to the folder. Raises `CheckpointError` for one that links out of it."""
    files = {name: file for name, file in _listed(folder).items() if _TEXT.fullmatch(name)}
    for name, file in files.items():
        check_inside(file, file.parents[len(Path(name).parts) - 1])
    return files


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder has a file with a vocabulary."""
    return any(_VOCABULARY.fullmatch(entry.name) for entry in folder.iterdir())


def unmerged(folder: Path) -> list[str]:
    """Return the folders with weights that `modules.json` lists: a part of the model that is copied, not merged."""
    return [name for name in _modules(folder) if any(_is_weights(file.name) for file in (folder / name).rglob("*"))]


def with_token_ids(config: dict[str, Any], tokenizer: Path | None) -> dict[str, Any]:
    """Return the base's `config` with the numbers of the special tokens of `tokenizer`, the folder of an expert."""
    path = None if tokenizer is None else tokenizer / "config.json"
    if path is None or not path.is_file():
        return config
    own = read_object(path)
    ids = {key: own[key] for key in TOKEN_IDS if key in own and own[key] != config.get(key)}
    return {**config, **ids} if ids else config


def differences_in_text(
    base: Path, experts: Mapping[str, Path], like: str | None = None, *, vocabularies: bool = True
) -> list[str]:
    """Return in words how experts' chat templates, end tokens and vocabularies differ from those that a merge has.

    These are the base's, or those of the expert `like`. A folder without a tokenizer is not compared. Without `vocabularies`,
    which tokens there are is left out.
    """
    said = {name: words_about_text(folder) for name, folder in {"base": base, **experts}.items()}
    chosen = "base" if like is None else like
    notes = []
    for what in ("chat template", "end tokens", *(("vocabulary",) if vocabularies else ())):
        groups: dict[str, list[str]] = {}
        for name, words in said.items():
            if what in words:
                groups.setdefault(words[what], []).append(name)
        if len(groups) > 1 and what in said[chosen]:
            notes.append(f"{what}: " + ", ".join(f"{value} ({', '.join(names)})" for value, names in groups.items()))
    return notes


def words_about_text(folder: Path) -> dict[str, str]:
    """Return what a folder's files say of chat template, end tokens and vocabulary; nothing without a tokenizer."""
    files = {name: file for name, file in _listed(folder).items() if _TEXT.fullmatch(name)}
    vocabulary = [file for name, file in files.items() if _VOCABULARY.fullmatch(name)]
    if not vocabulary:
        return {}
    names = ("tokenizer_config.json", "generation_config.json", "config.json", "chat_template.json")
    tokenizer, generation, config, chat = (_object(folder / name) for name in names)
    template = tokenizer.get("chat_template")
    if "chat_template.jinja" in files:
        template = files["chat_template.jinja"].read_text(encoding="utf-8", errors="replace")
    elif chat:
        template = chat.get("chat_template")
    end = tokenizer.get("eos_token")
    named = end.get("content") if isinstance(end, dict) else end
    number = generation.get("eos_token_id", config.get("eos_token_id"))
    said = {
        "chat template": _shown(template),
        "end tokens": " ".join(str(part) for part in (named, number) if part is not None),
    }
    return {**said, "vocabulary": _vocabulary(vocabulary)}


def _listed(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    modules = _modules(folder)
    for entry in sorted(folder.iterdir()):
        if entry.is_file():
            if not _is_weights(entry.name) and not entry.name.endswith(".md") and entry.name != _ADAPTER:
                files[entry.name] = entry
            continue
        inside = {file.relative_to(folder): file for file in sorted(entry.rglob("*")) if file.is_file()}
        plain = not any(_is_weights(path.name) for path in inside)
        for path, file in inside.items():
            name = path.as_posix()
            listed = name.startswith(tuple(f"{module}/" for module in modules)) and path.suffix != ".md"
            hidden = any(part.startswith(".") for part in path.parts)
            if listed or (plain and not hidden and path.suffix in _CONFIGURATION):
                files[name] = file
    return files


def _modules(folder: Path) -> list[str]:
    """Return the folders that `modules.json` lists."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        names = [str(module["path"]).strip("/") for module in modules]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    return [name for name in names if name and (folder / name).is_dir()]


def _is_weights(name: str) -> bool:
    return name.lower().endswith(_WEIGHTS) or _TF_DATA.fullmatch(name) is not None


def _object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty where there is none: what reads the file says so."""
    with contextlib.suppress(CheckpointError):
        return read_object(path)
    return {}


def _shown(template: Any) -> str:
    if not template:
        return "none"
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    line = " ".join(text.split())
    mark = hashlib.sha256(text.encode()).hexdigest()[:6]
    return f"`{line}`" if len(line) <= _SHOWN else f"`{line[:_SHOWN]}…` (sha256 {mark}…)"


def _vocabulary(files: list[Path]) -> str:
    """Return the number of tokens, and a digest of which token has which number."""
    fast = next((file for file in files if file.name == "tokenizer.json"), None)
    if fast is None:
        digest = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files))
        return f"sha256 {digest.hexdigest()[:6]}…"
    content = _object(fast)
    model = content.get("model")
    listed = (model.get("vocab") if isinstance(model, dict) else None) or {}
    numbers = listed if isinstance(listed, dict) else {str(pair[0]): i for i, pair in enumerate(listed)}
    added = [token for token in content.get("added_tokens") or [] if isinstance(token, dict)]
    numbers = {**numbers, **{str(token.get("content")): token.get("id") for token in added}}
    digest = hashlib.sha256(json.dumps(numbers, sort_keys=True).encode())
    return f"{len(numbers)} tokens, sha256 {digest.hexdigest()[:6]}…"
