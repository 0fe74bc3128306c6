"""Push: a checkpoint folder as a model of the hub."""

from glob import escape
from pathlib import Path

from evomerge.checkpoints.folder import PICKLES, Folder, check_inside
from evomerge.checkpoints.hub.reference import HubId
from evomerge.checkpoints.hub.snapshot import explained
from evomerge.checkpoints.lora import is_adapter, read_config, read_stored
from evomerge.errors import CheckpointError


def contents(folder: Path) -> dict[str, int]:
    """Return the bytes of each file of a checkpoint that `push` sends, by name: all but hidden files and pickles.

    Raises `CheckpointError` unless the folder holds a whole model, or a whole adapter, and no link out of it.
    """
    if is_adapter(folder):
        read_config(folder)
        read_stored(folder)
    elif not Folder(folder).config:
        raise CheckpointError(f"{folder / 'config.json'}: is empty; expected the model's configuration")
    files = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if file.is_file() and not hidden and not any(file.match(pattern) for pattern in PICKLES):
            check_inside(file, folder)
            files[name.as_posix()] = file.stat().st_size
    return files


def push(folder: Path, model: HubId, *, private: bool) -> str:
    """Send a checkpoint to the hub as one commit, and return its address. The repository is created where there is none.

    Files of the same names there are replaced, others stay. `private` is for a new repository. Raises `CheckpointError`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    files = contents(folder)
    api = HfApi()
    with explained(model):
        api.create_repo(model.repository, private=private, exist_ok=True)
        try:
            commit = api.upload_folder(
                repo_id=model.repository,
                folder_path=folder,
                allow_patterns=[escape(name) for name in files],
                commit_message="Upload the model",
            )
        except (OSError, RuntimeError, ValueError) as error:  # of git-LFS and Xet, each in words of its own
            cause = error.__cause__ or error
            if isinstance(cause, HfHubHTTPError):
                raise
            said = " ".join(f"{error} {'' if cause is error else cause}".split())
            msg = f"{model}: the upload failed ({said[:300]}), and nothing was committed; type the same command again: what arrived is not sent twice"
            raise CheckpointError(msg) from None
    return str(commit.commit_url)
