"""The nodes `pleas` and `zipit`: groups as by hand, weights as computed apart, nothing lost where models are equal."""

import json
from types import SimpleNamespace

import pytest
import torch
import transformers
from subjects import image_task, subject_of, text_task
from tiny_models import TINY, permuted_copy, tiny_model

from evomerge.alignment import symmetry
from evomerge.alignment.activations import standardised
from evomerge.alignment.grouping import paired, zipped
from evomerge.alignment.mlps import find_mlps
from evomerge.alignment.zipped import fitted_to
from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.errors import RecipeError
from evomerge.merging import needs, unwatched
from evomerge.models import LiveModel
from evomerge.recipe import Recipe
from evomerge.report.export import export
from evomerge.statistics import STATISTICS

ALIGNED = {"align": {"source": "two", "to": "one"}}


def pleas(width, inputs=("one", "two"), **more):
    return Recipe.parse({"pleas": {"inputs": list(inputs), "tasks": ["maths"], "width": width, **more}})


def zipit(inputs=("one", "two"), **more):
    return Recipe.parse({"zipit": {"inputs": list(inputs), "tasks": ["maths"], **more}})


def pool_of(folder, name, one, two):
    """Return a pool of two models, with the statistic `inputs` of both on one task."""
    folder.mkdir(exist_ok=True)
    classifies = "Classification" in TINY[name][1]
    task = (
        image_task(folder)
        if name == "vit"
        else text_task(folder, "classification" if classifies else "language_modelling")
    )
    pool = Pool(one, {"one": one, "two": two})
    live = LiveModel(one)
    found = {}
    for label, model in pool.experts.items():
        live.refit(model)
        found[label] = STATISTICS["inputs"].collect(subject_of(one, task, live=live), unwatched)
    pool.evidence = SimpleNamespace(
        digest=lambda kind, label: f"{kind} {label}", tables=lambda kind, label, name: found[label].get(name, {})
    )
    return pool


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    """By architecture, a pool of two models; with `copy`, of a model and its copy with all units in another order."""
    transformers.utils.logging.disable_progress_bar()
    made = {}

    def of(name, copy=False):
        if (name, copy) not in made:
            folder = tmp_path_factory.mktemp(name)
            one = tiny_model(folder / "one", name, 0)
            two = permuted_copy(one, folder / "two") if copy else tiny_model(folder / "two", name, 1)
            made[name, copy] = pool_of(folder / "task", name, one, two)
        return made[name, copy]

    return of


def outputs(folder, name):
    model = getattr(transformers, TINY[name][1]).from_pretrained(folder).eval()
    given = (
        {"pixel_values": torch.linspace(-1, 1, 16).view(1, 1, 4, 4)}
        if name == "vit"
        else {"input_ids": torch.arange(3, 19)[None]}
    )
    with torch.no_grad():
        return model(**given).logits


def mlps_of(pool):
    live = LiveModel(pool.base.path)
    return find_mlps(live, pool.base, symmetry(live), pool.layout)


def listed(groups):
    """Return the units of each group."""
    return [torch.nonzero(groups == number).flatten().tolist() for number in range(int(groups.max()) + 1)]


def test_pairs_as_by_hand():
    """The best assignment is 0-1, 1-0, 2-2, of correlations .9, .8 and .1."""
    correlations = torch.tensor([[0.5, 0.9, 0.0], [0.8, 0.7, 0.0], [0.0, 0.0, 0.1]])
    assert listed(paired(correlations, 3)) == [[0, 4], [1, 3], [2, 5]]
    assert listed(paired(correlations, 4)) == [[0, 4], [1, 3], [2], [5]]
    assert listed(paired(correlations, 5)) == [[0, 4], [1], [2], [3], [5]]
    assert listed(paired(correlations, 6)) == [[0], [1], [2], [3], [4], [5]]


def test_zips_as_by_hand():
    """Units 0 and 1 of the first model are most alike. Without a budget for them, 0 goes with 2 and 1 with 3."""
    correlations = torch.tensor([[1, 0.9, 0.8, 0.1], [0.9, 1, 0.7, 0.2], [0.8, 0.7, 1, 0.3], [0.1, 0.2, 0.3, 1]])
    assert listed(zipped(correlations, 0, 1)) == [[0, 2], [1, 3]]
    assert listed(zipped(correlations, 1, 1)) == [[0, 1, 2], [3]]  # 0.7 of {0, 1} and 2 is above 0.3 of 2 and 3
    assert listed(zipped(correlations, 1, 0.3)) == [[0, 1], [2, 3]]  # 0.21 is below 0.3


def slow_zips(correlations, budget, damping):
    """Look at all pairs each time."""
    size = len(correlations) // 2
    groups = {unit: [unit] for unit in range(2 * size)}
    alike = {(i, j): float(correlations[i, j]) for j in range(2 * size) for i in range(j)}
    left = [int(budget * size / 2)] * 2

    def within(i, j):
        has = [{unit >= size for unit in groups[k]} for k in (i, j)]
        return has[0] & has[1]

    for _ in range(size):
        i, j = max((pair for pair in alike if all(left[model] for model in within(*pair))), key=alike.get)
        for model in within(i, j):
            left[model] -= 1
        groups[i] += groups.pop(j)
        for k in groups:
            if k != i:
                one, other = tuple(sorted((i, k))), tuple(sorted((j, k)))
                alike[one] = min(alike[one], alike.pop(other)) * damping
        del alike[i, j]
    return [sorted(group) for group in groups.values()]


@pytest.mark.parametrize(("budget", "damping"), [(0, 0.3), (0.125, 0.3), (0.5, 1), (1, 0.6)])
def test_most_alike_groups_are_zipped_first(budget, damping):
    rows = torch.randn(40, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = standardised(rows)
    assert listed(zipped(rows.mT @ rows, budget, damping)) == slow_zips(rows.mT @ rows, budget, damping)


def test_fit_as_by_hand():
    """Inputs 1 and 2, outputs 3 and 6, from weight 1: the change is 10 / (5 + 0.2 · 5)."""
    inputs, outputs_ = (torch.tensor([[a], [b]], dtype=torch.float64) for a, b in ((1, 2), (3, 6)))
    fitted = fitted_to(torch.ones(1, 1, dtype=torch.float64), inputs, outputs_, 0.2)
    torch.testing.assert_close(fitted, torch.tensor([[1 + 10 / 6]], dtype=torch.float64))


def test_fit_by_the_smaller_system_is_the_same():
    drawn = torch.Generator().manual_seed(0)
    start, inputs, wanted = (
        torch.randn(*shape, generator=drawn, dtype=torch.float64) for shape in ((3, 9), (5, 9), (5, 3))
    )
    doubled = fitted_to(start, inputs.repeat(2, 1), wanted.repeat(2, 1), 0.1)  # 10 rows, 9 inputs: the other system
    torch.testing.assert_close(fitted_to(start, inputs, wanted, 0.1), doubled)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_weights_are_those_that_are_computed_apart(pools, name):
    """In float64, from the definition: groups of the widest and least correlated, then a ridge regression of all rows."""
    pool, width, ridge = pools(name), 1.25, 0.05
    built, plain = (Builder(pool).build(pleas(width, ridge=some)) for some in (ridge, 1e12))
    mlp = mlps_of(pool)[1]
    size = mlp.size
    place = mlp.out[0]
    rows = [pool.evidence.tables("", label, place.tensor)["rows"].double() for label in ("one", "two")]
    correlations = torch.corrcoef(torch.cat(rows, 1).mT)[:size, size:]
    groups = listed(paired(correlations, round(width * size)))
    assert len(groups) == built.info[place.tensor].shape[place.dim]

    def matrices(where):
        """Return both models' matrices as (units, other)."""
        tensors = (model.tensor(where.tensor).double() for model in pool.experts.values())
        return [(one if where.dim == 0 else one.mT)[where.start : where.start + size] for one in tensors]

    def summed(tables, group):
        return sum((tables[unit // size][unit % size] for unit in group[1:]), tables[group[0] // size][group[0] % size])

    for where in mlp.places:
        expected = torch.stack([summed(matrices(where), g) / (len(g) if where in mlp.into else 2) for g in groups])
        got = plain.tensor(where.tensor).double()
        torch.testing.assert_close(got if where.dim == 0 else got.mT, expected, rtol=1e-5, atol=1e-6)
    hidden = torch.stack([summed([one.mT for one in rows], group) / len(group) for group in groups], 1)
    wanted = sum(one @ weights for one, weights in zip(rows, matrices(place), strict=True)) / 2
    start = torch.stack([summed(matrices(place), group) / 2 for group in groups])
    penalty = ridge * hidden.square().sum() / len(groups) * torch.eye(len(groups), dtype=torch.float64)
    expected = torch.linalg.solve(hidden.mT @ hidden + penalty, hidden.mT @ wanted + penalty @ start)
    got = built.tensor(place.tensor).double()
    torch.testing.assert_close(got if place.dim == 0 else got.mT, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [("gpt2", zipit(("one", ALIGNED))), *((n, pleas(1, ("one", ALIGNED))) for n in ("gpt2", "llama", "vit"))],
)
def test_permuted_copy_is_merged_without_loss(pools, tmp_path, name, recipe):
    pool = pools(name, copy=True)
    export(recipe, pool, tmp_path / "out")
    torch.testing.assert_close(outputs(tmp_path / "out", name), outputs(pool.base.path, name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [1.3, 2])
def test_wide_model_loads_and_differs_from_both(pools, tmp_path, width):
    pool = pools("llama")
    for name in ("first", "again"):
        export(pleas(width), pool, tmp_path / name)
    config = json.loads((tmp_path / "first" / "config.json").read_text())
    assert config["intermediate_size"] == round(24 * width)
    assert outputs(tmp_path / "first", "llama").isfinite().all()
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "again")]
    assert files[0] == files[1]


def test_double_width_is_the_mean_of_both_outputs(pools):
    """Of one MLP on any input; a large ridge leaves out the fit to inputs of the residual stream, which differ."""
    pool = pools("gpt2")
    built = Builder(pool).build(pleas(2, ridge=1e12))
    inputs = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))

    def mlp(model):
        tensors = [model.tensor(f"transformer.h.1.mlp.{n}.weight") for n in ("c_fc", "c_proj")]
        bias = model.tensor("transformer.h.1.mlp.c_fc.bias")
        return torch.nn.functional.gelu(inputs @ tensors[0] + bias) @ tensors[1]

    mean = sum(map(mlp, pool.experts.values())) / 2
    torch.testing.assert_close(mlp(built), mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("search", [False, True])
def test_zipped_model_is_an_input_of_a_merge_and_in_a_search(pools, search):
    pool = pools("gpt2")  # whose queries, keys and values are merged one by one, and are in one tensor
    mean = Recipe.parse({"merge": {"method": "linear", "inputs": ["one", zipit()]}})
    builder = Builder(pool, search=search)
    for name in (mlps_of(pool)[0].out[0].tensor, "transformer.h.0.attn.c_attn.weight"):
        parts = [builder.build(recipe).tensor(name) for recipe in (mean, Recipe.parse("one"), zipit())]
        torch.testing.assert_close(parts[0], (parts[1] + parts[2]) / 2)
    assert needs(mean) == ("inputs@maths",)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (lambda: pleas(0.5), r"pleas.width.*greater than or equal to 1, got 0.5"),
        (lambda: pleas(2.5), r"pleas.width.*less than or equal to 2, got 2.5"),
        (lambda: pleas(1.5, ridge=float("inf")), "pleas.ridge.*expected a finite number, got inf"),
        (lambda: zipit(tasks=["maths", "code", "maths"]), "zipit: `tasks` names one task twice"),
        (lambda: pleas(1.5, ("one", "one")), "pleas: `inputs` names one model twice"),
        (lambda: zipit(("one", "two", "three")), "zipit: `inputs` has 3 models; expected two"),
        (lambda: zipit(tasks=[]), r"zipit.tasks.*at least one entry"),
        (lambda: Recipe.parse({"pleas": {"inputs": ["one", "two"], "width": 1}}), "`pleas.tasks` is missing"),
        (
            lambda: zipit(("one", {"merge": {"method": "linear", "inputs": ["one", "two"]}})),
            "zipit: `inputs` takes experts, the base and alignments of these",
        ),
    ],
)
def test_wrong_nodes_are_refused(recipe, message):
    with pytest.raises(RecipeError, match=message):
        recipe()


def test_models_without_evidence_or_known_mlps_are_refused(pools, tmp_path):
    pool = pools("llama")
    plain = Pool(pool.base.path, {name: model.path for name, model in pool.experts.items()})
    with pytest.raises(RecipeError, match=r"`inputs` of `one` on the task `maths`.*--evidence STUDY.yaml"):
        Builder(plain).build(pleas(1.5))
    with pytest.raises(RecipeError, match=r"pleas: no model in memory has its shapes"):
        Builder(pool, search=True).build(pleas(1.5))
    mixture = tiny_model(tmp_path / "mixture", "mixtral")
    with pytest.raises(RecipeError, match=r"zipit: of the model's 2 blocks, 0 have an MLP"):
        Builder(Pool(mixture, {"one": mixture, "two": mixture})).build(zipit())
    tiny = {name: tiny_model(tmp_path / name, "bert", seed) for seed, name in enumerate(("base", "one", "two"))}
    with pytest.raises(RecipeError, match=r"zipit: expected models whose heads are merged.*leave out `--head`"):
        Builder(Pool(tiny.pop("base"), tiny, heads="own")).build(zipit())
