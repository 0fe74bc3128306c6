"""Equality with mergekit 0.1.5 (requirements-peers.txt), called through its public functions on tensors.

Both define alike, and give the same numbers up to the rounding of fp32 sums in another order (`CLOSE` of a tensor's largest
magnitude; `ARC` where it sums an angle's cosine in fp32 and we in fp64): linear, task_arithmetic, slerp, nuslerp,
multislerp, karcher, ties, breadcrumbs, breadcrumbs_ties, sce, model_stock, nearswap; dare and della where nothing is dropped,
and what they multiply by to restore the L1 norm.

They differ, each shown by a test below, where mergekit

- truncates: it keeps int(density·n), we the nearest integer, at least one ("truncates"); `rounding: down` is the same;
- keeps an exact number of elements, equals chosen by its sort; we keep all equals of the smallest kept, or with
  `equals: first` an exact number, equals chosen by index ("equals");
- takes a vote of zero for +, where TIES' paper has no sign; `undecided: positive` is the same ("undecided");
- has other defaults: thresholds by tensor for TIES where the paper trims the whole model (`scope: tensor`), L1 norms for DARE and
  DELLA where the papers divide by the probability (`rescale: l1`), no mean but a sum for its dare_ties (`reduce: sum`);
- draws the noise of DARE and DELLA from torch's generator in the order of execution; ours is keyed ("noise");
- refuses a DELLA window outside of (0, 1), which we cut, and rows of one element, which have no ranks ("window");
- takes the chord where |cos| > 0.9995, where an arc is still well defined ("chord"), also between anti-parallel vectors,
  whose middle is zero; we refuse those ("anti-parallel"); `chord: 0.9995` is the same;
- has no weights for the Karcher mean, stops it after 10 steps, and keeps unit vectors in the dtype of the weights, which
  is inaccurate in bf16 ("karcher");
- does not keep Model Stock between the base and the mean: opposite experts lead away from them ("stock"); `bounds: none`
  is the same;
- divides by the sum of weights even if that is zero: linear is not finite; ours is the base ("linear");
- adds task vectors in the dtype of the weights; we in fp32, cast once ("bf16");
- weighs equally in SCE where the mean squares of task vectors sum to less than 1e-6, which those of a fine-tuned model
  often do ("energies"; `equal_below: 1e-6` is the same), and in NearSwap takes differences below 1e-6 for 1e-6 ("near").

Earlier versions of mergekit lost a tensor of fewer than 1/gamma elements in Breadcrumbs; this one does not ("small tensors").
"""

import pytest
import torch

from evomerge.errors import RecipeError
from evomerge.recipe import Recipe
from evomerge.testing import merge_tensors

pytest.importorskip("mergekit")

from mergekit.merge_methods import merge_state_dicts
from mergekit.sparsify import RescaleNorm, rescaled_masked_tensor

CLOSE = 3e-7
ARC = 2e-6
SHAPES = {  # a Llama's, with sizes of which the densities below are whole numbers
    "model.embed_tokens.weight": (50, 20),
    "model.layers.0.self_attn.q_proj.weight": (20, 20),
    "model.layers.0.mlp.up_proj.weight": (60, 20),
    "model.layers.0.input_layernorm.weight": (20,),
}
WEIGHTS = (0.2, 0.5, 0.9)
DENSITIES = (0.5, 0.8, 0.25)


def llama(inputs=3, step=0.2, shared=0.0, seed=0):
    """Return a base and its experts, which have `shared` of their task vectors in common."""
    generator = torch.Generator().manual_seed(seed)

    def drawn():
        return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}

    base, common = drawn(), drawn()
    experts = [drawn() for _ in range(inputs)]
    return base, [
        {name: base[name] + step * (row + shared * common[name]) for name, row in expert.items()} for expert in experts
    ]


def labels(experts):
    return [f"e{i}" for i in range(len(experts))]


def ours(method, base, experts, **parameters):
    table = {
        key: {"per": ["expert"], "values": dict(zip(labels(experts), value, strict=True))}
        if isinstance(value, tuple)
        else value
        for key, value in parameters.items()
    }
    inputs = [{"expert": label} for label in labels(experts)]
    recipe = Recipe.parse({"merge": {"method": method, "inputs": inputs, "parameters": table}})
    return merge_tensors(recipe, base, experts)


def theirs(method, base, experts, **parameters):
    """Merge by mergekit; `base` is None for a method without a base."""
    models = dict(zip(labels(experts), experts, strict=True))
    given = {
        key: dict(zip(models, value, strict=True)) if isinstance(value, tuple) else value
        for key, value in parameters.items()
    }
    if base is None:
        return merge_state_dicts(models, method, parameters=given)
    return merge_state_dicts({"base": base, **models}, method, parameters=given, base="base")


def gap(one, other):
    """The largest difference, of the tensor's largest magnitude."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max() / other[name].abs().max()) for name in one)


def vectors(*rows, dtype=torch.float32):
    """Return models of one tensor each: a base of zeros, and experts that are their own task vectors."""
    experts = [{"w": torch.tensor(row, dtype=dtype)} for row in rows]
    return {"w": torch.zeros_like(experts[0]["w"])}, experts


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weight", [WEIGHTS, (1.0, -0.4, 0.7)])
def test_linear_is_equal(weight, seed):
    base, experts = llama(seed=seed)
    assert gap(ours("linear", base, experts, weight=weight), theirs("linear", None, experts, weight=weight)) < CLOSE


@pytest.mark.parametrize(("reduce", "normalize"), [("sum", False), ("solve", True)])
@pytest.mark.parametrize("weight", [WEIGHTS, (1.0, -0.4, 0.7)])
def test_task_arithmetic_is_equal(weight, reduce, normalize):
    base, experts = llama()
    one = ours("task_arithmetic", base, experts, weight=weight, reduce=reduce, **{"lambda": 0.7})
    other = theirs("task_arithmetic", base, experts, weight=weight, normalize=normalize, **{"lambda": 0.7})
    assert gap(one, other) < CLOSE


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("step", [0.2, 5.0])
def test_slerp_is_equal(t, step):
    _, (first, second) = llama(inputs=2, step=step)
    other = merge_state_dicts({"first": first, "second": second}, "slerp", parameters={"t": t}, base="first")
    assert gap(ours("slerp", first, [first, second], t=t), other) < ARC


@pytest.mark.parametrize("weight", [(0.2, 0.9), (1.0, 1.0), (1.0, -1.0)])
def test_nuslerp_of_task_vectors_is_equal(weight):
    base, experts = llama(inputs=2)
    assert gap(ours("nuslerp", base, experts, weight=weight), theirs("nuslerp", base, experts, weight=weight)) < ARC


@pytest.mark.parametrize("seed", range(3))
def test_multislerp_of_task_vectors_is_equal(seed):
    base, experts = llama(seed=seed)
    one = ours("multislerp", base, experts, weight=WEIGHTS)
    assert gap(one, theirs("multislerp", base, experts, weight=WEIGHTS)) < ARC


def test_multislerp_of_opposite_directions_is_linear_in_both():
    base, experts = vectors([1.0, 0.0], [-2.0, 0.0])
    one, other = (merge("multislerp", base, experts, weight=(1.0, 1.0)) for merge in (ours, theirs))
    assert one["w"].tolist() == other["w"].tolist() == [-0.5, 0.0]


@pytest.mark.parametrize("step", [0.2, 1.0, 5.0])
def test_karcher_of_equal_weights_is_equal(step):
    base, experts = llama(step=step)
    one = ours("karcher", base, experts)
    assert gap(one, theirs("karcher", None, experts, max_iter=100, tol=1e-6)) < ARC


def scaled(tensors, factor):
    return {name: tensor * factor for name, tensor in tensors.items()}


def test_karcher_keeps_tensors_of_zeros_in_the_length_only_in_both():
    _, experts = llama()
    experts[1] = scaled(experts[1], 0.0)
    base = experts[1]
    assert gap(ours("karcher", base, experts), theirs("karcher", None, experts)) < ARC


TIES = {"weight": WEIGHTS, "lambda": 1.3}


@pytest.mark.parametrize(("reduce", "normalize"), [("solve", True), ("sum", False)])
@pytest.mark.parametrize("density", [1.0, 0.5, DENSITIES])
def test_ties_by_tensor_is_equal(density, reduce, normalize):
    base, experts = llama()
    one = ours("ties", base, experts, density=density, scope="tensor", undecided="positive", reduce=reduce, **TIES)
    assert gap(one, theirs("ties", base, experts, density=density, normalize=normalize, **TIES)) < CLOSE


def test_dare_and_della_are_equal_where_nothing_is_dropped():
    base, experts = llama()
    for method, reduce in {"dare_linear": "sum", "dare_ties": "sum", "della_linear": "sum", "della": "solve"}.items():
        kept = {"drop": 0.0} if method.startswith("dare") else {"density": 1.0, "epsilon": 0.0}
        one = ours(method, base, experts, reduce=reduce, **kept, **TIES)
        assert gap(one, theirs(method, base, experts, density=1.0, **TIES)) < CLOSE, method


@pytest.mark.parametrize("parameters", [{"drop": 0.6}, {"density": 0.4, "epsilon": 0.3}])
def test_dare_and_della_restore_the_l1_norm_as_mergekit_does(parameters):
    base, (expert,) = llama(inputs=1)
    method = {"drop": "dare_linear", "density": "della_linear"}[next(iter(parameters))]
    whole = {"weight": 1.0, "lambda": 1.0, **parameters}
    zeros = scaled(base, 0.0)
    delta = {name: tensor - base[name] for name, tensor in expert.items()}
    rescaled = ours(method, zeros, [delta], rescale="l1", **whole)
    for name, kept in ours(method, zeros, [delta], rescale="none", **whole).items():
        other = rescaled_masked_tensor(delta[name], (kept != 0).float(), RescaleNorm.l1)
        assert gap({"w": rescaled[name]}, {"w": other}) < CLOSE


@pytest.mark.parametrize("density", [1.0, 0.5, DENSITIES])
@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.6])
def test_breadcrumbs_are_equal(density, gamma):
    base, experts = llama()
    one = ours("breadcrumbs", base, experts, density=density, gamma=gamma, **TIES)
    assert gap(one, theirs("breadcrumbs", base, experts, density=density, gamma=gamma, **TIES)) < CLOSE
    one = ours(
        "breadcrumbs_ties", base, experts, density=density, gamma=gamma, undecided="positive", reduce="sum", **TIES
    )
    assert gap(one, theirs("breadcrumbs_ties", base, experts, density=density, gamma=gamma, **TIES)) < CLOSE


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("select", [1.0, 0.5, 0.1])
def test_sce_is_equal(select, seed):
    base, experts = llama(seed=seed)
    assert gap(ours("sce", base, experts, select=select), theirs("sce", base, experts, select_topk=select)) < CLOSE


@pytest.mark.parametrize("inputs", [2, 3])
def test_model_stock_is_equal(inputs):
    base, experts = llama(inputs, shared=1.0)
    assert gap(ours("model_stock", base, experts), theirs("model_stock", base, experts)) < ARC


@pytest.mark.parametrize("t", [1e-3, 0.1, 10.0])
def test_nearswap_is_equal(t):
    base, experts = llama(inputs=1)
    assert gap(ours("nearswap", base, experts, t=t), theirs("nearswap", base, experts, t=t)) < CLOSE


def kept(method, base, experts, density, **ties):
    """Return how many elements of the first task vector are left by us, and by mergekit."""
    alone = {"weight": 1.0, "density": density, "lambda": 1.0}
    return [
        int((merge(method, base, experts, **alone, **own)["w"] != 0).sum())
        for merge, own in ((ours, {"scope": "tensor", **ties}), (theirs, ties))
    ]


@pytest.mark.parametrize(
    ("density", "count", "both"), [(0.5, 5, [2, 2]), (0.7, 5, [4, 3]), (0.29, 100, [29, 28]), (0.01, 5, [1, 1])]
)
def test_mergekit_truncates_how_many_ties_keeps(density, count, both):
    assert kept("ties", *vectors([float(i + 1) for i in range(count)]), density) == both


@pytest.mark.parametrize(("density", "count", "both"), [(0.29, 100, [29, 28]), (0.1, 8, [1, 0])])
def test_mergekit_truncates_how_many_breadcrumbs_keep(density, count, both):
    assert kept("breadcrumbs", *vectors([float(i + 1) for i in range(count)]), density, gamma=0.01) == both


def test_mergekit_truncates_how_many_sce_selects():
    base, experts = vectors([1.0, 2.0, 3.0, 4.0, 5.0], [-1.0, -1.0, -1.0, -1.0, -1.0])
    counts = [
        int((merge("sce", base, experts, **{word: 0.7})["w"] != 0).sum())
        for merge, word in ((ours, "select"), (theirs, "select_topk"))
    ]
    assert counts == [4, 3]


def test_all_equals_of_the_smallest_kept_are_kept_by_default_and_an_exact_number_by_mergekit():
    models = vectors([3.0, 1.0, -1.0, 1.0, 1.0, 1.0])
    assert kept("ties", *models, 0.5) == [6, 3]
    exact = ours("ties", *models, weight=1.0, density=0.5, scope="tensor", equals="first", **{"lambda": 1.0})
    assert exact["w"].tolist() == [3.0, 1.0, -1.0, 0.0, 0.0, 0.0]


def test_breadcrumbs_of_small_tensors_are_not_lost_by_this_mergekit():
    base, experts = vectors([1.0, 2.0, 3.0, 4.0])
    assert kept("breadcrumbs", base, experts, 0.5, gamma=0.01) == [2, 2]


def test_undecided_votes_are_positive_in_mergekit_and_zero_in_ours():
    base, experts = vectors([2.0], [-3.0], [1.0])
    ties = {"weight": 1.0, "density": 1.0, "lambda": 1.0}
    assert theirs("ties", base, experts, **ties)["w"].tolist() == [1.5]
    assert ours("ties", base, experts, **ties)["w"].tolist() == [0.0]
    assert ours("ties", base, experts, undecided="positive", **ties)["w"].tolist() == [1.5]


def test_dare_s_noise_is_torch_s_in_mergekit_and_keyed_in_ours():
    base, experts = llama()
    half = {"weight": 1.0, "lambda": 1.0}
    one, again = (ours("dare_linear", base, experts, drop=0.5, **half) for _ in range(2))
    assert gap(one, again) == 0
    other, anew = (theirs("dare_linear", base, experts, density=0.5, **half) for _ in range(2))
    assert gap(other, anew) > 0


def test_dare_divides_by_the_probability_in_ours_and_by_the_norms_in_mergekit():
    base, experts = vectors([1.0] * 1000)
    whole = {"weight": 1.0, "lambda": 1.0}
    assert set(ours("dare_linear", base, experts, drop=0.5, **whole)["w"].tolist()) == {0.0, 2.0}
    other = theirs("dare_linear", base, experts, density=0.5, **whole)["w"]
    assert float(other.sum()) == pytest.approx(1000, rel=1e-6)
    assert float(other.max()) == pytest.approx(1000 / int((other != 0).sum()), rel=1e-6)


def test_dare_ties_divides_by_the_surviving_weights_in_ours_only():
    base, experts = vectors([1.0], [3.0])
    whole = {"weight": 1.0, "lambda": 1.0}
    assert ours("dare_ties", base, experts, drop=0.0, **whole)["w"].tolist() == [2.0]
    assert theirs("dare_ties", base, experts, density=1.0, **whole)["w"].tolist() == [4.0]


def test_della_s_window_is_cut_in_ours_and_refused_by_mergekit():
    base, experts = llama(inputs=1)
    wide = {"weight": 1.0, "density": 0.9, "epsilon": 0.2, "lambda": 1.0}
    assert all(tensor.isfinite().all() for tensor in ours("della", base, experts, **wide).values())
    with pytest.raises(ValueError, match="Epsilon"):
        theirs("della", base, experts, **wide)


def test_della_s_rows_of_one_are_kept_with_its_density_in_ours_and_fail_in_mergekit():
    base, experts = vectors([[1.0]] * 1000)
    narrow = {"weight": 1.0, "density": 0.5, "epsilon": 0.2, "lambda": 1.0}
    assert 400 < int((ours("della_linear", base, experts, **narrow)["w"] != 0).sum()) < 600
    with pytest.raises(RuntimeError):
        theirs("della_linear", base, experts, **narrow)


def test_slerp_is_a_chord_in_mergekit_between_nearly_parallel_vectors():
    angle = torch.tensor(0.03, dtype=torch.float64)
    base, (first, second) = vectors([1.0, 0.0], [float(angle.cos()), float(angle.sin())])
    one = ours("slerp", base, [first, second], t=0.5)["w"]
    other = merge_state_dicts({"first": first, "second": second}, "slerp", parameters={"t": 0.5}, base="first")["w"]
    assert float(one.norm()) == pytest.approx(1, abs=1e-7)
    assert torch.allclose(other, (first["w"] + second["w"]) / 2, rtol=0, atol=1e-7)
    assert 1e-4 < 1 - float(other.norm()) < 1.2e-4  # 1 - cos(0.015)


@pytest.mark.parametrize("method", ["slerp", "nuslerp"])
def test_anti_parallel_models_cancel_in_mergekit_and_are_refused_by_us(method):
    base, experts = vectors([1.0, 2.0], [-1.0, -2.0])
    with pytest.raises(RecipeError, match="anti-parallel"):
        ours(method, base, experts)
    if method == "slerp":
        other = merge_state_dicts(experts, "slerp", parameters={"t": 0.5}, base=0)
    else:
        other = theirs("nuslerp", base, experts, weight=1.0)
    assert other["w"].tolist() == [0.0, 0.0]


def ulps(found, exact):
    """The largest difference from a result in fp64, in units of the last place of bf16."""
    rounded = exact.to(torch.bfloat16)
    unit = torch.finfo(torch.bfloat16).eps * 2.0 ** rounded.double().abs().clamp(min=2.0**-100).log2().floor()
    return float(((found.double() - rounded.double()).abs() / unit).max())


def test_karcher_is_inaccurate_in_mergekit_s_bf16():
    base, experts = llama(step=1.0)
    short = [{name: tensor.bfloat16() for name, tensor in expert.items()} for expert in experts]
    exact = theirs("karcher", None, [{k: v.double() for k, v in one.items()} for one in short], max_iter=100, tol=1e-12)
    one = ours("karcher", {name: tensor.bfloat16() for name, tensor in base.items()}, short)
    other = theirs("karcher", None, short)
    assert max(ulps(one[name], exact[name]) for name in exact) <= 1
    assert max(ulps(other[name], exact[name]) for name in exact) > 1


def test_task_vectors_are_added_in_bf16_by_mergekit_and_in_fp32_by_us():
    base, experts = llama()
    base, *experts = ({name: tensor.bfloat16() for name, tensor in model.items()} for model in (base, *experts))
    sums = {"weight": WEIGHTS, "lambda": 0.7}
    wide = [{name: tensor.double() for name, tensor in model.items()} for model in (base, *experts)]
    exact = theirs("task_arithmetic", wide[0], wide[1:], **sums)
    one, other = (merge("task_arithmetic", base, experts, **sums) for merge in (ours, theirs))
    assert max(ulps(one[name], exact[name]) for name in exact) <= 1
    assert max(ulps(other[name], exact[name]) for name in exact) > 1


def test_model_stock_of_opposite_experts_is_the_base_in_ours_and_leads_away_in_mergekit():
    base, experts = vectors([1.0, 0.5], [-0.5, 0.5])
    assert ours("model_stock", base, experts)["w"].tolist() == [0.0, 0.0]
    mean = torch.tensor([0.25, 0.5])
    assert float(theirs("model_stock", base, experts)["w"] @ mean) < 0


def test_linear_of_weights_that_sum_to_zero_is_the_base_in_ours_and_not_finite_in_mergekit():
    base, experts = llama(inputs=2)
    assert gap(ours("linear", base, experts, weight=(1.0, -1.0)), base) == 0
    assert not any(tensor.isfinite().any() for tensor in theirs("linear", None, experts, weight=(1.0, -1.0)).values())


def test_small_energies_count_in_ours_and_are_equal_in_mergekit():
    base, experts = vectors([1e-4, 1e-4], [3e-4, 3e-4])
    assert ours("sce", base, experts)["w"].tolist() == pytest.approx([2.8e-4] * 2, rel=1e-6)  # weights 0.1 and 0.9
    assert theirs("sce", base, experts)["w"].tolist() == pytest.approx([2e-4] * 2, rel=1e-6)


def test_nearswap_takes_small_differences_for_larger_ones_in_mergekit():
    base, experts = vectors([1e-7])
    assert ours("nearswap", base, experts, t=1e-8)["w"].tolist() == pytest.approx([1e-8], rel=1e-6)
    assert theirs("nearswap", base, experts, t=1e-8)["w"].tolist() == pytest.approx([1e-9], rel=1e-6)


@pytest.mark.parametrize("density", [0.29, 0.7, 0.003])
def test_with_rounding_down_as_many_are_kept_as_by_mergekit(density):
    base, experts = vectors(*(torch.randn(3, 101, generator=torch.Generator().manual_seed(0)).tolist()))
    down = {"rounding": "down", "weight": 1.0, "lambda": 1.0, "density": density}
    plain = {"weight": 1.0, "lambda": 1.0, "density": density}
    assert gap(ours("ties", base, experts, scope="tensor", **down), theirs("ties", base, experts, **plain)) < CLOSE
    one, other = (
        merge("breadcrumbs", base, experts, gamma=0.29, **own) for merge, own in ((ours, down), (theirs, plain))
    )
    assert float((one["w"] - other["w"]).abs().max()) < CLOSE
    one = ours("sce", base, experts, select=density, rounding="down")
    assert float((one["w"] - theirs("sce", base, experts, select_topk=density)["w"]).abs().max()) < CLOSE


def test_slerp_takes_the_chord_where_mergekit_does_if_asked():
    _, (first, second) = llama(inputs=2, step=0.02)
    other = merge_state_dicts({"first": first, "second": second}, "slerp", parameters={"t": 0.3}, base="first")
    assert gap(ours("slerp", first, [first, second], t=0.3, chord=0.9995), other) < ARC
    chord = ours("slerp", first, [first, second], t=0.3, chord=0.0)
    line = {name: 0.7 * first[name] + 0.3 * second[name] for name in first}
    assert gap(chord, line) < CLOSE


def test_model_stock_without_bounds_leads_away_from_opposite_experts_as_mergekit_s():
    base, experts = vectors([1.0, 0.5], [-0.5, 0.5])
    assert gap(ours("model_stock", base, experts, bounds="none"), theirs("model_stock", base, experts)) < ARC


def test_small_energies_are_equal_if_asked_as_in_mergekit():
    base, experts = vectors([1e-4, 1e-4], [3e-4, 3e-4])
    assert ours("sce", base, experts, equal_below=1e-6)["w"].tolist() == pytest.approx([2e-4] * 2, rel=1e-6)
    assert ours("sce", base, experts, equal_below=1e-9)["w"].tolist() == pytest.approx([2.8e-4] * 2, rel=1e-6)
