"""Candidates that share their first blocks share hidden states, and no bit of an output changes by it."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TINY, tiny_model
from torch import nn

from evomerge.checkpoints.folder import Folder
from evomerge.models import LiveModel
from evomerge.models.blocks import find_blocks
from evomerge.models.dataflow import address, trace
from evomerge.models.shared_blocks import SharedBlocks

LAYERS = 4
MIB = 1 << 20


class Pair:
    """A model that shares and one that does not, with candidates that are written into both."""

    def __init__(self, folder, architecture, shared=MIB, **changes):
        self.folder, self.architecture = folder, architecture
        layers = {"n_layer" if architecture == "gpt2" else "num_hidden_layers": LAYERS}
        self.base = tiny_model(folder / "base", architecture, **layers, **changes)
        self.sharing, self.plain = LiveModel(self.base, shared=shared), LiveModel(self.base)
        blocks = find_blocks(self.plain.module)
        name = next(name for name, part in self.plain.module.named_modules() if part is blocks)
        self._above = {
            mapping.source for mapping in self.plain.mappings if mapping.target.startswith((f"{name}.2.", f"{name}.3."))
        }
        self._made = 0

    def write(self, seed, *, also=()):
        """Write a candidate that differs from the base in its two upper blocks, and in the tensors `also`."""
        self._made += 1
        folder = self.folder / f"{self._made}"
        folder.mkdir()
        (folder / "config.json").write_bytes((self.base / "config.json").read_bytes())
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
            if name in self._above or name in also
            else tensor
            for name, tensor in load_file(self.base / "model.safetensors").items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        for live in (self.sharing, self.plain):
            live.refit(Folder(folder))

    def inputs(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        if self.architecture == "vit":
            return {"pixel_values": torch.randn(2, 1, 4, 4, generator=generator)}
        tokens = {
            "input_ids": torch.randint(3, 99, (2, 7), generator=generator),
            "attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3]),
        }
        return tokens if self.architecture == "bert" else {**tokens, "use_cache": False}

    def check(self, seed=0, **more):
        """Check that both give the same bytes for an input, and return how many blocks were spared."""
        before = self.sharing.shared_blocks.count.spared
        with torch.inference_mode():
            one, other = (live.module(**self.inputs(seed), **more) for live in (self.sharing, self.plain))
        assert list(one) == list(other)
        assert torch.equal(one.logits, other.logits)
        for ours, theirs in zip(one.get("hidden_states") or (), other.get("hidden_states") or (), strict=True):
            assert torch.equal(ours, theirs)
        return self.sharing.shared_blocks.count.spared - before

    def start(self, seeds=(0,)):
        """Score two candidates, after which hidden states are kept."""
        for number in range(2):
            self.write(number)
            assert sum(self.check(seed) for seed in seeds) == 0


@pytest.mark.parametrize("architecture", TINY)
def test_candidates_with_the_same_first_blocks_share_them_to_the_bit(architecture, tmp_path):
    pair = Pair(tmp_path, architecture)
    pair.start(seeds=(0, 1))
    for number, spared in ((3, [2, 2, 0]), (4, [2, 2, 2])):
        pair.write(number)
        assert [pair.check(seed) for seed in (0, 1, 2)] == spared


@pytest.mark.parametrize("tensor", ["model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"])
def test_another_tensor_below_is_noticed_and_what_was_kept_is_dropped(tensor, tmp_path):
    pair = Pair(tmp_path, "llama")
    pair.start()
    pair.write(3)
    assert pair.check() == 2
    pair.write(4, also=(tensor,))
    assert pair.check() == 0
    assert pair.sharing.shared_blocks.nbytes == 0
    pair.write(5)
    assert pair.check() == 0


def test_tied_embedding_is_below_where_it_differs_for_the_head_too(tmp_path):
    pair = Pair(tmp_path, "llama_tied")
    for number in range(5):
        pair.write(number, also=("model.embed_tokens.weight",))
        assert pair.check() == 0


def test_hidden_states_are_never_more_than_the_limit(tmp_path):
    state = 2 * 7 * 16 * 4  # bytes of one input's
    pair = Pair(tmp_path, "bert", shared=2 * state)
    pair.start(seeds=range(4))
    pair.write(3)
    assert [pair.check(seed) for seed in range(4)] == [2, 2, 0, 0]
    assert pair.sharing.shared_blocks.nbytes == 2 * state
    pair.sharing.release()
    assert pair.sharing.shared_blocks.nbytes == 0
    assert pair.check() == 0


def test_hidden_states_without_a_use_are_dropped(tmp_path):
    pair = Pair(tmp_path, "bert")
    pair.start(seeds=(0, 1))
    kept = pair.sharing.shared_blocks.nbytes
    for number in range(3, 13):
        pair.write(number)
        assert pair.check(0) == 2
    assert pair.sharing.shared_blocks.nbytes == kept / 2


def test_passes_that_return_or_observe_what_is_inside_run_every_block(tmp_path):
    pair = Pair(tmp_path, "bert")
    pair.start()
    seen = []
    hook = find_blocks(pair.sharing.module)[0].register_forward_hook(lambda *_: seen.append(1))
    assert (pair.check(), len(seen)) == (0, 1)
    hook.remove()
    assert pair.check() == 2
    for number in range(3, 6):
        pair.write(number)
        assert pair.check(output_hidden_states=True) == 0


def test_candidate_that_is_scored_again_does_not_replace_what_others_share(tmp_path):
    pair = Pair(tmp_path, "bert")
    pair.start()
    for number in (2, 2, 3, 3, 4):
        pair.write(number)
        assert pair.check() == 2


def test_tensor_that_changed_and_stays_from_then_on_is_shared(tmp_path):
    pair = Pair(tmp_path, "bert")
    spared = []
    for number in range(8):
        pair.write(min(number, 3), also=("bert.embeddings.word_embeddings.weight",))
        spared.append(pair.check())
    assert spared[:4] == [0] * 4
    assert spared[-1] > 0


def test_generation_is_not_shared(tmp_path):
    pair = Pair(tmp_path, "llama")
    pair.start()
    pair.write(3)
    ids = torch.tensor([[5, 6, 7]])
    texts = [live.generate(ids, torch.ones_like(ids), 4) for live in (pair.sharing, pair.plain)]
    assert torch.equal(*texts)
    assert pair.sharing.shared_blocks.count.spared == 0


def test_gradients_above_are_shared_and_those_below_are_not(tmp_path):
    pair = Pair(tmp_path, "bert")
    names = [f"bert.encoder.layer.{number}.output.dense.weight" for number in range(LAYERS)]

    def gradients(wanted):
        found = []
        for live in (pair.sharing, pair.plain):
            one = {}
            with live.gradients(wanted, one.__setitem__), torch.enable_grad():
                live.module(**pair.inputs()).logits.sum().backward()
            found.append(one)
        assert list(found[0]) == list(found[1])
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
        assert set(found[0]) == set(wanted)
        return pair.sharing.shared_blocks.count.spared

    for number in range(2):
        pair.write(number)
        assert gradients(names[2:]) == 0
    pair.write(3)
    assert gradients(names[2:]) == 2
    assert pair.check() == 0  # without gradients other kernels may run
    assert gradients(names) == 2  # none more


class Block(nn.Module):
    def __init__(self, number, leak):
        super().__init__()
        self.number, self.leak = number, leak
        self.linear = nn.Linear(3, 3)

    def forward(self, hidden, notes):
        hidden = self.linear(hidden)
        if self.leak == "notes":
            notes.append(hidden * 2)
            return hidden + notes[0] if self.number else hidden
        if self.leak == "in place" and self.number:
            return hidden.add_(1)
        if self.leak in ("number", "list"):
            notes.append(float(hidden.sum()) if self.leak == "number" else hidden.tolist()[0][0])
            return hidden * notes[0]
        return hidden.tanh()


class Stack(nn.Module):
    def __init__(self, leak=None):
        super().__init__()
        self.before, self.after = nn.Linear(3, 3), nn.Linear(3, 3)
        self.layers = nn.ModuleList(Block(number, leak) for number in range(3))
        self.unused = nn.Linear(3, 3)
        self.leak = leak

    def forward(self, inputs):
        hidden, notes, every = self.before(inputs), [], []
        for layer in self.layers:
            if self.leak == "changed":
                hidden += 1
            hidden = layer(hidden, notes)
            every.append(hidden)
        if self.leak == "every":
            hidden = sum(every)
        return self.after(hidden) + (self.layers[0].linear.bias if self.leak == "twice" else 0)


@pytest.mark.parametrize(
    ("leak", "replaceable"),
    [
        (None, {1, 2, 3}),
        ("in place", {1, 2, 3}),  # each on memory of its own
        ("twice", {1, 2, 3}),
        ("notes", {3}),
        ("number", set()),
        ("list", set()),
        ("changed", set()),
        ("every", {1}),
    ],
)
def test_blocks_are_replaceable_only_where_all_that_they_leave_is_one_output(leak, replaceable):
    module = Stack(leak)
    with torch.inference_mode():
        flow = trace(module, [*module.layers], lambda: module(torch.ones(2, 3)))
    assert flow.replaceable == replaceable


def test_memory_is_needed_from_the_first_block_that_reads_it():
    module = Stack()
    flow = trace(module, [*module.layers], lambda: module(torch.ones(2, 3)))
    parts = (module.before, *(layer.linear for layer in module.layers), module.after)
    assert [flow.needs[address(part.weight)] for part in parts] == [0, 0, 1, 2, 3]
    assert address(module.unused.weight) not in flow.needs


def test_blocks_that_run_twice_prove_nothing():
    module = Stack()
    flow = trace(module, [*module.layers], lambda: [module(torch.ones(2, 3)), module(torch.ones(2, 3))])
    assert not flow.replaceable


def test_numbers_that_are_equal_and_have_other_bytes_are_a_change():
    module = Stack()
    shared = SharedBlocks(module, MIB)
    module.layers[0].linear.bias.data.zero_()
    for sign in (1, 1, 1, -1):
        shared.begin()
        for parameter in module.parameters():
            value = parameter.data * (sign if parameter is module.layers[0].linear.bias else 1)
            shared.write(parameter.data, lambda out, value=value: out.copy_(value))
        shared.end()
        with torch.inference_mode():
            module(torch.ones(2, 3))
    assert shared.count.spared == 0
    assert shared.nbytes == 0
