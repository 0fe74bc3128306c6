"""All Hypothesis strategies, in one place."""

import copy
import string

import numpy as np
import torch
from hypothesis import strategies as st

from evomerge.merging import METHODS
from evomerge.recipe import KINDS

names = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=6).filter(lambda name: name != "base")
numbers = st.floats(-10, 10, allow_nan=False, width=32)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
"""What YAML and JSON can hold."""


@st.composite
def tables(draw, leaves, labels, blocks=4, per=None):
    """A value tiled over any axes that suit inputs with these labels."""
    if per is None:
        axes = draw(st.permutations(["expert", "kind", draw(st.sampled_from(["block", "depth"]))]))
        per = [
            f"{axis}/{draw(st.integers(1, blocks))}" if axis in ("block", "depth") else axis
            for axis in axes[: draw(st.integers(1, 3))]
        ]

    def fill(rest):
        if not rest:
            return draw(leaves)
        axis, _, size = rest[0].partition("/")
        if size:
            return [fill(rest[1:]) for _ in range(int(size))]
        return {key: fill(rest[1:]) for key in (labels if axis == "expert" else KINDS)}

    return {"per": per, "values": fill(per)}


@st.composite
def recipes(draw, experts=("maths", "code", "prose"), depth=2):
    """The data of any valid recipe over these experts."""
    leaves = st.just("base") | st.sampled_from(experts).map(lambda name: {"expert": name})
    if depth == 0 or draw(st.booleans()):
        return draw(leaves)
    inner = draw(st.lists(recipes(experts, depth - 1), min_size=1, max_size=3, unique_by=str))
    labels = [i if i == "base" else i.get("expert", f"#{n}") for n, i in enumerate(inner)]
    weight = st.floats(0.125, 1, width=16)
    merge = {
        "method": draw(st.sampled_from(["linear", "task_arithmetic", "ties", "dare_ties", "dare_linear"])),
        "inputs": inner,
        "parameters": {"weight": draw(weight | tables(weight, labels))},
    }
    if draw(st.booleans()):
        merge["seed"] = draw(st.integers(-(2**40), 2**40))
    return {"merge": merge}


@st.composite
def templates(draw, experts=("maths", "code")):
    """A search space's template: a merge with holes of every kind, tiled or not."""
    axes = st.lists(st.sampled_from(["expert", "kind", "block/2"]), min_size=1, max_size=3, unique=True)
    low = draw(st.floats(0.01, 0.5))
    high = draw(st.floats(0.51, 2))

    def tiled(hole, *, by_input=True):
        if draw(st.booleans()):
            per = [axis for axis in draw(axes) if by_input or axis != "expert"]
            return {**hole, "per": per} if per else hole
        return hole

    parameters = {"weight": tiled({"float": [low, high], "log": draw(st.booleans())})}
    if draw(st.booleans()):
        parameters["lambda"] = tiled({"float": [0, 2], "init": draw(st.floats(0, 2))}, by_input=False)
    if draw(st.booleans()):
        parameters["scope"] = tiled({"choice": ["model", "tensor"]}, by_input=False)
    merge = {
        "method": {"choice": ["ties", "dare_ties"]} if draw(st.booleans()) else "ties",
        "inputs": "experts",
        "parameters": parameters,
    }
    if draw(st.booleans()):
        merge["seed"] = {"int": [0, 7]}
    if draw(st.booleans()):
        merge["inputs"] = [
            *experts,
            {"merge": {"method": "linear", "inputs": list(experts), "parameters": {"weight": {"float": [0.1, 1]}}}},
        ]
    return {"merge": merge}


@st.composite
def stack_templates(draw, experts=("maths", "code"), blocks=3):
    """A search space's template: a stack in a short form, with holes of every kind in it and in its sources."""
    scale = {"float": [0.5, draw(st.sampled_from([0.9, 1.5]))]}
    if draw(st.booleans()):
        per = draw(st.sampled_from([["layer"], ["block/2"]]))
        swap = {"source": {"choice": draw(st.sampled_from(["experts", ["base", *experts]])), "per": per}}
        if draw(st.booleans()):
            swap["scale"] = {**scale, "per": draw(st.sampled_from([["layer"], ["block/2"]]))}
        return {"stack": {"rest": draw(st.sampled_from(["base", {"choice": ["base", "maths"]}])), "swap": swap}}
    weight = {"float": [0, 1], "init": 0.5, "per": ["expert"]}
    merge = {"merge": {"method": "task_arithmetic", "inputs": "experts", "parameters": {"weight": weight}}}
    sources = draw(st.sampled_from(["experts", ["base", "experts"], [merge, "maths"], ["code", merge]]))
    path = {"sources": sources, "repeat": draw(st.integers(1, 2)), "include": {"bit": "first", "per": ["slot"]}}
    path["scale"] = draw(
        st.sampled_from([1, 0.75, scale, {**scale, "per": ["slot"]}, {**scale, "per": ["from", "to"]}])
    )
    path["ends"] = draw(st.booleans())
    path |= draw(st.sampled_from([{}, {"longest": 1.5}, {"shortest": 0.75}, {"shortest": 1, "longest": 1}]))
    return {"stack": {"rest": "base", "path": path}}


def genomes(count, low=-1e6, high=1e6):
    """Float64 `(count,)`: any finite numbers."""
    return st.lists(st.floats(low, high), min_size=count, max_size=count).map(np.array)


score_vectors = st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), max_size=5).map(
    lambda values: np.array(values, dtype=np.float32)
)
evaluations = st.dictionaries(names, score_vectors, max_size=3)

SHAPES = {
    "embed.weight": (5, 3),
    "layers.0.attn.weight": (4, 4),
    "layers.0.norm.weight": (4,),
    "layers.1.attn.weight": (4, 4),
    "layers.1.mlp.weight": (2, 3, 2),
    "layers.1.mlp.bias": (1,),
    "layers.1.mlp.scale": (),
    "layers.1.mlp.cache": (0, 3),
    "head.weight": (3, 4),
}


@st.composite
def tiny_models(draw, inputs=3):
    """A base and some inputs near it, with all that is awkward: few values, zeros of both signs, frozen tensors."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    few, frozen = draw(st.booleans()), draw(st.sets(st.sampled_from(sorted(SHAPES)), max_size=3))
    zeros = draw(st.sampled_from([0.0, 0.3, 0.9]))

    def numbers(shape):
        made = rng.integers(-8, 9, shape) / 8 if few else rng.standard_normal(shape)
        return torch.tensor(np.where(rng.random(shape) < zeros, rng.choice([0.0, -0.0], shape), made)).float()

    base = {name: numbers(shape) for name, shape in SHAPES.items()}
    near = [
        {name: tensor if name in frozen else tensor + numbers(tensor.shape) for name, tensor in base.items()}
        for _ in range(inputs)
    ]
    return base, near


@st.composite
def parameters_of(draw, method, labels):
    """Valid parameters of a merge method: some left out, the others from the ranges that are worth searching."""
    found = {}
    for name, spec in METHODS[method].parameters.items():
        values = [st.sampled_from(spec.choices)] if spec.choices else []
        if spec.search is not None:
            low, high = spec.search
            values.append(st.integers(int(low), int(high)) if spec.integer else st.floats(low, high))
        if values and draw(st.booleans()):
            value = st.one_of(values)
            if spec.per_input and not spec.is_word and draw(st.booleans()):
                found[name] = {"per": ["expert"], "values": {label: draw(value) for label in labels}}
            else:
                found[name] = draw(value)
    return found


hostile = plain | st.sampled_from([1e308, -1, 10**400, "\0", "\ud800", "../x", "/", "((\\w|.)+)+!", [[]], {"": None}])
"""JSON values that a file from others may have anywhere."""


@st.composite
def changed(draw, data):
    """Draw JSON data in which up to three values, at any depth, are others, or left out."""
    data = copy.deepcopy(data)
    for _ in range(draw(st.integers(1, 3))):
        place = data
        while isinstance(place, dict | list) and place:
            keys = sorted(place) if isinstance(place, dict) else range(len(place))
            key = draw(st.sampled_from(list(keys)))
            if not isinstance(place[key], dict | list) or not place[key] or draw(st.booleans()):
                if draw(st.booleans()):
                    place[key] = copy.deepcopy(draw(hostile))
                else:
                    del place[key]
                break
            place = place[key]
    return data
