"""Methods: mergekit's merge methods, each in evomerge's terms, and what the two define otherwise.

mergekit 0.1.5 has 20. `RULES` are those that have a counterpart here, `REFUSED` the others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, Protocol, TypeAlias

from evomerge.errors import RecipeError
from evomerge.merging import METHODS
from evomerge.merging.site import cancels

REQUIRED = object()
"""The default of a parameter that has none."""


@dataclass(frozen=True, slots=True)
class Given:
    """A parameter of mergekit: of each input, of each input but the base, or of the merge; a number, or a flag."""

    scope: Literal["input", "other", "merge"]
    default: Any
    flag: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """Something that evomerge defines otherwise than mergekit: a word for it, and a sentence."""

    key: str
    text: str


class Resolved(Protocol):
    """The parameters of one merge, looked up for each tensor and input."""

    labels: Sequence[str]
    """The inputs in the order of the recipe; of the base, where it is one, `base`."""
    based: bool
    """Whether there is a base that task vectors start from."""
    exact: bool
    """Whether mergekit's definitions are asked for."""

    def rows(self, name: str) -> Mapping[str, Sequence[float]]:
        """Return by tensor a parameter's values of all inputs, or its one value."""

    def table(self, name: str, change: Callable[[float], float] = ...) -> Any:
        """Return a parameter, its values changed, as a recipe writes it."""

    def combined(self, name: str, change: Callable[[Sequence[float]], float]) -> Any:
        """Return a number of the merge, made of a parameter's values of all inputs, as a recipe writes it."""

    def flag(self, name: str) -> bool:
        """Return a flag. Raises `RecipeError` where it differs between tensors."""

    def say(self, key: str, text: str) -> None:
        """Note what is defined otherwise."""

    def refuse(self, name: str, why: str) -> RecipeError:
        """Return the error about a parameter that evomerge cannot follow."""


Body: TypeAlias = dict[str, Any]
"""`method` and `parameters`, or `stages`, of a merge."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How one of mergekit's methods is written here, and what it takes."""

    write: Callable[[str, Resolved], Body]
    parameters: Mapping[str, Given]
    base: Literal["origin", "input", "first", "optional"] = "origin"
    """What the base is: where task vectors start, one input more where it is named, the first input, or an origin that
    may be missing."""
    inputs: tuple[int, int | None] = (1, None)
    """The least and the greatest number of inputs, without the base unless that is an input."""
    narrow: bool = True
    """Whether mergekit computes in the dtype of the weights."""
    ignored: tuple[str, ...] = field(default=("int8_mask",))
    """Parameters that change no number."""


def _method(name: str, parameters: Mapping[str, Any]) -> Body:
    known = METHODS[name].parameters
    kept = {key: value for key, value in parameters.items() if value != known[key].default}
    return {"method": name, "parameters": kept} if kept else {"method": name}


def _raw(weigh: str, parameters: Mapping[str, Any], post: Sequence[Any] = (), origin: str = "zero") -> Body:
    stages = {"origin": origin, "weigh": [{weigh: dict(parameters)}], "reduce": "sum"}
    return {"stages": {**stages, "post": list(post)} if post else stages}


def _cancels(get: Resolved, *, some: bool = False) -> bool:
    """Return whether weights cancel in some tensor; with `some`, whether those of some inputs may."""
    rows = get.rows("weight").values()
    if some:
        return any(min(row) < 0 < max(row) for row in rows)
    return any(bool(cancels(row)) for row in rows)


def _linear(name: str, get: Resolved) -> Body:
    weight = get.table("weight")
    if not get.flag("normalize"):
        return _raw("weight", {"weight": weight})
    if _cancels(get):
        get.say("linear", "weights that sum to zero give the base; mergekit divides by zero, which is not finite")
    return _method("linear", {"weight": weight})


def _slerp(name: str, get: Resolved) -> Body:
    if not get.exact:
        get.say(
            "chord",
            "an arc is taken between all models, and anti-parallel ones are refused; mergekit takes the chord where the cosine is "
            "larger than 0.9995, as it is for most fine-tuned models",
        )
    return _method("slerp", {"t": get.table("t"), **({"chord": 0.9995} if get.exact else {})})


def _nuslerp(name: str, get: Resolved) -> Body:
    if get.flag("nuslerp_row_wise") or not get.flag("nuslerp_flatten"):
        raise get.refuse(
            "nuslerp_flatten", "evomerge takes angles over whole tensors: remove it and `nuslerp_row_wise`"
        )
    if any(abs(sum(row)) < 1e-6 for row in get.rows("weight").values()):
        get.say(
            "nuslerp",
            "weights that cancel count as equal, up to float32's rounding; in mergekit if their sum is below 1e-6",
        )
    get.say("anti-parallel", "anti-parallel models are refused; mergekit adds them, which is zero in the middle")
    weight = {"weight": get.table("weight")}
    return _method("nuslerp", weight) if get.based else _raw("nuslerp", weight)


def _multislerp(name: str, get: Resolved) -> Body:
    weight = {"weight": get.table("weight")}
    if _cancels(get):
        get.say("cancel", "weights that cancel count as equal; mergekit divides by their sum")
    if get.flag("normalize_weights") or len(get.labels) == 1:
        return _method("multislerp", weight) if get.based else _raw("multislerp", weight)
    scale = [{"scale": {"lambda": get.combined("weight", sum)}}]
    return _raw("multislerp", weight, scale, "base" if get.based else "zero")


def _karcher(name: str, get: Resolved) -> Body:
    steps, tol = (next(iter(get.rows(word).values()))[0] for word in ("max_iter", "tol"))
    get.say("karcher", f"the mean is iterated until it stands; mergekit stops after {steps:g} steps, or at {tol:g}")
    return _method("karcher", {})


def _stock(name: str, get: Resolved) -> Body:
    if get.flag("filter_wise"):
        raise get.refuse("filter_wise", "evomerge takes angles over whole tensors: remove it")
    if not get.exact:
        get.say(
            "stock",
            "the result is between the base and the mean; mergekit leads away from them where task vectors point apart",
        )
    return _method("model_stock", {"bounds": "none"} if get.exact else {})


def _nearswap(name: str, get: Resolved) -> Body:
    get.say("near", "steps are exact; mergekit takes differences below 1e-6 for 1e-6")
    return _method("nearswap", {"t": get.table("t", lambda t: max(t, 0.0))})


def _passthrough(name: str, get: Resolved) -> Body:
    return _raw("weight", {"weight": get.table("scale")})


def _sce(name: str, get: Resolved) -> Body:
    select = get.table("select_topk", lambda share: min(max(share, 0.0), 1.0))
    partly = any(row[0] < 1 for row in get.rows("select_topk").values())
    if get.exact:
        return _method(
            "sce",
            {"select": select, "equal_below": 1e-6, **({"equals": "first", "rounding": "down"} if partly else {})},
        )
    get.say(
        "energies",
        "energies are shares of the squares; mergekit takes equal shares if mean squares sum to less than 1e-6",
    )
    if partly:
        _say_counts(get, "select_topk", "select")
    return _method("sce", {"select": select})


def _say_counts(get: Resolved, theirs: str, ours: str) -> None:
    get.say(
        "rounding",
        f"`{ours}` of n elements is the nearest integer, at least one; mergekit's `{theirs}` keeps int({theirs}·n)",
    )
    get.say(
        "equals",
        "all elements as large as the smallest kept are kept; mergekit keeps an exact number, in its sort's order",
    )


def _share(density: float) -> float:
    return min(max(density, 0.0), 1.0)


def _rest(density: float) -> float:
    """Return 1 - density without the rounding of 1 - 0.9."""
    return float(1 - Decimal(repr(float(_share(density)))))


def _task_vectors(name: str, get: Resolved) -> Body:
    """Write one of mergekit's eight methods of the form: sparsify, elect or not, sum, divide or not, scale."""
    parameters: dict[str, Any] = {"weight": get.table("weight")}
    partly = name != "task_arithmetic" and any(min(row) < 1 for row in get.rows("density").values())
    elects = name in _ELECTING
    if name in ("dare_linear", "dare_ties"):
        parameters["drop"] = get.table("density", _rest)
    elif name != "task_arithmetic":
        parameters["density"] = get.table("density", _share)
    for word in ("gamma", "epsilon"):
        if word in RULES[name].parameters:
            parameters[word] = get.table(word)
    parameters["lambda"] = get.table("lambda")
    divides = get.flag("normalize")
    parameters["reduce"] = "solve" if divides else "sum"
    if divides and _cancels(get, some=elects):
        get.say(
            "cancel", "where the weights that count sum to zero, the result is the base; mergekit does not divide there"
        )
    if partly and name in ("ties", "breadcrumbs", "breadcrumbs_ties"):
        if get.flag("rescale"):
            raise get.refuse(
                "rescale",
                "evomerge rescales what DARE and DELLA leave, not what trimming leaves: write `rescale: false`",
            )
        if get.exact:
            parameters |= {"equals": "first", "rounding": "down", **({"scope": "tensor"} if name == "ties" else {})}
        else:
            if name == "ties":
                get.say(
                    "scope",
                    "densities are fractions of the whole model, as in TIES' paper; mergekit takes them of each tensor",
                )
            _say_counts(get, "density", "density")
    if name in _DROPPING and partly:
        get.say(
            "noise",
            "what is dropped is drawn by the recipe's seed and the tensor's name; in mergekit, from torch's generator",
        )
        if not get.flag("rescale"):
            parameters["rescale"] = "none"
        elif get.exact:
            parameters["rescale"] = "l1"
        else:
            get.say(
                "rescale",
                "what is left is divided by the probability to be kept, as in the paper; mergekit restores the L1 norm",
            )
    if name in ("della", "della_linear"):
        windows = zip(get.rows("density").values(), get.rows("epsilon").values(), strict=True)
        pairs = [pair for row in windows for pair in zip(*row, strict=True)]
        if any(0 < d < 1 and (d + e >= 1 or d - e <= 0) for d, e in pairs):
            get.say("window", "`epsilon` is cut to what `density` leaves of [0, 1]; mergekit refuses such a file")
    if elects and get.exact:
        parameters["undecided"] = "positive"
    elif elects:
        get.say(
            "undecided",
            "where the vote is exactly zero the element is the base's, as in TIES' paper; mergekit takes it for +",
        )
    return _method(name, parameters)


_ELECTING = ("ties", "dare_ties", "breadcrumbs_ties", "della")
_DROPPING = ("dare_linear", "dare_ties", "della", "della_linear")


def _sparse(*, normalize: bool = False, rescale: bool = False, **more: float) -> Rule:
    parameters = {
        "weight": Given("other", REQUIRED),
        "density": Given("other", 1.0),
        **{name: Given("other", default) for name, default in more.items()},
        "lambda": Given("merge", 1.0),
        "normalize": Given("merge", normalize, flag=True),
        "rescale": Given("merge", rescale, flag=True),
    }
    return Rule(_task_vectors, parameters)


_WEIGHT = Given("other", REQUIRED)

RULES: Mapping[str, Rule] = {
    "linear": Rule(
        _linear,
        {"weight": Given("input", REQUIRED), "normalize": Given("merge", default=True, flag=True)},
        "input",
        narrow=False,
    ),
    "slerp": Rule(_slerp, {"t": Given("merge", REQUIRED)}, "first", (2, 2), narrow=False),
    "nuslerp": Rule(
        _nuslerp,
        {
            "weight": _WEIGHT,
            "nuslerp_row_wise": Given("merge", default=False, flag=True),
            "nuslerp_flatten": Given("merge", default=True, flag=True),
        },
        "optional",
        (2, 2),
    ),
    "multislerp": Rule(
        _multislerp,
        {"weight": _WEIGHT, "normalize_weights": Given("merge", default=True, flag=True)},
        "optional",
    ),
    "karcher": Rule(_karcher, {"max_iter": Given("merge", 10), "tol": Given("merge", 1e-5)}, "input"),
    "model_stock": Rule(_stock, {"filter_wise": Given("merge", default=False, flag=True)}, inputs=(2, None)),
    "nearswap": Rule(_nearswap, {"t": Given("merge", REQUIRED)}, inputs=(1, 1)),
    "sce": Rule(_sce, {"select_topk": Given("merge", 1.0)}),
    "passthrough": Rule(_passthrough, {"scale": Given("input", 1.0)}, "input", (1, 1), narrow=False),
    "task_arithmetic": _sparse(),
    "ties": _sparse(normalize=True),
    "dare_linear": _sparse(rescale=True),
    "dare_ties": _sparse(rescale=True),
    "breadcrumbs": _sparse(gamma=0.01),
    "breadcrumbs_ties": _sparse(gamma=0.01),
    "della": _sparse(normalize=True, rescale=True, epsilon=0.15),
    "della_linear": _sparse(rescale=True, epsilon=0.15),
}
"""By mergekit's name."""

REFUSED: Mapping[str, str] = {
    "arcee_fusion": "a threshold by divergences of rows; the nearest here is `nearswap`",
    "ram": "a mean over the models that change an element; the nearest here is `ties` at density 1",
    "ramplus_tl": "a mean over the models that change an element, rescaled; the nearest here is `ties` at density 1",
}
"""Methods of mergekit that evomerge has no counterpart of, and the nearest one."""
