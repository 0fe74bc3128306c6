"""`evomerge push`: a whole checkpoint, shown first, sent to a hub on loopback."""

import pytest
from commands import evomerge
from hubs import read_files, serve
from pools import TENSORS, write_checkpoint


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
