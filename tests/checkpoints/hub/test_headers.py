"""Headers of a model of the hub, read by ranges: what a folder says without its weights."""

import pytest
from hubs import read_files, serve
from pools import Models, write_checkpoint

from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.hub import HubId, find
from evomerge.checkpoints.hub.headers import fetch_headers
from evomerge.errors import CheckpointError


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_of_headers_says_what_the_model_says_and_takes_no_weights(shards, tmp_path):
    folder = write_checkpoint(tmp_path / "model", Models.random(1).base, shards=shards)
    with serve(tmp_path / "cache") as hub:
        hub.models["org/model"] = read_files(folder)
        fetch_headers(find(HubId("org/model")), tmp_path / "headers")
        weights = [(name, span) for name, span in hub.bodies if name.endswith(".safetensors")]
    assert len(weights) == shards
    assert all(span == "bytes=0-100000" for _, span in weights)
    headers, whole = Folder(tmp_path / "headers"), Folder(folder)
    assert headers.info == whole.info
    assert headers.config == whole.config
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_weights_without_a_header_are_an_error(tmp_path):
    with serve(tmp_path / "cache") as hub:
        hub.models["org/model"] = {"config.json": b"{}", "model.safetensors": b"\xff" * 100}
        with pytest.raises(CheckpointError, match="org/model@main: a safetensors file has no valid header"):
            fetch_headers(find(HubId("org/model")), tmp_path / "headers")
