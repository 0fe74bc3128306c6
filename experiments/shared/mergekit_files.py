"""Random mergekit configurations on tiny Llamas, merged by mergekit and by evomerge: what tests and benchmarks share.

Not to be confused with `by_mergekit`, which says recipes of evomerge in mergekit's terms.
"""

import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from evomerge import exchange, strict_yaml
from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool

BLOCKS = 4
EXPERTS = ("maths", "code", "prose")
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 31,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CLOSE = 3e-6
"""The largest difference, of a tensor's largest magnitude, that is rounding in fp32: mergekit sums cosines in it."""
RARE = frozenset({"equals", "undecided", "cancel", "near", "energies", "anti-parallel", "output", "outline", "nested"})
"""Keys of notes about what these models do not have, or what changes no number in fp32: they explain no difference."""


def write_models(folder: Path, dtype: torch.dtype, seed: int = 0) -> dict[str, Path]:
    """Write a base and its experts, which have a part of their task vectors in common; return the folders by name."""
    generator = torch.Generator().manual_seed(seed)
    inner = {
        "self_attn.q_proj": (8, 8),
        "self_attn.k_proj": (4, 8),
        "self_attn.v_proj": (4, 8),
        "self_attn.o_proj": (8, 8),
        "mlp.gate_proj": (12, 8),
        "mlp.up_proj": (12, 8),
        "mlp.down_proj": (8, 12),
        "input_layernorm": (8,),
        "post_attention_layernorm": (8,),
    }
    shapes = {"model.embed_tokens.weight": (31, 8), "model.norm.weight": (8,), "lm_head.weight": (31, 8)}
    shapes |= {f"model.layers.{i}.{name}.weight": shape for i in range(BLOCKS) for name, shape in inner.items()}
    base = {
        name: torch.randn(shape, generator=generator) * 0.3 + (len(shape) == 1)
        for name, shape in sorted(shapes.items())
    }
    common = {name: torch.randn(shape, generator=generator) for name, shape in sorted(shapes.items())}
    folders = {}
    for name in ("base", *EXPERTS):
        step = 0.0 if name == "base" else 0.02
        tensors = {
            key: tensor + step * (torch.randn(tensor.shape, generator=generator) + 0.5 * common[key])
            for key, tensor in base.items()
        }
        folders[name] = folder / name
        folders[name].mkdir(parents=True)
        save_file({key: tensor.to(dtype) for key, tensor in tensors.items()}, folders[name] / "model.safetensors")
        config = {**CONFIG, "torch_dtype": str(dtype).removeprefix("torch.")}
        (folders[name] / "config.json").write_text(json.dumps(config))
    return folders


# -- random files ------------------------------------------------------------------------------------------------------

_FILTERS = ("self_attn", "mlp", "norm", "embed", "lm_head", "q_proj", "layers.1.", "layernorm", "model.norm", "*")
_BY_MODEL = {
    "weight": (0.1, 1.2),
    "density": (0.3, 0.8),  # of DELLA, density ± epsilon must be in (0, 1)
    "gamma": (0.0, 0.1),
    "epsilon": (0.0, 0.1),
    "scale": (0.0, 1.5),
}
_BY_MERGE = {"t": (0.0, 1.0), "lambda": (0.3, 1.4), "select_topk": (0.2, 1.0)}
_FLAGS = ("normalize", "rescale", "normalize_weights", "int8_mask")
_OF = {
    "linear": ("weight", "normalize"),
    "slerp": ("t",),
    "nuslerp": ("weight",),
    "multislerp": ("weight", "normalize_weights"),
    "karcher": (),
    "model_stock": (),
    "nearswap": ("t",),
    "sce": ("select_topk", "int8_mask"),
    "passthrough": ("scale",),
    "task_arithmetic": ("weight", "lambda", "normalize", "int8_mask"),
    "ties": ("weight", "density", "lambda", "normalize", "int8_mask"),
    "dare_linear": ("weight", "density", "lambda", "normalize", "rescale"),
    "dare_ties": ("weight", "density", "lambda", "normalize", "rescale"),
    "breadcrumbs": ("weight", "density", "gamma", "lambda", "normalize"),
    "breadcrumbs_ties": ("weight", "density", "gamma", "lambda", "normalize"),
    "della": ("weight", "density", "epsilon", "lambda", "normalize", "rescale"),
    "della_linear": ("weight", "density", "epsilon", "lambda", "normalize", "rescale"),
}
METHODS = tuple(_OF)
_TWO = ("slerp", "nuslerp")
_ALL = ("linear", "karcher")
"""Methods of which the base is one input more, and so without a base here."""


def random_file(number: int, folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return the documents of one random file; the methods take turns, so that each occurs in any 17 files in a row."""
    draw = random.Random(number)  # noqa: S311  # no secret
    method = METHODS[number % len(METHODS)]
    if method == "passthrough":
        return [_passthrough(draw, folders)]
    nested = draw.random() < 0.2
    experts = draw.sample(EXPERTS, 2 if method in _TWO or draw.random() < 0.3 else 3)
    paths = [str(folders[name]) for name in experts]
    documents = []
    if nested:
        inner = draw.choice(("linear", "task_arithmetic", "ties"))
        documents.append({"name": "inner", **_document(draw, inner, paths, folders)})
        paths[0] = "inner"
    documents.append(_document(draw, method, paths, folders))
    return documents


def _document(draw: random.Random, method: str, paths: Sequence[str], folders: Mapping[str, Path]) -> dict[str, Any]:
    base = str(folders["base"])
    if method in ("slerp", "nearswap"):
        paths = paths[:1]
    if method == "slerp" and draw.random() < 0.5 and paths[0] != "inner":
        base, paths = paths[0], [base]  # either end may be the pool's base
    data: dict[str, Any] = {"merge_method": method}
    if method not in _ALL and not (method in ("nuslerp", "multislerp") and draw.random() < 0.5):
        data["base_model"] = base
    own = [name for name in _OF[method] if name in _BY_MODEL]
    shared: dict[str, Any] = {name: _setting(draw, *_BY_MERGE[name]) for name in _OF[method] if name in _BY_MERGE}
    shared |= {name: draw.random() < 0.5 for name in _OF[method] if name in _FLAGS and draw.random() < 0.5}
    shared |= {name: _setting(draw, *_BY_MODEL[name]) for name in own if draw.random() < 0.4 and "weight" not in name}
    if own and draw.random() < 0.3:
        shared["weight"] = _setting(draw, *_BY_MODEL["weight"])

    def entries(**more: Any) -> list[dict[str, Any]]:
        listed = []
        for path in paths:
            given = {
                name: _setting(draw, *_BY_MODEL[name], total=name not in shared)
                for name in own
                if name not in shared or draw.random() < 0.3
            }
            listed.append({"model": path, **more, **({"parameters": given} if given else {})})
        if "base_model" in data:
            listed.insert(draw.randrange(len(listed) + 1), {"model": base, **more})
        return listed

    if shared:
        data["parameters"] = shared
    if draw.random() < 0.3:
        cut = draw.randrange(1, BLOCKS)
        data["slices"] = [{"sources": entries(layer_range=[*part])} for part in ((0, cut), (cut, BLOCKS))]
        if "t" in shared and draw.random() < 0.5:
            data["slices"][1]["parameters"] = {"t": _setting(draw, 0.0, 1.0, total=False)}
    else:
        data["models"] = entries()
        if "base_model" in data and draw.random() < 0.5:  # mergekit adds it
            data["models"] = [entry for entry in data["models"] if entry["model"] != base]
    return data


def _passthrough(draw: random.Random, folders: Mapping[str, Path]) -> dict[str, Any]:
    pieces = []
    for _ in range(draw.randrange(1, 4)):
        first = draw.randrange(BLOCKS)
        source: dict[str, Any] = {"model": str(folders[draw.choice(("base", *EXPERTS))])}
        source["layer_range"] = [first, draw.randrange(first, BLOCKS) + 1]
        if draw.random() < 0.4:
            source["parameters"] = {"scale": _setting(draw, *_BY_MODEL["scale"], total=False)}
        pieces.append({"sources": [source]})
    return {"merge_method": "passthrough", "slices": pieces}


def _setting(draw: random.Random, low: float, high: float, *, total: bool = True) -> Any:
    """Return a number, a gradient, or conditions; with `total`, the last of these has no filter."""

    def number() -> float:
        return round(draw.uniform(low, high), 2)

    def value() -> Any:
        return number() if draw.random() < 0.6 else [number() for _ in range(draw.randrange(2, 6))]

    if draw.random() < 0.6:
        return value()
    conditions = [{"filter": draw.choice(_FILTERS), "value": value()} for _ in range(draw.randrange(1, 4))]
    return [*conditions, {"value": value()}] if total else conditions


# -- both merges -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """One file, merged by both."""

    methods: Sequence[str]
    notes: Sequence[str]
    """Keys of what the importer said."""
    difference: float
    """The largest, of a tensor's largest magnitude; in units of the last place of bf16 where the models are stored so."""
    limit: float
    recipe: str
    """Id of the recipe."""

    @property
    def equal(self) -> bool:
        """Whether the difference is rounding."""
        return self.difference <= self.limit

    @property
    def explained(self) -> bool:
        """Whether the importer named something that these models have and that changes numbers."""
        rare = RARE if self.limit == CLOSE else RARE - {"nested"}
        return not set(self.notes) <= rare


def compare(
    documents: Sequence[Mapping[str, Any]],
    theirs: Mapping[str, torch.Tensor],
    folder: Path,
    pools: dict[str, Pool],
    *,
    exact: bool,
) -> Compared:
    """Import and merge a file, and compare with mergekit's result `theirs`; `pools` keeps what was opened."""
    file = folder / "file.yaml"
    file.write_text("---\n".join(strict_yaml.text(document) for document in documents))
    imported = exchange.read(file, exact=exact)
    key = json.dumps(imported.pool)
    if key not in pools:
        pools[key] = Pool(imported.pool["base"], imported.pool["experts"])
    ours = Builder(pools[key]).build(imported.recipe)
    assert set(theirs) == set(ours.info), set(theirs) ^ set(ours.info)
    narrow = next(iter(theirs.values())).dtype != torch.float32
    difference = 0.0
    for name, tensor in theirs.items():
        one, other = ours.tensor(name).double(), tensor.double()
        if narrow:
            units = torch.finfo(torch.bfloat16).eps * 2.0 ** other.abs().clamp(min=2.0**-20).log2().floor()
            difference = max(difference, float(((one - other).abs() / units).max()))
        else:
            difference = max(difference, float((one - other).abs().max() / max(float(other.abs().max()), 1e-3)))
    methods = [str(document["merge_method"]) for document in documents]
    keys = [note.key for note in imported.notes]
    return Compared(methods, keys, difference, 1.0 if narrow else CLOSE, imported.recipe.id)


def merge_documents(documents: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, torch.Tensor]:
    """Return mergekit's result of the last of some documents, the others merged to disk before, as mergekit-multi does."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    logging.getLogger().setLevel(logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    options = MergeOptions(quiet=True, write_model_card=False, copy_tokenizer=False, random_seed=0)
    out = folder
    for number, document in enumerate(documents):
        text = json.dumps({key: value for key, value in document.items() if key != "name"})
        config = json.loads(text.replace('"inner"', json.dumps(str(folder / "inner"))))
        out = folder / str(document.get("name", f"out{number}"))
        run_merge(MergeConfiguration.model_validate(config), str(out), options)
    return load_file(out / "model.safetensors")
