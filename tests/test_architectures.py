"""Merges of many architectures: pool, merge, export, and the same outputs in a new process as computed without evomerge."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from architectures import CONFIGS, build, outputs
from safetensors.torch import load_file

from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.recipe import merge
from evomerge.report.export import export

RECIPE = merge("task_arithmetic", ["a", "b"], {"lambda": 0.7, "weight": 0.5})
MIXTURES = {"gpt_oss": 3, "granitemoe": 3, "llama4_text": 3}
"""Architectures that store all experts in one tensor, with their number."""


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """By architecture, its pool, the outputs that its merge should have, and those of its export in a new process."""
    folder = tmp_path_factory.mktemp("architectures")
    transformers.utils.logging.disable_progress_bar()
    pools, expected = {}, {}
    for name in CONFIGS:
        models = {who: build(name, seed) for seed, who in enumerate(("base", "a", "b"))}
        for who, model in models.items():
            model.save_pretrained(folder / name / who)
        pools[name] = Pool(folder / name / "base", {who: folder / name / who for who in ("a", "b")})
        export(RECIPE, pools[name], folder / name / "out")
        base, a, b = (model.state_dict() for model in models.values())
        merged = {
            key: tensor + 0.7 * (0.5 * (a[key] - tensor) + 0.5 * (b[key] - tensor))
            if tensor.is_floating_point()
            else tensor
            for key, tensor in base.items()
        }
        models["base"].load_state_dict(merged)
        expected[name] = outputs(name, models["base"])
    out = {name: str(folder / name / "out") for name in CONFIGS}
    command = f"from architectures import write_outputs; write_outputs({json.dumps(out)}, {str(folder / 'outputs')!r})"
    subprocess.run([sys.executable, "-c", command], check=True, cwd=Path(__file__).parent, capture_output=True)
    return pools, expected, load_file(folder / "outputs")


@pytest.mark.parametrize("name", CONFIGS)
def test_exported_merge_computes_what_the_merged_weights_do(name, suite):
    pools, expected, came = suite
    assert expected[name].isfinite().all()
    torch.testing.assert_close(came[name], expected[name], rtol=1e-4, atol=1e-4)
    base = outputs(
        name,
        getattr(transformers, pools[name].base.config["architectures"][0])
        .from_pretrained(pools[name].base.path)
        .eval(),
    )
    assert not torch.allclose(base, expected[name], atol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_all_singular_vectors_of_one_expert_are_the_expert(name, suite):
    pool = suite[0][name]
    built = Builder(pool).build(merge("tsv", ["a"], {"lambda": 1.0}))
    for tensor in pool.merged:
        torch.testing.assert_close(built.tensor(tensor), pool.experts["a"].tensor(tensor), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_in_one_tensor_are_told_apart(name, suite):
    layout = suite[0][name].layout
    fused = [tensor for tensor in suite[0][name].merged if len(layout.matrices(tensor)) > 1]
    counts = {len(layout.matrices(tensor)) for tensor in fused}
    assert counts == {MIXTURES[name], 2 * MIXTURES[name]}  # down projections; gate and up projections
