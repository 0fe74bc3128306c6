"""An exported member of a population comes with its complete lineage, as data and as a picture."""

import pytest
import torch
from pools import Models, write_pool

from evomerge import recipe, strict_yaml
from evomerge.build import Builder
from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.members import Members
from evomerge.checkpoints.pool import Pool
from evomerge.cli import main
from evomerge.errors import RecipeError
from evomerge.recipe import Recipe
from evomerge.report import family
from evomerge.report.export import export


def child(*parents, weight=0.5):
    inputs = [{"member": parent.id} for parent in parents]
    return Recipe.parse({"merge": {"method": "linear", "inputs": inputs, "parameters": {"weight": weight}}})


@pytest.fixture(scope="module")
def members():
    maths, code, prose = (recipe.expert(name) for name in ("maths", "code", "prose"))
    one = child(maths, code, weight=0.3)
    two = child(code, prose)
    return [maths, code, prose, one, two, child(one, two, weight=0.7), child(one, maths)]


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = write_pool(tmp_path_factory.mktemp("pool"), Models.random(4))
    return Pool(folder / "base", {name: folder / name for name in ("maths", "code", "prose", "law")})


@pytest.fixture(scope="module")
def exported(members, pool, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "model"
    export(members[5], pool, out, lineage={member.id: member for member in members})
    return out


def test_export_has_the_members_weights(exported, members, pool):
    ancestors = Members()
    ancestors.lineage |= {member.id: member for member in members}
    built = Builder(pool, members=ancestors).build(members[5])
    folder = Folder(exported)
    for name in built.info:
        assert torch.equal(folder.tensor(name), built.tensor(name)), name


def test_export_has_the_ancestors(exported, members):
    data = strict_yaml.read(exported / "recipe.yaml")
    assert {Recipe.parse(each).id for each in data["members"].values()} == set(data["members"])
    assert set(data["members"]) == {member.id for member in members[:5]}
    assert (exported / "family.png").read_bytes().startswith(b"\x89PNG")
    card = (exported / "README.md").read_text()
    assert "the expert maths, the expert code and the expert prose" in card
    assert "The pool also held law" in card
    assert "made of earlier candidates of its search, 5 in all" in card


def test_merge_makes_the_same_bytes_from_the_exported_recipe(exported, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["evomerge", "merge", str(exported / "recipe.yaml"), "-o", str(tmp_path / "again")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    again = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert again == (exported / "model.safetensors").read_bytes()


def test_changed_ancestor_is_refused(exported, tmp_path, monkeypatch, capsys):
    data = strict_yaml.read(exported / "recipe.yaml")
    changed = next(each for each in data["members"].values() if "merge" in each)
    changed["merge"]["parameters"]["weight"] = 0.9
    (tmp_path / "recipe.yaml").write_text(strict_yaml.text(data))
    monkeypatch.setattr("sys.argv", ["evomerge", "merge", str(tmp_path / "recipe.yaml"), "-o", str(tmp_path / "again")])
    with pytest.raises(SystemExit):
        main()
    assert "it was changed" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_member_without_its_lineage_is_refused_before_anything_is_written(members, pool, tmp_path):
    with pytest.raises(RecipeError, match="no candidate"):
        export(members[5], pool, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_generations_are_lengths_of_longest_paths(members):
    depths = family._generations({member.id: member for member in members})
    assert [depths[member.id] for member in members] == [0, 0, 0, 1, 1, 2, 2]


def test_of_many_ancestors_the_nearest_are_drawn(members):
    line = list(members[:2])
    for _ in range(400):
        line.append(child(line[-2], line[-1]))
    figure = family.draw(line[-1], {one.id: one for one in line})
    assert "the nearest 150" in figure.axes[0].get_title()
