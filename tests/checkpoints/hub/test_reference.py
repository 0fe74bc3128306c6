"""What names a model: a folder, or an id of the hub."""

import pytest

from evomerge.checkpoints.hub import HubId, hub_id, locate


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("org/name", "hf://org/name@main"),
        ("org/name@v1.0", "hf://org/name@v1.0"),
        ("org/name@refs/pr/1", "hf://org/name@refs/pr/1"),
        ("hf://org/name", "hf://org/name@main"),
    ],
)
def test_an_id_without_a_folder_of_that_name_is_on_the_hub(text, found, tmp_path):
    assert locate(text, tmp_path) == found
    assert hub_id(found) == hub_id(found.replace("://", ":/")), "a path has one slash"


@pytest.mark.parametrize(
    "text", ["name", "a/b/c", "./org/name", "../org/name", "/org/name", "org/recipe.yaml", "org/na me", "org/", ""]
)
def test_anything_else_is_a_path(text, tmp_path):
    assert hub_id(locate(text, tmp_path)) is None
    assert hub_id(text) is None


def test_a_folder_of_that_name_goes_before_the_hub(tmp_path):
    (tmp_path / "org/name").mkdir(parents=True)
    assert locate("org/name", tmp_path) == str(tmp_path / "org/name")
    assert locate("org/name@v1", tmp_path) == "hf://org/name@v1"
    assert locate("hf://org/name", tmp_path) == "hf://org/name@main", "spelled out, it is the hub's"


def test_without_a_revision_it_is_the_main_branch():
    assert hub_id("hf://org/name") == HubId("org/name", "main")
