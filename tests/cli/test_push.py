"""`evomerge push`: a whole checkpoint, shown first, sent to a hub on loopback."""

import hashlib

import pytest
import torch
from commands import evomerge
from hubs import read_files, serve
from pools import TENSORS, write_checkpoint
from safetensors.torch import save_file

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=<...>':DeprecationWarning"
)  # huggingface_hub asks httpx so


@pytest.fixture
def folder(tmp_path):
    made = write_checkpoint(tmp_path / "model", TENSORS)
    (made / "README.md").write_text("---\nlicense: mit\n---\n# A merge\n")
    (made / ".hidden").write_text("h")
    (made / "training_args.bin").write_text("p")
    return made


@pytest.fixture
def hub(tmp_path):
    with serve(tmp_path / "cache") as served:
        yield served


def sent(folder):
    return {
        name: content for name, content in read_files(folder).items() if name not in (".hidden", "training_args.bin")
    }


@pytest.mark.parametrize("private", [False, True])
def test_all_files_but_hidden_ones_and_pickles_are_sent(hub, folder, private):
    said = evomerge("push", folder, "org/merged", "--yes", *["--private"] * private).stdout
    assert hub.created == [("org/merged", private)]
    assert hub.sent["org/merged"] == sent(folder)
    assert "pushed: " in said


def test_a_dry_run_shows_what_would_be_sent_and_sends_nothing(hub, folder):
    said = evomerge("push", folder, "org/merged", "--dry-run").stdout
    for name, content in sent(folder).items():
        assert f"{name}" in said
        assert f"{len(content)} bytes" in said
    assert "3 files, " in said
    assert "/org/merged (public, where it is new)" in said
    assert hub.asked == []


def test_without_yes_it_asks(hub, folder, monkeypatch):
    assert "type the same command with `--yes`" in evomerge("push", folder, "org/merged", code=2).stderr
    assert hub.asked == []


def test_local_paths_in_the_recipe_are_said(hub, folder):
    (folder / "recipe.yaml").write_text("pool: {base: org/base@main, experts: {a: /home/me/a}}\nrecipe: base\n")
    said = evomerge("push", folder, "org/merged", "--dry-run").stdout
    assert "note: recipe.yaml, which is sent too, names folders of this machine: /home/me/a" in said


@pytest.mark.parametrize(
    ("lacks", "message"),
    [("config.json", "config.json: no such file"), ("model.safetensors", "only pickle weights")],
)
def test_only_a_whole_checkpoint_is_sent(hub, folder, lacks, message):
    (folder / lacks).unlink()
    assert message in evomerge("push", folder, "org/merged", "--yes", code=2).stderr
    assert hub.asked == []


def test_a_link_out_of_the_folder_is_not_sent(hub, folder, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (folder / "vocab.json").symlink_to(tmp_path / "secret.json")
    assert "outside of the checkpoint's folder" in evomerge("push", folder, "org/merged", "--yes", code=2).stderr


@pytest.mark.parametrize("name", ["merged", "org/merged@v1", "a/b/c"])
def test_another_name_is_refused(hub, folder, name):
    assert (
        "expected the name of a model on the hub, such as `org/name`" in evomerge("push", folder, name, code=2).stderr
    )


def test_an_account_that_may_not_write_is_told_what_to_type(hub, folder):
    hub.refused = True
    assert (
        "the hub refuses this account (401); type `hf auth login`"
        in evomerge("push", folder, "org/merged", "--yes", code=2).stderr
    )


@pytest.fixture
def large(hub, tmp_path):
    """A checkpoint of two shards, of which the hub takes the weights by git-LFS, and one of them in parts."""
    folder = write_checkpoint(tmp_path / "large", TENSORS)
    (folder / "model.safetensors").unlink()
    for name, count in (("a", 600), ("b", 3000)):
        save_file({name: torch.arange(count, dtype=torch.float32)}, folder / f"{name}.safetensors")
    index = '{"metadata": {}, "weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(index)
    hub.large, hub.part = 2000, 5000
    return folder


def paths(hub, method):
    return [path for asked, path, _ in hub.asked if asked == method]


def test_large_files_are_sent_by_git_lfs_whole_or_in_parts(hub, large):
    evomerge("push", large, "org/merged", "--yes")
    assert hub.sent["org/merged"] == sent(large)
    oid = {name: hashlib.sha256((large / f"{name}.safetensors").read_bytes()).hexdigest() for name in "ab"}
    assert sorted(paths(hub, "PUT")) == sorted([f"/object/{oid['a']}", *(f"/object/{oid['b']}/{i}" for i in (1, 2, 3))])
    assert [len(hub.parts[oid["b"], i]) for i in (1, 2, 3)] == [5000, 5000, len(hub.objects[oid["b"]]) - 10000]
    assert paths(hub, "POST").count("/verify") == 2


def test_push_that_failed_sends_only_what_is_missing_when_it_is_typed_again(hub, large):
    hub.broken = "/2"
    said = evomerge("push", large, "org/merged", "--yes", code=2).stderr
    assert "the hub refuses this account (403)" in said
    assert not hub.sent
    hub.broken, hub.asked = None, []
    evomerge("push", large, "org/merged", "--yes")
    assert hub.sent["org/merged"] == sent(large)
    assert all(path.count("/") == 3 for path in paths(hub, "PUT"))  # parts of the one alone


def test_errors_of_git_lfs_are_said(hub, large):
    hub.full = True
    said = evomerge("push", large, "org/merged", "--yes", code=2).stderr
    assert "the upload failed" in said
    assert "storage limit reached" in said
    assert "type the same command again" in said
    assert not hub.sent
