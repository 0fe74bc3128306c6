"""Snapshots: models of the hub as folders. From the hub's cache on this machine, else downloaded into it, never silently.

Only safetensors, JSON and the tokenizer's files are downloaded, never pickles or code.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from evomerge.checkpoints.beside import has_tokenizer
from evomerge.checkpoints.folder import INDEX, PICKLES, WEIGHTS, Folder, read_object
from evomerge.checkpoints.hub.reference import HubId, hub_id
from evomerge.checkpoints.lora import ADAPTER_WEIGHTS, CONFIG, is_adapter, read_stored
from evomerge.errors import CheckpointError

_BESIDE = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.vocab", "*.bpe", "*.spm")
_MODULE_WEIGHTS = "[0-9]_*/*.safetensors"
"""Weights of the modules that sentence-transformers puts after a model."""
_SUFFIXES = tuple(pattern[1:] for pattern in PICKLES)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A model of the hub at one commit: what of it is in the local cache, and what is not."""

    id: HubId
    commit: str
    folder: Path | None
    """The folder in the cache, None where a file is missing."""
    files: Mapping[str, int]
    """The bytes of each file that belongs to the model, by name; empty where the cache has all."""
    missing: Mapping[str, int]
    """Those that are not in the cache."""

    def __str__(self) -> str:
        if self.folder is not None:
            return f"{self.id}: commit {self.commit[:12]}, in the cache"
        cached = sum(self.files.values()) - (needed := sum(self.missing.values()))
        known = f"; {size(cached)} are in the cache" if cached else ""
        return f"{self.id}: commit {self.commit[:12]}, {len(self.missing)} files to download, {size(needed)}{known}"


def size(count: int) -> str:
    """Return bytes in decimal units: `3.2 GB`."""
    scaled, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if scaled < 1000:
            break
        scaled, unit = scaled / 1000, larger
    return f"{count} bytes" if unit == "bytes" else f"{scaled:.1f} {unit}"


def resolve(reference: str | Path, say: Callable[[str], None] = lambda line: None) -> str:
    """Return the folder of a reference that `locate` returned: of one on the hub, the snapshot in its cache.

    What is not there is downloaded, with a bar of progress; `say` receives what is, and how much. A path is returned as it is.
    Raises `CheckpointError` for a model that is missing, gated, or not in the cache while the hub cannot be reached.
    """
    found = hub_id(reference)
    if found is None:
        return str(reference)
    snapshot = find(found)
    say(str(snapshot))
    return str(fetch(snapshot) if snapshot.folder is None else snapshot.folder)


def missing(references: Iterable[str | Path], say: Callable[[str], None]) -> bool:
    """Say of each reference to the hub what is in the cache, and return whether anything is to be downloaded."""
    snapshots = [find(found) for found in map(hub_id, references) if found is not None]
    for snapshot in snapshots:
        say(str(snapshot))
    sizes = [sum(snapshot.missing.values()) for snapshot in snapshots]
    if any(sizes):
        say(
            f"nothing was downloaded; without `--dry-run`, {size(sum(sizes))} are. `evomerge check` compares models without their weights"
        )
    return any(sizes)


def find(model: HubId) -> Snapshot:
    """Return what of a model is in the cache. The hub is asked only where something is missing there.

    Raises `CheckpointError` as `resolve` does.
    """
    cached = _cached(model)
    if cached is not None and _is_whole(cached) and (is_adapter(cached) or has_tokenizer(cached)):
        return Snapshot(model, cached.name, cached, {}, {})
    try:
        return _listed(model)
    except CheckpointError:
        if cached is None or not _is_whole(cached):  # without a tokenizer, it may have none
            raise
        return Snapshot(model, cached.name, cached, {}, {})


def cached(model: HubId) -> Path | None:
    """Return the folder of a model in the cache, None unless all of it is there. The hub is not asked."""
    folder = _cached(model)
    return folder if folder is not None and _is_whole(folder) else None


def fetch(snapshot: Snapshot) -> Path:
    """Download what the cache lacks, and return the model's folder in the cache. Raises `CheckpointError`."""
    return download(snapshot.id, snapshot.commit, snapshot.files)


def download(model: HubId, commit: str, names: Mapping[str, int] | list[str]) -> Path:
    """Download files of a model at a commit, and return its folder in the cache. Raises `CheckpointError`."""
    from huggingface_hub import snapshot_download

    with explained(model):
        folder = Path(
            snapshot_download(
                model.repository, revision=model.revision, allow_patterns=[escape(name) for name in names]
            )
        )
    if folder.name != commit:
        raise CheckpointError(f"{model}: was changed on the hub just now; type the same command again")
    return folder


def name_of(folder: Path) -> str | None:
    """Return `org/name@commit` for a snapshot in the hub's cache, None for any other folder."""
    from huggingface_hub import constants

    cache, parts = Path(constants.HF_HUB_CACHE).resolve(), folder.parent.parent.name.split("--")
    inside = folder.parent.name == "snapshots" and folder.parent.parent.parent.resolve() == cache
    if not inside or len(parts) != 3 or parts[0] != "models" or not _COMMIT.fullmatch(folder.name):
        return None
    return f"{parts[1]}/{parts[2]}@{folder.name}"


def address(model: HubId) -> str:
    """Return the address of a model's page."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{model.repository}"


def _cached(model: HubId) -> Path | None:
    """Return the folder of a model in the cache, whole or not."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", CONFIG):
        file = try_to_load_from_cache(model.repository, name, revision=model.revision)
        if isinstance(file, str):
            return Path(file).parent
    return None


def _is_whole(folder: Path) -> bool:
    """Return whether a folder has the configuration and all weights of a model, or of an adapter."""
    try:
        if is_adapter(folder):
            return bool(read_stored(folder))
        return bool(Folder(folder).config)
    except CheckpointError:
        return False


def _listed(model: HubId) -> Snapshot:
    """Return what the hub says that a model consists of."""
    from huggingface_hub import hf_hub_download, snapshot_download

    with explained(model), _without_bars():
        patterns = [*_BESIDE, "*.safetensors", *PICKLES]
        listed = snapshot_download(model.repository, revision=model.revision, allow_patterns=patterns, dry_run=True)
        entries = {entry.filename: entry for entry in listed}
        if not entries:
            raise CheckpointError(f"{model}: holds no model; expected config.json and safetensors")
        commit = next(iter(entries.values())).commit_hash
        weights = {name for name in entries if name.endswith(".safetensors") and "/" not in name}
        if WEIGHTS in entries:
            weights = {WEIGHTS}
        elif INDEX in entries:
            index = read_object(Path(hf_hub_download(model.repository, INDEX, revision=commit)))
            mapped = index.get("weight_map")
            weights = set(mapped.values()) & weights if isinstance(mapped, dict) else weights
        elif CONFIG in entries:
            weights &= {ADAPTER_WEIGHTS}
    if not weights:
        pickles = sorted(name for name in entries if "/" not in name and name.endswith(_SUFFIXES))
        why = f"only pickle weights ({pickles[0]}), which can run code when read" if pickles else "no safetensors"
        raise CheckpointError(
            f"{model}: {why}; expected a revision with safetensors, or a folder with the model saved by transformers' save_pretrained"
        )
    if "modules.json" in entries:
        weights |= {name for name in entries if Path(name).match(_MODULE_WEIGHTS)}
    names = [name for name in sorted(entries) if name in weights or not name.endswith((".safetensors", *_SUFFIXES))]
    files = {name: entries[name].file_size or 0 for name in names}
    missing = {name: files[name] for name in names if entries[name].will_download}
    folder = None if missing else download(model, commit, files)
    return Snapshot(model, commit, folder, files, missing)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep huggingface_hub from drawing bars of progress where nothing is downloaded."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()


@contextmanager
def explained(model: HubId) -> Iterator[None]:
    """Raise what huggingface_hub raises as a `CheckpointError` that says what to type."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        causes = [error, error.__cause__] if error.__cause__ is not None else [error]
        said = next((words for cause in causes if (words := _words(model, cause)) is not None), None)
        if said is None:
            raise
        raise CheckpointError(f"{model}: {said}") from None


def _words(model: HubId, error: BaseException) -> str | None:
    """Return what an error of the hub means, and what to type; None for any other error."""
    from huggingface_hub import constants, errors

    place = address(model)
    there = f"`hf download {model.repository} --revision {model.revision}` where there is a network fills the cache ({constants.HF_HUB_CACHE})"
    match error:
        case errors.GatedRepoError():
            return f"the model is gated; accept its conditions at {place}, and type `hf auth login`, or set HF_TOKEN to a token of that account"
        case errors.RevisionNotFoundError():
            return (
                f"the model has no revision `{model.revision}`; expected a branch, a tag or a commit that {place} lists"
            )
        case errors.RepositoryNotFoundError():
            return f"no such folder here, and no such model at {constants.ENDPOINT}, or a private one; check the name, or type `hf auth login` for a private model"
        case errors.OfflineModeIsEnabled():
            return f"no such folder here, not in the cache, and HF_HUB_OFFLINE is set; unset it, or {there}"
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            return f"the hub refuses this account ({error.response.status_code}); type `hf auth login`, or set HF_TOKEN, with a token that may read or write {place}"
        case errors.HfHubHTTPError():
            return f"the hub answers {error.response.status_code} ({str(error).partition(chr(10))[0][:200]}); type the same command again later"
        case errors.SafetensorsParsingError():
            return f"a safetensors file has no valid header ({str(error)[:200]})"
        case errors.HFValidationError():
            return f"no such folder here, and not a name of the hub ({str(error)[:200]})"
        case errors.LocalEntryNotFoundError() | OSError() if error.__cause__ is None:
            return f"the download failed ({str(error)[:200]}); type the same command again"
        case _ if type(error).__module__.startswith("httpx"):
            return f"no such folder here, not in the cache, and {constants.ENDPOINT} cannot be reached ({type(error).__name__}); type the same command again, or {there}"
    return None
