"""A candidate made of earlier ones has the same weights, whether those are in memory, on disk, or must be made again."""

import pytest
import torch
from pools import Models, write_pool

from evomerge import recipe
from evomerge.build import Builder
from evomerge.checkpoints.members import Members, ancestors
from evomerge.checkpoints.pool import Pool
from evomerge.errors import RecipeError
from evomerge.recipe import Recipe

SIZE = sum(tensor.nbytes for tensor in Models.random(1).base.values())


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = write_pool(tmp_path_factory.mktemp("pool"), Models.random(3))
    return Pool(folder / "base", {name: folder / name for name in ("maths", "code", "prose")})


def child(*parents, weight=0.5):
    inputs = [{"member": parent.id} for parent in parents]
    return Recipe.parse({"merge": {"method": "linear", "inputs": inputs, "parameters": {"weight": weight}}})


def family(generations):
    """Return candidates of which each is a child of the two before it; the first two are experts."""
    recipes = [recipe.expert("maths"), recipe.expert("code")]
    for i in range(generations):
        recipes.append(child(recipes[-2], recipes[-1], weight=0.3 + 0.1 * (i % 5)))
    return recipes


def known(recipes, **options):
    members = Members(**options)
    members.lineage |= {one.id: one for one in recipes}
    return members


def content(checkpoint):
    return {name: checkpoint.tensor(name).clone() for name in checkpoint.info}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_child_of_experts_is_their_merge(pool):
    recipes = family(1)
    found = Builder(pool, members=known(recipes)).build(recipes[-1])
    plain = Builder(pool).build(recipe.merge("linear", ["maths", "code"], {"weight": 0.3}))
    assert same(content(found), content(plain))


def test_weights_do_not_depend_on_the_cache(pool, tmp_path):
    recipes = family(12)
    stores = {
        "all in memory": known(recipes),
        "on disk": known(recipes, budget=2 * SIZE, folder=tmp_path / "disk"),
        "on disk at once": known(recipes, folder=tmp_path / "shared", shared=True),
        "made again": known(recipes, budget=0),
    }
    found = {}
    for name, members in stores.items():
        builder = Builder(pool, members=members)
        for one in recipes[2:]:
            found[name] = content(members.keep(one.id, builder.build(one)))
    for name in stores:
        assert same(found[name], found["all in memory"]), name
    assert len(list((tmp_path / "shared").glob("*"))) == 12
    assert 0 < len(list((tmp_path / "disk").glob("*"))) < 12


def test_dropped_ancestors_are_rebuilt_over_any_number_of_generations(pool):
    recipes = family(1500)
    members = known(recipes)
    builder = Builder(pool, members=members)
    assert members.missing(recipes[5]) == [one.id for one in recipes[2:5]]
    assert members.missing(recipes[-1]) == [one.id for one in recipes[2:-1]]
    small = recipes[:40]
    whole = content(builder.build(small[-1]))
    fresh = Builder(pool, members=known(recipes))
    for one in small[2:]:
        fresh.members.keep(one.id, fresh.build(one))
    assert same(whole, content(fresh.build(small[-1])))


def test_others_than_those_retained_are_let_go(pool, tmp_path):
    recipes = family(6)
    members = known(recipes, folder=tmp_path, shared=True)
    builder = Builder(pool, members=members)
    for one in recipes[2:]:
        members.keep(one.id, builder.build(one))
    alive = {recipes[4].id, recipes[7].id}
    members.retain(alive)
    assert {path.stem for path in tmp_path.glob("*.safetensors")} == alive
    assert {one.id for one in recipes if members.find(one.id) is not None} == alive


def test_memory_stays_within_its_budget(pool):
    recipes = family(9)
    members = known(recipes, budget=3 * SIZE)
    builder = Builder(pool, members=members)
    for one in recipes[2:]:
        members.keep(one.id, builder.build(one))
        assert sum(members.find(other.id) is not None for other in recipes[2:]) <= 3


def test_ancestors_have_recipes_and_end_at_complete_candidates():
    recipes = family(4)
    lineage = {one.id: one for one in recipes}
    assert dict(ancestors(recipes[-1], lineage)) == {one.id: one for one in recipes[:-1]}
    assert [one for _, one in ancestors(recipes[-1], lineage, {recipes[3].id, recipes[4].id}.__contains__)] == [
        recipes[3],
        recipes[4],
    ]


def test_member_without_lineage_is_refused(pool):
    recipes = family(2)
    for members in (Members(), known(recipes[1:3])):
        with pytest.raises(RecipeError, match=r"no candidate `[0-9a-f]{12}…` is in the lineage.*under `members`"):
            Builder(pool, members=members).build(recipes[3])


def test_preparations_of_a_member_that_is_an_expert_are_those_of_the_expert(pool, monkeypatch):
    """Singular vectors of an expert, along which a population mutates, are computed once, not for every child."""
    child = Recipe.parse({"merge": {"method": "linear", "inputs": ["maths", "prose"]}})
    recipes = [recipe.expert("prose"), child]
    named = [{"member": child.id}, {"member": recipe.expert("prose").id}]
    mutants = [Recipe.parse({"merge": {"method": "svd_mutate", "inputs": named, "seed": seed}}) for seed in range(3)]
    found = []
    decompose = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *given, **more: found.append(1) or decompose(*given, **more))
    builder = Builder(pool, members=known(recipes))
    counts = []
    for mutant in mutants:
        built = builder.build(mutant)
        for name in built.info:
            built.tensor(name)
        counts.append(len(found))
    assert counts[0] > 0
    assert counts == counts[:1] * 3


def test_stack_may_take_layers_of_members(pool):
    recipes = family(2)
    slots = [{"source": {"member": recipes[-1].id}, "layer": 0}, {"source": "prose", "layer": 1}]
    stack = Recipe.parse({"stack": {"slots": slots, "rest": {"member": recipes[-2].id}}})
    builder = Builder(pool, members=known(recipes))
    built, last = builder.build(stack), builder.build(recipes[-1])
    for name in built.info:
        if name.startswith("layers.0."):
            assert torch.equal(built.tensor(name), last.tensor(name))
