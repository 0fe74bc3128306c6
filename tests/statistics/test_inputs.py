"""Statistics of inputs against hooks on the modules themselves, which are told apart by their classes."""

from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from evomerge.checkpoints.folder import Folder
from evomerge.merging import unwatched
from evomerge.statistics import STATISTICS
from evomerge.statistics.inputs import drawn

GRAM = STATISTICS["gram"].collect


def hooked(subject, run):
    """Return the inputs `(tokens, d)` of each linear module, by the name of its weight, while `run` runs sequences."""
    seen = defaultdict(list)
    hooks = []
    for name, module in subject.live.module.named_modules():
        if isinstance(module, nn.Linear | Conv1D):

            def keep(_, args, name=name):
                seen[f"{name}.weight"].append(args[0].reshape(-1, args[0].shape[-1]).double())

            hooks.append(module.register_forward_pre_hook(keep))
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}


def by_one(subject):
    """Score each example by itself: of one sequence each, so that nothing is padded."""
    for example in subject.examples:
        subject.task.score(subject.live, "search", [example])


def assert_grams(found, inputs, names):
    for name in names:
        rows = inputs[name]
        expected = rows.T @ rows / len(rows)
        assert int(found[name]["tokens"]) == len(rows)
        torch.testing.assert_close(
            found[name]["gram"].double(), expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max())
        )


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma", "bert", "gpt2"])
def test_grams_of_linear_modules(tiny, architecture):
    subject = tiny(architecture)
    found, inputs = GRAM(subject, unwatched), hooked(subject, lambda: by_one(subject))
    stored = {"gpt2": lambda name: name.removeprefix("transformer.")}.get(architecture, lambda name: name)
    inputs = {name if name in subject.matrices else stored(name): rows for name, rows in inputs.items()}
    shared = {"lm_head.weight"} - set(subject.matrices)
    tied = {"transformer.wte.weight", "wte.weight", "model.embed_tokens.weight"}
    assert set(found) == set(inputs) - shared - tied
    assert_grams(found, inputs, found)
    assert {int(found[name]["axis"]) for name in found} == ({0} if architecture == "gpt2" else {1})


def test_a_tied_embedding_has_no_gram_of_the_head(tiny):
    subject = tiny("llama_tied")
    found = GRAM(subject, unwatched)
    assert "lm_head.weight" not in subject.matrices
    assert "model.embed_tokens.weight" not in found
    assert "model.layers.1.mlp.down_proj.weight" in found


def test_experts_of_a_mixture_have_the_tokens_routed_to_them(tiny):
    subject = tiny("mixtral")
    found, usage = GRAM(subject, unwatched), STATISTICS["usage"].collect(subject, unwatched)
    routed = []
    layer = subject.live.module.model.layers[0].mlp.experts

    def keep(_, args):
        routed.append((args[0].double(), args[1]))

    hook = layer.register_forward_pre_hook(keep)
    by_one(subject)
    hook.remove()
    total = 0
    for expert in range(3):
        rows = torch.cat([tokens[(index == expert).any(1)] for tokens, index in routed])
        name = next(
            n
            for n in subject.matrices
            if f"layers.0.block_sparse_moe.experts.{expert}.w1" in n or f"layers.0.mlp.experts.{expert}.gate_proj" in n
        )
        assert_grams(found, {name: rows}, [name])
        assert int(usage[name]["tokens"]) == len(rows)
        total += len(rows)
    assert total == 2 * sum(len(tokens) for tokens, _ in routed)
    down = [name for name in found if "w2" in name or "down_proj" in name]
    assert len(down) == 2 * 3


def test_statistic_of_routers_is_of_their_logits(tiny):
    subject = tiny("mixtral")
    found, gram = (STATISTICS[kind].collect(subject, unwatched) for kind in ("router", "gram"))
    assert set(found) == {f"model.layers.{i}.block_sparse_moe.gate.weight" for i in range(2)}
    for name, tables in found.items():
        rows = Folder(subject.live.folder).tensor(name).double()
        torch.testing.assert_close(
            tables["logits"].double(), rows @ gram[name]["gram"].double() @ rows.T, rtol=1e-4, atol=1e-5
        )
        assert tables["tokens"] == gram[name]["tokens"]


def test_padding_has_no_part(tiny):
    """Choices of one example run as a padded batch; each is counted by itself, with its own length."""
    subject = tiny("llama", "multiple_choice")
    task = subject.task
    sequences = [
        choice.tokens for choices in task._sequences(subject.live, "search", subject.examples) for choice in choices
    ]

    def run():
        for tokens in sequences:
            subject.live.module(input_ids=torch.tensor([tokens]), use_cache=False)

    found, inputs = GRAM(subject, unwatched), hooked(subject, run)
    assert len({len(tokens) for tokens in sequences[:3]}) > 1
    assert_grams(found, inputs, found)


def test_a_convolution_has_the_gram_of_its_unfolded_inputs(tiny):
    subject = tiny("vit")
    (name,) = [name for name in subject.matrices if "patch" in name and name.endswith("weight")]
    found = GRAM(subject, unwatched)[name]
    images = torch.stack([subject.task._inputs["search"][i] for i in subject.examples]).double()
    patches = torch.nn.functional.unfold(images, 2, stride=2).mT.reshape(-1, 4)
    assert int(found["tokens"]) == len(patches) == 5 * 4
    torch.testing.assert_close(found["gram"].double(), patches.T @ patches / len(patches), rtol=1e-5, atol=1e-7)


def test_queries_keys_and_values_share_one_table(tiny):
    found = GRAM(tiny("llama"), unwatched)
    query, key = (found[f"model.layers.0.self_attn.{part}_proj.weight"]["gram"] for part in "qk")
    assert query is key


def test_activations_are_the_moments_of_the_inputs(tiny):
    subject = tiny("bert")
    found, inputs = STATISTICS["activation"].collect(subject, unwatched), hooked(subject, lambda: by_one(subject))
    for name, tables in found.items():
        rows = inputs[name]
        torch.testing.assert_close(tables["mean"].double(), rows.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(tables["size"].double(), rows.abs().mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(tables["norm"].double(), rows.square().mean(0).sqrt(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(tables["variance"].double(), rows.var(0, correction=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["bert", "llama", "vit"])
def test_examples_of_one_length_run_together(tiny, architecture):
    """Images, and texts of as many tokens; what is collected is that of single examples."""
    subject = tiny(architecture)
    if architecture != "vit":
        subject = replace(subject, examples=[*subject.examples, subject.examples[0]])
    sizes = []
    hook = subject.live.module.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(next(iter(kwargs.values())))), with_kwargs=True
    )
    found = GRAM(subject, unwatched)
    hook.remove()
    assert sum(sizes) == len(subject.examples)
    assert len(sizes) < len(subject.examples)
    inputs = hooked(subject, lambda: by_one(subject))
    assert_grams(found, inputs, set(found) & set(inputs))


def test_every_place_of_a_sequence_may_be_drawn_and_the_same_ones_for_all_models():
    rows = torch.arange(64 * 17).view(-1, 1)  # 64 sequences of 17 tokens
    places = set((drawn(rows, 128, 0) % 17).flatten().tolist())
    assert places == set(range(17))
    assert torch.equal(drawn(rows, 128, 3), drawn(rows, 128, 3))
    assert torch.equal(drawn(rows, len(rows), 3), rows)
