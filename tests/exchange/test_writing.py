"""Recipes as mergekit's files, and back: the same id."""

import pytest
import yaml
from exchange.files import models, read

from evomerge import exchange
from evomerge.checkpoints.folder import Folder
from evomerge.errors import RecipeError
from evomerge.exchange.tables import Outline
from evomerge.recipe import Recipe

KINDS = ("attention", "embedding", "head", "mlp", "norm")


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folders = models(tmp_path_factory.mktemp("models"))
    return folders, Outline.of(Folder(folders["base"]))


def merge(method, *inputs, **parameters):
    return {"merge": {"method": method, "inputs": list(inputs or ("maths", "code")), "parameters": parameters}}


def by_expert(*values):
    return {"per": ["expert"], "values": dict(zip(("maths", "code"), values, strict=True))}


THEIRS = {"scope": "tensor", "equals": "first", "rounding": "down", "undecided": "positive"}
SAME = [  # recipe, whether by mergekit's definitions
    (merge("task_arithmetic", weight=by_expert(0.3, 0.9), **{"lambda": 1}), False),
    (merge("task_arithmetic", weight={"per": ["block/2"], "values": [0.1, 0.7]}, **{"lambda": 0.5}), False),
    (merge("task_arithmetic", weight={"per": ["depth/3"], "values": [0.1, 0.7, 0.2]}, **{"lambda": 1}), False),
    (merge("ties", weight=0.4, density=by_expert(0.5, 0.25)), False),
    (merge("ties", weight=0.4, density=0.5, **THEIRS), True),
    (merge("ties", weight={"per": ["kind"], "values": {k: i / 5 for i, k in enumerate(KINDS)}}, density=0.5), False),
    (merge("dare_linear", weight=0.4, drop=0.35, **{"lambda": 0.5}), False),
    (merge("dare_linear", weight=0.4, drop=0.35, rescale="l1"), True),
    (merge("della", weight=0.4, density=0.5, epsilon=0.1, **{"lambda": 1}), False),
    (merge("sce", select=0.3, equal_below=1e-6, equals="first", rounding="down"), True),
    (merge("slerp", "base", "code", t={"per": ["depth/2"], "values": [0, 1]}), False),
    (merge("nuslerp", weight=by_expert(0.3, 0.9)), False),
    (merge("model_stock", bounds="none"), True),
    (merge("task_arithmetic", merge("ties", weight=0.9, density=0.5), "prose", weight=0.5, **{"lambda": 1}), False),
    ({"stack": {"slots": [{"source": "maths", "layer": i} for i in (0, 1, 1, 3)], "rest": "maths"}}, False),
    ({"stack": {"slots": [{"source": merge("ties", weight=0.9, density=0.5), "layer": i} for i in (0, 2)], "rest": merge("ties", weight=0.9, density=0.5)}}, False),
]  # fmt: skip


@pytest.mark.parametrize(("data", "exact"), SAME)
def test_out_and_in_is_the_same_recipe(pool, tmp_path, data, exact):
    folders, outline = pool
    recipe = Recipe.parse(data)
    written = exchange.write(recipe, folders, outline)
    assert read(tmp_path, *written.documents, exact=exact).recipe.id == recipe.id


def test_merges_of_raw_weights_have_no_base_there(pool):
    folders, outline = pool
    for method, weight in {"linear": 0.3, "karcher": None}.items():
        recipe = Recipe.parse(merge(method, **({} if weight is None else {"weight": weight})))
        [document] = exchange.write(recipe, folders, outline).documents
        assert "base_model" not in document
        assert [entry["model"] for entry in document["models"]] == [folders["maths"], folders["code"]]
    stages = {"origin": "zero", "weigh": [{"weight": {"weight": 0.3}}]}
    [document] = exchange.write(
        Recipe.parse({"merge": {"inputs": ["maths"], "stages": stages}}), folders, outline
    ).documents
    assert document == {
        "merge_method": "linear",
        "models": [{"model": folders["maths"], "parameters": {"weight": 0.3}}],
        "parameters": {"normalize": False},
    }


def test_tables_over_tensors_are_filters_by_their_names(pool, tmp_path):
    folders, outline = pool
    weight = {"per": ["tensor"], "values": {name: i / 100 for i, name in enumerate(outline.places)}}
    recipe = Recipe.parse(merge("task_arithmetic", "maths", weight=weight, **{"lambda": 1}))
    assert read(tmp_path, *exchange.write(recipe, folders, outline).documents).recipe.id == recipe.id


def test_a_curve_gives_norm_and_head_their_own_value_there(pool):
    folders, outline = pool
    recipe = Recipe.parse(
        merge("task_arithmetic", "maths", weight={"per": ["depth/2"], "values": [0, 1]}, **{"lambda": 1})
    )
    [document] = exchange.write(recipe, folders, outline).documents
    assert document["models"][0]["parameters"]["weight"] == [
        {"filter": "lm_head.weight", "value": 1},
        {"filter": "model.norm.weight", "value": 1},
        {"value": [0, 1]},
    ]


def test_the_notes_are_those_of_definitions_that_are_not_mergekit_s(pool):
    def keys(**parameters):
        recipe = Recipe.parse(merge("ties", weight=1, density=0.5, **parameters))
        return [note.key for note in exchange.write(recipe, *pool).notes]

    assert keys() == ["scope", "rounding", "equals", "undecided"]
    assert keys(scope="tensor") == ["rounding", "equals", "undecided"]
    assert keys(**THEIRS) == []


IMPOSSIBLE = [
    (merge("tsv"), "`recipe.merge.method`: it has no tsv"),
    (merge("ties", weight=1, density=0.5, elect="count"), "`recipe.merge.parameters.elect`: 'count'"),
    (merge("ties", weight=1, density=0.5, undecided="majority"), "`recipe.merge.parameters.undecided`"),
    (merge("ties", weight=1, density=0.5, reduce="max"), "`recipe.merge.parameters.reduce`: 'max'"),
    (merge("dare_ties", weight=1, drop=0.5, density=0.3), "a trim after the drop"),
    ({"merge": {**merge("dare_linear")["merge"], "seed": 3}}, "`recipe.merge.seed`"),
    ({"merge": {"inputs": ["maths"], "stages": {"edit": ["trim"]}}}, "`recipe.merge.stages`"),
    (
        merge("linear", merge("linear", "maths", merge("pcb"))),
        r"inputs\[0\].merge.inputs\[1\].merge.method`: it has no pcb",
    ),
    ({"stack": {"slots": [{"source": "maths", "layer": 0, "scale": 0.5}], "rest": "maths"}}, r"slots\[0\].scale"),
    ({"stack": {"slots": [{"source": "maths", "layer": 0}], "rest": "code"}}, "`recipe.stack.rest`"),
    ({"member": "0" * 64}, "earlier candidate"),
]


@pytest.mark.parametrize(("data", "message"), IMPOSSIBLE)
def test_what_mergekit_cannot_express_is_named(pool, data, message):
    with pytest.raises(RecipeError, match=message):
        exchange.write(Recipe.parse(data), *pool)


@pytest.mark.filterwarnings("ignore")  # mergekit's own
def test_mergekit_reads_what_is_written(pool):
    configuration = pytest.importorskip("mergekit.config")
    for data, _ in SAME:
        for document in exchange.write(Recipe.parse(data), *pool).documents:
            plain = yaml.safe_load(yaml.safe_dump({key: value for key, value in document.items() if key != "name"}))
            configuration.MergeConfiguration.model_validate(plain)
