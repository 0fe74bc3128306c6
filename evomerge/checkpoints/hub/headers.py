"""Headers: a model of the hub without its weights, as a folder whose weights files hold nothing but what they describe.

Every check that reads no tensor works on such a folder as on a whole one.
"""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from evomerge.checkpoints.hub.snapshot import Snapshot, download, explained

_PARALLEL = 8


def fetch_headers(snapshot: Snapshot, folder: Path) -> None:
    """Fill `folder` with the JSON and tokenizer files of a model, and its weights files with their headers alone.

    Headers are read by range requests. The files have the length of the real ones and no content: they take no space on disks
    that know sparse files. Raises `CheckpointError` as `resolve` does.
    """
    weights = [name for name in snapshot.files if name.endswith(".safetensors")]
    small = [name for name in snapshot.files if name not in weights]
    cached = download(snapshot.id, snapshot.commit, small)
    for name in small:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(cached / name, folder / name)
    with ThreadPoolExecutor(_PARALLEL) as pool:
        list(pool.map(lambda name: _write_header(snapshot, name, folder / name), weights))


def _write_header(snapshot: Snapshot, name: str, file: Path) -> None:
    from huggingface_hub import HfApi

    with explained(snapshot.id):
        metadata = HfApi().parse_safetensors_file_metadata(snapshot.id.repository, name, revision=snapshot.commit)
    entries = {
        tensor: {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": entry.data_offsets}
        for tensor, entry in metadata.tensors.items()
    }
    text = json.dumps(entries).encode("utf-8")
    end = max((entry.data_offsets[1] for entry in metadata.tensors.values()), default=0)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)
