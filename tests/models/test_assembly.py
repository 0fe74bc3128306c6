"""A stack in memory is the model that transformers would make of the same layers, for any architecture."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TINY, tiny_model

from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.models import LiveModel
from evomerge.models.assembly import per_layer
from evomerge.models.prefixes import choose
from evomerge.models.pretrained import load_model, new_model, save_model
from evomerge.recipe import Recipe

LAYERS = 3
CAUSAL = [name for name, (_, auto) in TINY.items() if auto == "AutoModelForCausalLM"]
NAMES = ("num_hidden_layers", "n_layer")


def inputs(architecture, batch=2):
    generator = torch.Generator().manual_seed(0)
    if architecture == "vit":
        return {"pixel_values": torch.randn(batch, 1, 4, 4, generator=generator)}
    return {"input_ids": torch.randint(3, 99, (batch, 7), generator=generator)}


@torch.inference_mode()
def logits(module, architecture, **more):
    plain = {} if architecture in ("vit", "bert") else {"use_cache": False}
    return module(**inputs(architecture), **plain, **more).logits


class World:
    """A pool of two experts in memory, with a live model."""

    def __init__(self, folder, architecture, shared=0, precision="float32"):
        self.architecture = architecture
        layers = {"n_layer" if architecture == "gpt2" else "num_hidden_layers": LAYERS}
        for seed, name in enumerate(("base", "a", "b")):
            tiny_model(folder / name, architecture, seed, **layers)
        self.folder = folder
        self.pool = Pool(folder / "base", {name: folder / name for name in "ab"})
        self.builder = Builder(self.pool)
        self.live = LiveModel(folder / "base", precision=precision, shared=shared)

    def show(self, slots, rest="a"):
        self.live.refit(self.builder.build(stack(slots, rest)))
        return self.live.module

    def logits(self, slots, rest="a"):
        return logits(self.show(slots, rest), self.architecture)

    def on_disk(self, slots, rest="a"):
        """Return the model that transformers loads from a checkpoint assembled by file operations alone."""
        folder = self.folder / "made"
        folder.mkdir(exist_ok=True)
        sources = {name: load_file(self.folder / name / "model.safetensors") for name in ("base", "a", "b")}
        prefix = self.pool.layout.prefix
        tensors = {name: tensor for name, tensor in sources[rest].items() if not name.startswith(prefix + ".")}
        for number, (source, layer, *_) in enumerate(slots):
            start = f"{prefix}.{layer}."
            for name, tensor in sources[source].items():
                if name.startswith(start):
                    tensors[f"{prefix}.{number}.{name.removeprefix(start)}"] = tensor.clone()
        save_file(tensors, folder / "model.safetensors")
        config = json.loads((self.folder / "base" / "config.json").read_text())
        config |= {key: [value[layer] for _, layer, *_ in slots] for key, value in per_layer(config, LAYERS).items()}
        config |= {name: len(slots) for name in NAMES if name in config}
        (folder / "config.json").write_text(json.dumps(config))
        return load_model(folder, TINY[self.architecture][1])


def stack(slots, rest="a"):
    keys = ("source", "layer", "scale")
    return Recipe.parse({"stack": {"slots": [dict(zip(keys, slot, strict=False)) for slot in slots], "rest": rest}})


OWN = [("a", 0), ("a", 1), ("a", 2)]
FREE = [("b", 2), ("a", 0), ("a", 0), ("b", 1), ("base", 1), ("b", 2)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", TINY)
def test_stack_of_all_of_a_models_layers_is_that_model(architecture, precision, tmp_path):
    world = World(tmp_path, architecture, precision=precision)
    outputs = world.logits(OWN)
    world.live.refit(world.pool.experts["a"])
    assert torch.equal(outputs, logits(world.live.module, architecture))


@pytest.mark.parametrize("architecture", TINY)
def test_layers_may_be_repeated_dropped_reordered_and_mixed(architecture, tmp_path):
    world = World(tmp_path, architecture)
    for slots in (FREE, [("b", 1)], [("a", 2), ("a", 1), ("a", 0)]):
        assert torch.equal(world.logits(slots), logits(world.on_disk(slots), architecture))
    world.live.refit(world.pool.base)  # what was shown before leaves nothing behind
    assert torch.equal(
        logits(world.live.module, architecture),
        logits(load_model(tmp_path / "base", TINY[architecture][1]), architecture),
    )


@pytest.mark.parametrize("architecture", TINY)
def test_scale_multiplies_the_complete_residual_stream(architecture, tmp_path):
    world = World(tmp_path, architecture)
    slots = [("a", 0), ("b", 1, 0.7), ("a", 1), ("a", 1, -1.3)]
    model = world.on_disk(slots)
    blocks = dict(model.named_modules())[world.live._assembly._list]
    for block, (_, _, *scale) in zip(blocks, slots, strict=True):
        for factor in scale:
            block.register_forward_pre_hook(lambda _, args, factor=factor: (args[0] * factor, *args[1:]))
    assert torch.equal(world.logits(slots), logits(model, architecture))


@pytest.mark.parametrize("architecture", CAUSAL)
def test_generation_with_a_cache_is_generation_without(architecture, tmp_path):
    world = World(tmp_path, architecture)
    module = world.show([("a", 0), ("b", 1, 0.8), ("b", 1), ("a", 0), ("a", 2)])
    ids = inputs(architecture)["input_ids"]
    written = world.live.generate(ids, torch.ones_like(ids), 6)
    with torch.inference_mode():
        cached = module(input_ids=ids, use_cache=True).past_key_values
        assert len(cached) == 5  # one slot for each layer
        for _ in range(written.shape[1]):
            ids = torch.cat([ids, module(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    trimmed = [list(row[: list(row).index(2) + 1] if 2 in row else row) for row in written.tolist()]
    for row, expected in zip(trimmed, ids[:, 7:].tolist(), strict=True):
        assert row == expected[: len(row)]


def test_layers_of_a_nested_merge_are_the_merges(tmp_path):
    world = World(tmp_path, "llama")
    merged = Recipe.parse({"merge": {"method": "linear", "inputs": ["a", "b"], "parameters": {"weight": 0.5}}})
    slots = [(merged.data, layer) for layer in range(LAYERS)]
    outputs = world.logits(slots, merged.data)
    world.live.refit(world.builder.build(merged))
    assert torch.equal(outputs, logits(world.live.module, "llama"))


def test_stack_of_layers_in_memory_copies_nothing(tmp_path):
    world = World(tmp_path, "llama")

    def memory():
        return [[p.data_ptr() for p in block.parameters()] for block in world.live.module.model.layers]

    world.show(OWN)
    own_memory = memory()
    world.show([("a", 1), ("a", 1), ("b", 0), ("a", 2)])
    assert memory()[0] == memory()[1] == own_memory[1]
    assert memory()[3] == own_memory[2]


def test_layers_of_an_earlier_merge_are_let_go(tmp_path):
    world = World(tmp_path, "llama")
    for weight in (0.2, 0.4, 0.6):
        merged = {"merge": {"method": "linear", "inputs": ["a", "b"], "parameters": {"weight": weight}}}
        world.show([(merged, 0), ("a", 1), (merged, 0)])
    held = {key for key, _ in world.live._assembly._layers}
    assert held == {Recipe.parse(merged).id, Recipe.parse("a").id}


PATHS = [
    [("a", 0), ("a", 1), ("a", 2)],
    [("a", 0), ("a", 1), ("b", 2)],
    [("a", 0), ("a", 1, 0.9), ("b", 2)],
    [("a", 0), ("b", 1), ("b", 2), ("a", 2)],
    [("a", 0), ("a", 1), ("b", 2)],
    [("b", 0), ("a", 1), ("b", 2)],
]


@pytest.mark.parametrize("architecture", TINY)
def test_shared_prefixes_change_no_bit(architecture, tmp_path):
    plain, sharing = World(tmp_path, architecture), World(tmp_path, architecture, shared=1 << 20)
    spared = 0
    for rest in ("a", "b", "a"):
        for slots in PATHS:
            assert torch.equal(plain.logits(slots, rest), sharing.logits(slots, rest))
            count = sharing.live.prefixes.count
            assert count.run + count.spared == len(slots)
            spared += count.spared
    assert spared > 18  # each path came three times, two of them with the same embeddings


def test_generation_is_not_shared(tmp_path):
    world = World(tmp_path, "llama", shared=1 << 20)
    ids = inputs("llama")["input_ids"]
    outputs = []
    for slots in (PATHS[0], PATHS[0], PATHS[1]):
        world.show(slots)
        outputs.append(world.live.generate(ids, torch.ones_like(ids), 4))
        assert world.live.prefixes.count.spared == 0
    assert torch.equal(outputs[0], outputs[1])


def test_memory_of_hidden_states_stays_within_its_budget(tmp_path):
    state = 2 * 7 * 16 * 4  # bytes of one batch after one layer
    world = World(tmp_path, "llama", shared=3 * state)
    plain = World(tmp_path, "llama")
    spared = 0
    for slots in PATHS * 3:
        assert torch.equal(world.logits(slots), plain.logits(slots))
        assert world.live.prefixes.nbytes <= 3 * state
        spared += world.live.prefixes.count.spared
    assert spared > 10


def test_all_prefixes_are_kept_where_they_fit_and_otherwise_those_at_forks():
    paths = [("a", "ab", "abc"), ("a", "ab", "abd"), ("a", "ae", "aef"), ("g", "gh", "ghi")]
    everything = {node for path in paths for node in path}
    assert choose(paths, len(everything)) == everything
    assert choose(paths, 1) == {"ab"}  # two layers for the first two, where "a" spares one for three: 4 > 3
    assert choose(paths, 2) == {"ab", "a"}
    assert choose(paths, 3) == {"ab", "a", "g"}  # then the latest path, from its first layer on
    assert choose(paths, 0) == set()


def test_after_a_plain_candidate_nothing_is_shared(tmp_path):
    world = World(tmp_path, "llama", shared=1 << 20)
    world.logits(PATHS[0])
    world.live.refit(world.pool.experts["b"])
    outputs = logits(world.live.module, "llama")
    assert torch.equal(outputs, logits(load_model(Path(tmp_path / "b"), "AutoModelForCausalLM"), "llama"))


_SMALL = {"vocab_size": 99, "hidden_size": 16, "initializer_range": 0.3, "max_position_embeddings": 64}
NUMBERED = {  # classes that number layers in settings of their own, or under another name
    "gpt_neo": {"num_layers": 4, "num_heads": 2, "attention_types": [[["global", "local"], 2]], "window_size": 3},
    "bamba": {
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 24,
        "attn_layer_indices": [1, 3],
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "mamba_d_state": 8,
    },
}


@pytest.mark.parametrize("kind", NUMBERED)
@torch.inference_mode()
def test_stacks_of_layers_that_classes_number_otherwise_are_generated_from_with_a_cache(kind, tmp_path):
    for seed, name in enumerate(("base", "x")):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = new_model({"model_type": kind, **_SMALL, **NUMBERED[kind]}, "AutoModelForCausalLM")
        save_model(model, tmp_path / name)
    pool = Pool(tmp_path / "base", {"x": tmp_path / "x"})
    live = LiveModel(pool.open_base(), "AutoModelForCausalLM")
    slots = [{"source": {"expert": "x"}, "layer": layer} for layer in (1, 0, 1, 3)]
    stack = Recipe.parse({"stack": {"slots": slots, "rest": {"expert": "x"}}})
    ids = torch.arange(3, 11)[None]
    live.refit(Builder(pool).build_model(stack))
    written = live.module.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
    for _ in range(5):
        ids = torch.cat([ids, live.module(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(written, ids)
