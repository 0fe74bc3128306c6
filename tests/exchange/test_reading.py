"""What mergekit's files mean here; worked out by hand from mergekit 0.1.5's configuration format."""

from pathlib import Path

import pytest
import torch
from exchange.files import keys, models, read, same
from hubs import fill_cache, read_files

from evomerge.errors import RecipeError
from evomerge.strict_yaml import YamlError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return models(tmp_path_factory.mktemp("models"))


def weighted(folders, method="task_arithmetic", **parameters):
    weights = {"maths": 0.3, "code": 0.6}
    entries = [{"model": folders[name], "parameters": {"weight": weight}} for name, weight in weights.items()]
    return {"merge_method": method, "base_model": folders["base"], "models": entries, "parameters": parameters}


EXPERTS = [{"expert": "maths"}, {"expert": "code"}]
WEIGHT = {"per": ["expert"], "values": {"maths": 0.3, "code": 0.6}}


def test_names_and_folders_of_the_pool_are_the_file_s(folders, tmp_path):
    imported = read(tmp_path, weighted(folders))
    assert imported.pool == {"base": folders["base"], "experts": {name: folders[name] for name in ("maths", "code")}}
    parameters = {"weight": WEIGHT, "lambda": 1}  # evomerge's own default is 0.3
    assert same(imported, {"merge": {"method": "task_arithmetic", "inputs": EXPERTS, "parameters": parameters}})
    assert keys(imported) == []


def test_mergekit_s_definitions_are_options_and_else_notes(folders, tmp_path):
    file = weighted(folders, "ties", density=0.5)
    imported = read(tmp_path, file)
    plain = {"weight": WEIGHT, "density": 0.5}
    assert same(imported, {"merge": {"method": "ties", "inputs": EXPERTS, "parameters": plain}})
    assert keys(imported) == ["scope", "rounding", "equals", "undecided"]
    imported = read(tmp_path, file, exact=True)
    theirs = {**plain, "scope": "tensor", "equals": "first", "rounding": "down", "undecided": "positive"}
    assert same(imported, {"merge": {"method": "ties", "inputs": EXPERTS, "parameters": theirs}})
    assert keys(imported) == []


def test_densities_of_dare_are_drop_rates_and_its_masks_are_always_others(folders, tmp_path):
    file = weighted(folders, "dare_ties", density=0.9)
    imported = read(tmp_path, file, exact=True)
    parameters = {"weight": WEIGHT, "drop": 0.1, "reduce": "sum", "rescale": "l1", "undecided": "positive"}
    assert same(imported, {"merge": {"method": "dare_ties", "inputs": EXPERTS, "parameters": parameters}})
    assert keys(imported) == ["noise"]
    assert keys(read(tmp_path, file)) == ["noise", "rescale", "undecided"]


def t_of(imported):
    return imported.recipe.data["merge"]["parameters"]["t"]


def slerp(folders, t):
    models = [{"model": folders["base"]}, {"model": folders["code"]}]
    return {"merge_method": "slerp", "base_model": folders["base"], "models": models, "parameters": {"t": t}}


def test_a_gradient_is_a_curve_whose_last_value_norm_and_head_have(folders, tmp_path):
    imported = read(tmp_path, slerp(folders, [0, 0.6, 0.3]))
    assert t_of(imported) == {"per": ["depth/3"], "values": [0, 0.6, 0.3]}
    assert keys(imported) == ["chord", "gradient"]
    t = t_of(read(tmp_path, slerp(folders, [0, 0.6, 0.3]), exact=True))
    assert t["per"] == ["tensor"]  # four blocks at 0, 1/3, 2/3 and 1: 0, 0.4, 0.5, 0.3
    found = [t["values"][f"model.layers.{i}.mlp.up_proj.weight"] for i in range(4)]
    assert found == pytest.approx([0, 0.4, 0.5, 0.3])
    assert t["values"]["model.norm.weight"] == t["values"]["lm_head.weight"] == 0


def test_filters_are_parts_of_names_and_the_first_hit_wins(folders, tmp_path):
    t = [{"filter": "self_attn", "value": 0.2}, {"filter": "mlp", "value": [0, 1]}, {"value": 0.5}]
    found = t_of(read(tmp_path, slerp(folders, t)))
    assert found["per"] == ["kind", "depth/2"]
    assert found["values"]["attention"] == [0.2, 0.2]
    assert found["values"]["mlp"] == [0, 1]
    assert found["values"]["embedding"] == found["values"]["head"] == found["values"]["norm"] == [0.5, 0.5]
    t = [{"filter": "attn", "value": 0.2}, {"filter": "q_proj", "value": 0.9}, {"value": 0.2}]
    assert t_of(read(tmp_path, slerp(folders, t))) == 0.2
    found = t_of(read(tmp_path, slerp(folders, t[1:])))
    assert found["per"] == ["tensor"]
    assert [name for name, value in found["values"].items() if value == 0.9] == [
        f"model.layers.{i}.self_attn.q_proj.weight" for i in range(4)
    ]


def test_a_filter_that_hits_nothing_leaves_the_value_to_the_next_scope(folders, tmp_path):
    file = weighted(folders)
    file["models"][0]["parameters"]["weight"] = [{"filter": "mlp", "value": 0.9}]
    file["parameters"] = {"weight": 0.1}
    values = read(tmp_path, file).recipe.data["merge"]["parameters"]["weight"]["values"]
    assert (values["maths"]["mlp"], values["maths"]["attention"], values["code"]["mlp"]) == (0.9, 0.1, 0.6)


def test_slices_of_all_layers_in_order_are_one_merge(folders, tmp_path):
    pieces = []
    for first, last, weight in ((0, 2, 0.1), (2, 4, 0.7)):
        source = {"model": folders["maths"], "layer_range": [first, last], "parameters": {"weight": weight}}
        pieces.append({"sources": [source, {"model": folders["base"], "layer_range": [first, last]}]})
    imported = read(tmp_path, {"merge_method": "task_arithmetic", "base_model": folders["base"], "slices": pieces})
    weight = {"per": ["block/2"], "values": [0.1, 0.7]}
    data = {"method": "task_arithmetic", "inputs": ["maths"], "parameters": {"weight": weight, "lambda": 1}}
    assert same(imported, {"merge": data})


def test_other_slices_are_a_stack_with_the_ends_of_the_first_and_the_last(folders, tmp_path):
    ranges = {"maths": [0, 3], "code": [1, 4]}
    pieces = [{"sources": [{"model": folders[name], "layer_range": part}]} for name, part in ranges.items()]
    imported = read(tmp_path, {"merge_method": "passthrough", "slices": pieces, "base_model": folders["maths"]})
    stack = imported.recipe.data["stack"]
    assert [(slot["source"], slot.get("layer")) for slot in stack["slots"]] == [
        *(("base", i) for i in range(3)),
        *(({"expert": "code"}, i) for i in (1, 2, 3)),
    ]
    table = {"per": ["expert", "block/2"], "values": {"base": [1, 0], "code": [0, 1]}}
    stages = {"origin": "zero", "weigh": [{"weight": {"weight": table}}]}
    assert stack["rest"] == {"merge": {"inputs": ["base", {"expert": "code"}], "stages": stages}}


def test_a_model_alone_is_its_own_pool(folders, tmp_path):
    pieces = [{"sources": [{"model": folders["code"], "layer_range": [0, 3]}]} for _ in range(2)]
    imported = read(tmp_path, {"merge_method": "passthrough", "slices": pieces})
    assert imported.pool == {"base": folders["code"], "experts": {"code": folders["code"]}}
    assert [slot["layer"] for slot in imported.recipe.data["stack"]["slots"]] == [0, 1, 2, 0, 1, 2]


def test_documents_that_refer_to_each_other_nest(folders, tmp_path):
    inner = {"name": "half", **weighted(folders)}
    outer = {
        "merge_method": "linear",
        "models": [
            {"model": "half", "parameters": {"weight": 1}},
            {"model": folders["prose"], "parameters": {"weight": 3}},
        ],
    }
    imported = read(tmp_path, inner, outer)
    merge = imported.recipe.data["merge"]
    assert merge["parameters"]["weight"]["values"] == {"#0": 1, "prose": 3}
    assert merge["inputs"][0]["merge"]["method"] == "task_arithmetic"
    assert imported.pool["base"] == folders["base"]
    assert keys(imported) == ["nested"]


def test_hub_names_revisions_and_adapters_pass_through(tmp_path):
    models = [
        {"model": "org/base@main+org/lora", "parameters": {"weight": 1}},
        {"model": "org/b@v2", "parameters": {"weight": 1}},
    ]
    file = {"merge_method": "ties", "base_model": "org/base@main", "models": models, "tokenizer_source": "org/b@v2"}
    imported = read(tmp_path, file)
    assert imported.pool == {
        "base": "org/base@main",
        "experts": {"lora": "org/lora", "b": "org/b@v2"},
        "tokenizer": {"source": "b"},
    }


@pytest.mark.parametrize("source", ["union", "base"])
def test_tokenizers_are_the_pool_s(folders, tmp_path, source):
    for given in ({"tokenizer_source": source}, {"tokenizer": {"source": source}}):
        assert read(tmp_path, {**weighted(folders), **given}).pool["tokenizer"] == {"source": source}
    padded = {**weighted(folders), "tokenizer": {"source": source, "pad_to_multiple_of": 8}}
    assert read(tmp_path, padded).pool["tokenizer"] == {"source": source, "pad_to": 8}


def test_dtypes_that_change_numbers_are_named(tmp_path):
    short = models(tmp_path / "short", torch.bfloat16)
    assert keys(read(tmp_path, weighted(short))) == ["precision"]
    assert keys(read(tmp_path, {**weighted(short), "dtype": "float32"})) == ["dtype", "output"]
    assert keys(read(tmp_path, {**weighted(short), "dtype": "float32", "out_dtype": "bfloat16"})) == ["dtype"]
    linear = {**weighted(short), "merge_method": "linear"}
    linear["models"] = [*linear["models"], {"model": short["base"], "parameters": {"weight": 1}}]
    assert keys(read(tmp_path, linear)) == []  # fp32 in both


def change(file, path, value):
    *outer, last = path
    for key in outer:
        file = file[key]
    if value is None:
        del file[last]
    else:
        file[last] = value


WRONG = [
    (("modules",), {"default": {}}, "`modules`: merges of single modules"),
    (("chat_template",), "auto", "`chat_template`.*like: EXPERT"),
    (("merge_method",), "arcee_fusion", "no arcee_fusion"),
    (("merge_method",), "ram", "no ram"),
    (("merge_method",), "ramplus_tl", "no ramplus_tl"),
    (("merge_method",), "tie", "did you mean `ties`"),
    (("mergemethod",), "x", "unknown key `mergemethod`; did you mean `merge_method`"),
    (("models",), None, "exactly one of `models` and `slices`"),
    (("slices",), [{"sources": [{"model": "x", "layer_range": [0, 2]}]}], "exactly one of"),
    (("base_model",), None, "needs `base_model`"),
    (("models", 0, "model"), "a@b@c", "more than one `@`"),
    (("models", 0, "model"), "a+b+c", r"more than one `\+`"),
    (("models", 0, "model"), "a+b", "adapter of another model"),
    (("models", 0, "parameters", "weight"), None, "`weight` is missing for"),
    (("models", 0, "parameters", "lambda"), 1, "one value for all models"),
    (("models", 0, "parameters", "weigth"), 1, "did you mean `weight`"),
    (("models", 0, "parameters", "weight"), [{"filter": "x", "valu": 1}], "did you mean `value`"),
    (("models", 0, "parameters", "weight"), "much", "expected a number"),
    (("parameters", "rescale"), True, "write `rescale: false`"),
    (("parameters", "t"), 1, "no such parameter; remove it"),
    (("dtype",), "int8", "known: bfloat16"),
    (("tokenizer",), {"source": "union", "tokens": {"a": {}}}, "`tokenizer.tokens`"),
    (("tokenizer_source",), "other/model", "no model of this merge"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG)
def test_what_means_nothing_here_is_refused_by_name(folders, tmp_path, path, value, message):
    file = weighted(folders, "ties", density=0.5)
    change(file, path, value)
    with pytest.raises((RecipeError, YamlError), match=message):
        read(tmp_path, file)


def test_slices_of_layers_of_other_numbers_are_refused(folders, tmp_path):
    sources = [{"model": folders[name], "layer_range": part} for name, part in (("maths", [0, 2]), ("code", [2, 4]))]
    file = {"merge_method": "linear", "slices": [{"sources": sources}], "parameters": {"weight": 1}}
    with pytest.raises(RecipeError, match="layers of the same number"):
        read(tmp_path, file)


def test_circles_and_several_results_are_refused(folders, tmp_path):
    one = {"name": "a", "merge_method": "passthrough", "models": [{"model": "b"}]}
    with pytest.raises(RecipeError, match="each is an input of another"):
        read(tmp_path, one, {**one, "name": "b", "models": [{"model": "a"}]})
    with pytest.raises(RecipeError, match="several merges, `a`, `b`"):
        read(tmp_path, {"name": "a", **weighted(folders)}, {"name": "b", **weighted(folders)})
    with pytest.raises(RecipeError, match="2 documents have no `name`"):
        read(tmp_path, weighted(folders), weighted(folders))


def test_a_model_in_the_hub_s_cache_gives_the_names_of_its_tensors(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    fill_cache(tmp_path / "cache", "org/base", read_files(Path(folders["base"])))
    file = slerp({"base": "org/base", "code": "org/code"}, [{"filter": "q_proj", "value": 0.1}, {"value": 0.5}])
    imported = read(tmp_path, file)
    assert imported.pool == {"base": "org/base", "experts": {"code": "org/code"}}
    assert t_of(imported)["values"]["model.layers.1.self_attn.q_proj.weight"] == 0.1
    assert keys(imported) == ["chord"]


def test_filters_of_models_that_are_not_here_need_their_names(tmp_path):
    file = slerp({"base": "org/base", "code": "org/code"}, [{"filter": "q_proj", "value": 0.1}, {"value": 0.5}])
    with pytest.raises(RecipeError, match="need the names of the tensors"):
        read(tmp_path, file)
