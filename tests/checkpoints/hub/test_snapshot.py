"""Models of the hub as folders: from a cache that is laid out as the hub's, and downloaded from a hub on loopback."""

import pytest
from hubs import COMMIT, fill_cache, read_files, serve
from pools import TENSORS, write_checkpoint

from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.hub import HubId, find, missing, name_of, resolve
from evomerge.errors import CheckpointError


@pytest.fixture
def model(tmp_path):
    """The files of a model of two shards, with a tokenizer, and with files that are never downloaded."""
    files = read_files(write_checkpoint(tmp_path / "model", TENSORS, shards=2))
    others = ("pytorch_model.bin", "consolidated.safetensors", "modeling_own.py", "README.md", "onnx/model.safetensors")
    return files | {"tokenizer.json": b"{}"} | dict.fromkeys(others, b"never")


@pytest.fixture
def hub(tmp_path, model):
    with serve(tmp_path / "cache") as served:
        served.models["org/model"] = model
        yield served


def wanted(model):
    return {name: content for name, content in model.items() if content != b"never"}


def test_only_safetensors_json_and_the_tokenizer_are_downloaded(hub, model):
    folder = resolve("hf://org/model@main")
    assert read_files(Folder(folder).path) == wanted(model)
    assert {name for name, _ in hub.bodies} == wanted(model).keys()


def test_what_is_downloaded_and_how_much_is_said_first(hub, model):
    lines = []
    resolve("hf://org/model@main", lines.append)
    needed = sum(map(len, wanted(model).values()))
    assert lines == [f"org/model@main: commit {COMMIT[:12]}, 5 files to download, {needed} bytes"]


def test_what_is_in_the_cache_is_taken_without_asking_the_hub(hub):
    folder, lines = resolve("hf://org/model@main"), []
    hub.asked.clear()
    assert resolve("hf://org/model@main", lines.append) == folder
    assert resolve(f"hf://org/model@{COMMIT}") == folder
    assert lines == [f"org/model@main: commit {COMMIT[:12]}, in the cache"]
    assert hub.asked == []


def test_a_cache_that_others_filled_serves_offline(tmp_path, model):
    with serve(tmp_path / "cache", offline=True):
        folder = fill_cache(tmp_path / "cache", "org/model", wanted(model))
        assert resolve("hf://org/model@main") == str(folder)
        assert name_of(folder) == f"org/model@{COMMIT}"
        assert set(Folder(folder).info) == set(TENSORS)


def test_without_a_tokenizer_a_whole_model_in_the_cache_serves_offline(tmp_path, model):
    files = {name: content for name, content in wanted(model).items() if name != "tokenizer.json"}
    with serve(tmp_path / "cache", offline=True):
        folder = fill_cache(tmp_path / "cache", "org/model", files)
        assert resolve("hf://org/model@main") == str(folder)


def test_what_the_cache_lacks_is_downloaded_alone(hub, tmp_path, model):
    shard = "model-00002-of-00002.safetensors"
    fill_cache(tmp_path / "cache", "org/model", {name: c for name, c in wanted(model).items() if name != shard})
    snapshot = find(HubId("org/model"))
    assert snapshot.folder is None
    assert snapshot.missing == {shard: len(model[shard])}
    resolve("hf://org/model@main")
    assert {name for name, _ in hub.bodies} == {shard}


def test_an_adapter_is_a_model_too(hub):
    hub.models["org/adapter"] = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"a", "optimizer.pt": b"o"}
    assert find(HubId("org/adapter")).missing == {"adapter_config.json": 2, "adapter_model.safetensors": 1}


def test_nothing_is_downloaded_for_a_question(hub):
    lines = []
    assert missing(["/a/folder", "hf://org/model@main"], lines.append)
    assert "to download" in lines[0]
    assert lines[-1].startswith("nothing was downloaded; without `--dry-run`, ")
    assert {name for name, _ in hub.bodies} <= {"model.safetensors.index.json"}
    assert not missing(["/a/folder"], lines.append)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("hf://org/none@main", "org/none@main: no such folder here, and no such model at http://127.0.0.1"),
        (
            "hf://org/gated@main",
            r"org/gated@main: the model is gated; accept its conditions at .*, and type `hf auth login`",
        ),
        ("hf://org/model@v9", "org/model@v9: the model has no revision `v9`; expected a branch"),
        ("hf://org/pickles@main", r"org/pickles@main: only pickle weights \(pytorch_model.bin\), which can run code"),
        ("hf://org/data@main", "org/data@main: no safetensors; expected a revision with safetensors"),
        ("hf://org/empty@main", "org/empty@main: holds no model"),
    ],
)
def test_a_model_that_cannot_be_had_is_one_error_that_says_what_to_type(hub, model, reference, message):
    hub.models |= {"org/gated": model, "org/pickles": {"config.json": b"{}", "pytorch_model.bin": b"p"}}
    hub.models |= {"org/data": {"config.json": b"{}"}, "org/empty": {"a.png": b""}}
    hub.gated.add("org/gated")
    with pytest.raises(CheckpointError, match=message):
        resolve(reference)


def test_offline_and_not_in_the_cache_says_how_to_fill_it(tmp_path):
    with serve(tmp_path / "cache", offline=True), pytest.raises(CheckpointError) as error:
        resolve("hf://org/model@v1")
    assert str(error.value).startswith(
        "org/model@v1: no such folder here, not in the cache, and HF_HUB_OFFLINE is set; unset it, or `hf download org/model --revision v1`"
    )


def test_a_folder_outside_of_the_cache_has_no_name(tmp_path):
    with serve(tmp_path / "cache"):
        other = fill_cache(tmp_path / "elsewhere", "org/model", {"config.json": b"{}"})
        assert name_of(other) is None
        assert name_of(tmp_path) is None
