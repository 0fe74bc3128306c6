"""Does a search find better layers to swap than the fixed choice of Layer Swapping?

A small version of Layer Swapping (arXiv 2410.01335): two experts of the `language` zoo, for German and for sums, and sums in
German words. The fixed choice takes the paper's shares of layers at the bottom and at the top from the language's expert and
the others from the skill's expert. The searches choose these numbers of layers, or the source of each layer.

    python experiments/layer_swapping.py [--smoke] [--seeds N] [--json] [--out DIR]

An interrupted run resumes with the same command: its studies are kept in `runs/layers/`.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from shared.harness import Findings, Switches, main
from shared.layers import Comparison, bed

from evomerge import recipe
from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.layout import Layout

SEEDS = 3
EVALUATIONS = 100
PAPER = "The paper: 10 % more on MGSM than the experts and their averages, mean of four languages, with a fixed choice."
STUDIES = Path("runs") / "layers"  # of both experiments on layers, which share evaluations
BOTTOM, TOP, TRANSITION, OF = 5, 2, 1, 32  # numbers of layers in the paper, for a model of 32


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="layer_swapping-") as scratch:
        studies = Path(scratch) if switches.smoke else STUDIES
        comparison = Comparison(bed("layer_swapping", EVALUATIONS, studies, smoke=switches.smoke))
        pair = [comparison.bed.skill, comparison.bed.language]  # layers of the second replace those of the first
        depth = Layout(Folder(comparison.bed.pool["base"]).info).blocks
        fixed = {
            "bottom": max(1, round(BOTTOM * depth / OF)),
            "top": max(1, round(TOP * depth / OF)),
            "transition": min(TRANSITION, max(0, depth // 4 - 1)),
        }
        comparison.references()
        comparison.take("swap by hand", [recipe.merge("layer_swap", pair, fixed)])
        for seed in switches.seeds:
            comparison.search("swap, blocks searched", seed, blocks(pair, depth))
            comparison.search("swap, layers searched", seed, layers(pair))
    return comparison.findings(PAPER)


def blocks(pair: list[str], depth: int) -> dict[str, Any]:
    """Return the space of the numbers of swapped layers at the bottom and top, and of the source of the embeddings."""
    return {
        "driver": {"kind": "cma"},
        "recipe": {
            "merge": {
                "method": "layer_swap",
                "inputs": pair,
                "parameters": {
                    "bottom": {"int": [0, depth // 2], "init": depth // 6},
                    "top": {"int": [0, depth // 2], "init": depth // 12},
                    "transition": {"int": [0, 2], "init": 0},
                    "outside": {"choice": ["second", "first"]},
                },
            }
        },
    }


def layers(pair: list[str]) -> dict[str, Any]:
    """Return the space of the source of each layer."""
    options = [{"expert": name} for name in pair]
    return {
        "driver": {"kind": "cma"},
        "recipe": {"stack": {"swap": {"source": {"choice": options, "per": ["layer"]}}, "rest": {"expert": pair[0]}}},
    }


if __name__ == "__main__":
    main("layer_swapping", __doc__, measure, seeds=SEEDS)
