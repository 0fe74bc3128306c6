"""The moments of outputs against hooks on the modules themselves."""

from collections import defaultdict

import pytest
import torch
from subjects import image_task, subject_of
from torch import nn
from transformers.pytorch_utils import Conv1D

from evomerge.merging import unwatched
from evomerge.models import LiveModel
from evomerge.statistics import STATISTICS
from evomerge.statistics.outputs import order

OUTPUTS = STATISTICS["outputs"].collect
LAYERS = nn.Linear | nn.Conv2d | nn.BatchNorm2d | Conv1D


def hooked(subject):
    """Return the outputs `(tokens, d)` of each layer, by the checkpoint's name of its weight."""
    names = {mapping.target: mapping.source for mapping in subject.live.mappings}
    seen = defaultdict(list)
    hooks = []
    for path, module in subject.live.module.named_modules():
        if isinstance(module, LAYERS):

            def keep(module, _, outputs, name=names[f"{path}.weight"]):
                rows = outputs if isinstance(module, nn.Linear | Conv1D) else outputs.movedim(1, -1)
                seen[name].append(rows.flatten(0, -2).double())

            hooks.append(module.register_forward_hook(keep))
    for example in subject.examples:
        subject.task.score(subject.live, "search", [example])
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}


def check(subject):
    found, outputs = OUTPUTS(subject, unwatched), hooked(subject)
    for name, tables in found.items():
        rows = outputs[name]
        assert int(tables["tokens"]) == len(rows)
        scale = float(rows.std())
        torch.testing.assert_close(tables["mean"], rows.mean(0), rtol=1e-5, atol=1e-6 * scale)
        torch.testing.assert_close(tables["variance"], rows.var(0, correction=0), rtol=1e-4, atol=1e-6 * scale**2)
    return found, outputs


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "vit"])
def test_outputs_are_those_of_the_modules(tiny, architecture):
    found, outputs = check(tiny(architecture))
    tied = {"wte.weight", "transformer.wte.weight"}
    assert set(found) - tied == set(outputs) - tied


def test_batch_norms_are_layers(resnet, tmp_path):
    subject = subject_of(resnet, image_task(tmp_path), live=LiveModel(resnet))
    found, outputs = check(subject)
    assert set(found) == set(outputs)
    norm = next(name for name in found if len(subject.shapes[name]) == 1)
    groups = order(subject)
    assert groups[groups.index((norm,)) - 1] == (norm.replace("normalization", "convolution"),)


def test_layers_on_the_same_inputs_are_one_group_in_the_order_of_the_model(tiny):
    groups = [{name.split("layer.")[-1] for name in group} for group in order(tiny("bert"))]
    attention = "0.attention.self"
    assert groups[0] == {f"{attention}.{part}.weight" for part in ("query", "key", "value")}
    assert groups[1:4] == [{f"0.{part}.dense.weight"} for part in ("attention.output", "intermediate", "output")]
    assert groups[-1] == {"classifier.weight"}
