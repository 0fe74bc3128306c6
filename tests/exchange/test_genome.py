"""mergekit-evolve's configurations as studies."""

import pytest
from exchange.files import keys, models, read

from evomerge.errors import RecipeError
from evomerge.settings import StudySettings
from evomerge.space import SearchSpace

TASKS = ["quiz", {"name": "sums", "weight": 2, "metric": "exact_match,strict-match"}]


def evolve(folders, method="ties", **genome):
    named = {"models": [folders["maths"], folders["code"]], "merge_method": method, "base_model": folders["base"]}
    return {"genome": {**named, **genome}, "tasks": TASKS}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return models(tmp_path_factory.mktemp("models"))


def space_of(imported, folder):
    settings = StudySettings.parse(imported.data, "study", folder)
    return SearchSpace.parse(settings.space, experts=["maths", "code"], kinds=("attention", "mlp"), blocks=4)


def test_weights_and_densities_are_genes_of_groups_of_layers(folders, tmp_path):
    imported = read(tmp_path, evolve(folders, layer_granularity=2, allow_negative_weights=True))
    genes = {gene.name: gene for gene in space_of(imported, tmp_path).genes}
    assert len(genes) == 2 * 2 * 2
    assert {(gene.low, gene.high) for name, gene in genes.items() if "weight" in name} == {(-1, 1)}
    assert all(gene.init == (0.5 if "weight" in name else 1) for name, gene in genes.items())


@pytest.mark.parametrize(
    ("more", "per"),
    [
        ({}, ["expert"]),
        ({"layer_granularity": 1, "smooth": True}, ["expert", "depth/4"]),
        ({"filters": ["self_attn"], "layer_granularity": 4}, ["expert", "kind"]),
        ({"filters": ["self_attn"], "layer_granularity": 2}, ["expert", "kind", "block/2"]),
    ],
)
def test_granularity_smoothness_and_filters_are_axes(folders, tmp_path, more, per):
    imported = read(tmp_path, evolve(folders, "task_arithmetic", **more))
    assert imported.data["space"]["recipe"]["merge"]["parameters"]["weight"]["per"] == per
    assert ("filters" in keys(imported)) == ("filters" in more)
    space_of(imported, tmp_path)


def test_slerp_s_t_is_a_gene_between_two_models(folders, tmp_path):
    imported = read(tmp_path, evolve(folders, "slerp", layer_granularity=2))
    assert [gene.name for gene in space_of(imported, tmp_path).genes] == ["t[block 0]", "t[block 1]"]
    with pytest.raises(RecipeError, match="exactly two"):
        read(tmp_path, evolve(folders, "slerp", models=[folders[name] for name in ("maths", "code", "prose")]))


def test_tasks_are_places_to_fill_in_with_their_weights(folders, tmp_path):
    imported = read(tmp_path, evolve(folders))
    tasks = imported.data["tasks"]
    assert {name: task["kind"] for name, task in tasks.items()} == {"quiz": "multiple_choice", "sums": "generation"}
    assert all(task["search"].startswith("FILL-IN/") for task in tasks.values())
    assert imported.data["driver"] == {"kind": "cma", "weights": {"quiz/accuracy": 1.0, "sums/accuracy": 2.0}}
    assert "FILL-IN" in imported.notes[-1].text


@pytest.mark.parametrize(
    ("genome", "message"),
    [
        ({"layer_granularity": 3}, "expected a divisor of 4"),
        ({"merge_method": "sce"}, "merge_method"),
        ({"base_model": None}, "`genome.base_model` is missing"),
        ({"smoth": True}, "did you mean `smooth`"),
        ({"models": ["org/a", "org/b"], "base_model": "org/c", "layer_granularity": 2}, "is not on this machine"),
    ],
)
def test_what_cannot_be_searched_is_refused(folders, tmp_path, genome, message):
    with pytest.raises(RecipeError, match=message):
        read(tmp_path, evolve(folders, **genome))
