"""The node `condense`: grouped as by hand, averaged as in fp64, exact where nothing is to be lost, and loaded by transformers."""

import json

import pytest
import torch
import yaml
from architectures import CONFIGS
from commands import evomerge
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment
from subjects import jsonl
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from evomerge.alignment.condensed import grouped
from evomerge.build import Builder
from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.pool import Pool
from evomerge.errors import RecipeError
from evomerge.models.pretrained import new_model, save_model
from evomerge.recipe import Recipe
from evomerge.report.export import export

USE, LIKE = [5, 3, 2, 1], torch.eye(4, dtype=torch.float64)
LIKE[0, 2] = LIKE[2, 0] = LIKE[1, 3] = LIKE[3, 1] = 0.5


class Found:
    """Statistics of one expert of a pool: the same for every layer."""

    def __init__(self, usage=USE, logits=LIKE):
        self._usage, self._logits = usage, logits

    def digest(self, kind, expert):
        return f"{kind} of {expert}"

    def tables(self, kind, expert, name):
        if kind == "router":
            return {"logits": self._logits.float(), "tokens": torch.tensor(7), "axis": torch.tensor(1)}
        tokens = self._usage[int(name.split(".experts.")[1].split(".")[0])]
        return {"tokens": torch.tensor(tokens)} if tokens else {}


def condense(experts, **more):
    return Recipe.parse({"condense": {"source": "mix", "experts": experts, **more}})


def pool_of(folder, evidence=None):
    pool = Pool(folder, {"mix": folder})
    pool.evidence = evidence or Found()
    return pool


def logits_of(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model(torch.arange(3, 19)[None]).logits.double()


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("mixture") / "model", "mixtral", num_local_experts=4, num_hidden_layers=2)


def test_grouped_as_by_hand():
    assert grouped(USE, LIKE, 2) == [[0, 2], [1, 3]]
    # Experts 3 and 0 are used most. The cosine of 1 is 4 / (2 · 3) = 2/3 with 0, 0.5 / (2 · 0.5) = 1/2 with 3; that of 2 is 1/3 and 1/4.
    logits = torch.tensor([[9.0, 4.0, 1.0, 0.0], [4.0, 4.0, 0.0, 0.5], [1.0, 0.0, 1.0, 0.125], [0.0, 0.5, 0.125, 0.25]])
    assert grouped([2, 1, 0, 9], logits, 2) == [[0, 1, 2], [3]]
    assert grouped([2, 2, 2, 2], logits, 1) == [[0, 1, 2, 3]]
    assert grouped([0, 0], torch.zeros(2, 2), 1) == [[0, 1]]


@pytest.mark.parametrize("usage", [USE, [4, 0, 0, 0]])
def test_averaged_by_use_as_in_fp64(mixture, usage):
    """Aligned by one assignment over the three matrices, a float64 computation of its own."""
    built = Builder(pool_of(mixture, Found(usage))).build(condense(2))
    state = load_file(mixture / "model.safetensors")
    shares = (
        {0: {0: 5 / 7, 2: 2 / 7}, 1: {1: 3 / 4, 3: 1 / 4}} if usage == USE else {0: {0: 1, 2: 0}, 1: {1: 0.5, 3: 0.5}}
    )
    for layer in range(2):
        start = f"model.layers.{layer}.block_sparse_moe"
        for number, members in shares.items():
            leader, other = members
            in_, out, up = (
                [state[f"{start}.experts.{i}.{w}.weight"].double() for i in (leader, other)] for w in ("w1", "w2", "w3")
            )
            gain = in_[0] @ in_[1].T + up[0] @ up[1].T + out[0].T @ out[1]
            order = linear_sum_assignment(gain.numpy(), maximize=True)[1]
            a, b = members[leader], members[other]
            expected = {"w1": a * in_[0] + b * in_[1][order], "w3": a * up[0] + b * up[1][order], "w2": a * out[0] + b * out[1][:, order]}  # fmt: skip
            for w, tensor in expected.items():
                found = built.tensor(f"{start}.experts.{number}.{w}.weight")
                torch.testing.assert_close(found.double(), tensor, rtol=1e-6, atol=1e-7)
            rows = state[f"{start}.gate.weight"].double()
            found = built.tensor(f"{start}.gate.weight")[number].double()
            torch.testing.assert_close(found, a * rows[leader] + b * rows[other], rtol=1e-6, atol=1e-7)


def test_all_experts_change_no_byte(mixture, tmp_path):
    export(condense(4), pool_of(mixture), tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == (mixture / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "out/config.json").read_text()) == json.loads((mixture / "config.json").read_text())


@pytest.mark.parametrize(("active", "chosen"), [(4, None), (2, 1)])
def test_permuted_copies_of_experts_condense_to_the_model_without_them(tmp_path, active, chosen):
    """Experts and rows of the router twice over: all run, or the two of a kind of each token's best."""
    small = tiny_model(tmp_path / "small", "mixtral", num_local_experts=2, num_experts_per_tok=2 if active == 4 else 1)
    state = load_file(small / "model.safetensors")
    for name in [name for name in state if ".experts." in name]:
        order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
        copy = name.replace(".experts.0", ".experts.2").replace(".experts.1", ".experts.3")
        state[copy] = state[name][:, order].contiguous() if ".w2." in name else state[name][order].contiguous()
    for name in [name for name in state if name.endswith("gate.weight")]:
        state[name] = state[name].repeat(2, 1)
    twice = tmp_path / "twice"
    twice.mkdir()
    save_file(state, twice / "model.safetensors", {"format": "pt"})
    config = json.loads((small / "config.json").read_text()) | {"num_local_experts": 4, "num_experts_per_tok": active}
    (twice / "config.json").write_text(json.dumps(config))
    tiny_tokenizer(twice)
    export(condense(2, active=chosen), pool_of(twice), tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text()) == json.loads((small / "config.json").read_text())
    for name, tensor in load_file(tmp_path / "out/model.safetensors").items():
        assert torch.equal(tensor, load_file(small / "model.safetensors")[name])
    torch.testing.assert_close(logits_of(tmp_path / "out"), logits_of(twice), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"])
def test_transformers_loads_it_and_computes_with_the_merged_experts(tmp_path, architecture):
    auto, settings = CONFIGS[architecture]
    counts = {key: 4 for key in ("num_local_experts", "num_experts") if key in settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = new_model({"model_type": architecture, **settings, **counts, "initializer_range": 0.3}, auto)
    save_model(model, tmp_path / "model")
    pool = pool_of(tmp_path / "model")
    export(condense(3), pool, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert [config[key] for key in ("num_local_experts", "num_experts") if key in config] == [3]
    assert config["num_experts_per_tok"] == 2
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    inputs = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    tensors = Folder(tmp_path / "out")
    block = small.model.layers[0].mlp
    names = ("w1", "w3", "w2") if architecture == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    parent = "model.layers.0." + ("block_sparse_moe" if architecture == "mixtral" else "mlp")
    routes = (inputs @ tensors.tensor(f"{parent}.gate.weight").T).softmax(-1)
    top = routes.topk(2, -1)
    weights = torch.zeros_like(routes).scatter(1, top.indices, top.values)
    if architecture == "mixtral" or config.get("norm_topk_prob"):
        weights /= weights.sum(-1, keepdim=True)
    expected = torch.zeros_like(inputs)
    for i in range(3):
        gate, up, down = (tensors.tensor(f"{parent}.experts.{i}.{name}.weight") for name in names)
        expected += weights[:, i : i + 1] * ((torch.nn.functional.silu(inputs @ gate.T) * (inputs @ up.T)) @ down.T)
    if architecture == "qwen2_moe":
        expected += block.shared_expert(inputs) * torch.sigmoid(block.shared_expert_gate(inputs))
    with torch.no_grad():
        found = block(inputs[None])
    torch.testing.assert_close(
        (found[0] if isinstance(found, tuple) else found).view(5, 16), expected, rtol=1e-4, atol=1e-5
    )
    assert logits_of(tmp_path / "out").isfinite().all()


def test_command_collects_what_it_needs(mixture, tmp_path):
    rows = [{"text": text} for text in ("a cat", "the dog sat there", "to be or not to be, that is")]
    task = {"kind": "language_modelling", "text": "text", "search": jsonl(tmp_path / "s.jsonl", rows), "report": jsonl(tmp_path / "r.jsonl", [{"text": "x"}])}  # fmt: skip
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump({"tasks": {"mix": task}}))
    (tmp_path / "small.yaml").write_text("condense: {source: mix, experts: 2}\n")
    arguments = ("merge", tmp_path / "small.yaml", "--base", mixture, "--expert", f"mix={mixture}")
    done = evomerge(*arguments, "-o", tmp_path / "out", code=2)
    assert "type `evomerge merge RECIPE --evidence" in done.stderr.replace("\n", " ")
    done = evomerge(*arguments, "-o", tmp_path / "out", "--evidence", tmp_path / "tasks.yaml")
    (line,) = [
        line
        for line in done.stdout.splitlines()
        if line.startswith("model.layers.1.block_sparse_moe.gate.weight: experts ")
    ]
    assert sorted(int(word) for word in line.replace(";", " ").split() if word.isdecimal()) == [0, 1, 2, 3]
    assert line.count(";") == 1
    assert logits_of(tmp_path / "out").isfinite().all()
    (tmp_path / "base.yaml").write_text("condense: {source: base, experts: 2, task: mix}\n")
    on_base = ("merge", tmp_path / "base.yaml", *arguments[2:], "--evidence", tmp_path / "tasks.yaml")
    evomerge(*on_base, "-o", tmp_path / "base")
    for folder in ("out", "base"):
        evomerge("merge", tmp_path / folder / "recipe.yaml", "-o", tmp_path / f"{folder} again")
    made = [load_file(tmp_path / folder / "model.safetensors") for folder in ("out", "out again", "base", "base again")]
    assert all(torch.equal(tensor, other[name]) for other in made for name, tensor in made[0].items())


def test_what_cannot_be_condensed_is_refused_before_any_work(mixture, tmp_path):
    dense = tiny_model(tmp_path / "dense", "llama")
    for pool, recipe, message in (
        (pool_of(dense), condense(2), r"is of type `llama`; expected a mixture of experts, of type mixtral"),
        (pool_of(mixture), condense(5), r"`experts` is 5; each layer has 4: type 1 to 4"),
    ):
        with pytest.raises(RecipeError, match=message):
            Builder(pool).build(recipe)
    with pytest.raises(RecipeError, match="no model in memory has its shapes"):
        Builder(pool_of(mixture), search=True).build(condense(2))
    for data, message in (
        ({"source": "base", "experts": 2}, r"`source` names no expert of the pool.*task: TASK"),
        ({"source": "mix", "experts": 2, "active": 3}, "`active` is 3; expected at most `experts`, 2"),
        ({"source": "mix", "experts": 0}, "greater than or equal to 1"),
    ):
        with pytest.raises(RecipeError, match=message):
            Recipe.parse({"condense": data})
    with pytest.raises(RecipeError, match="`condense` makes a model of other shapes"):
        Recipe.parse({"merge": {"method": "linear", "inputs": ["base", condense(2).data]}})
