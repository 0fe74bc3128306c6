"""Does a search find better layers to swap than the hand that Layer Swapping describes?

Layer Swapping (arXiv 2410.01335), small: two experts of the `language` zoo, for German and for sums, and sums asked in
German. By hand, the paper's share of layers at the bottom and at the top come from the language's expert and the rest from
the skill's; searched are how many these are, and, layer by layer, from whom each comes.

    python experiments/layer_swapping.py [--smoke] [--seeds N] [--json] [--out DIR]

A run that was cut short goes on where it was when typed again: its studies are kept under `runs/layers/`.
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
PAPER = "The paper: 10 % more of MGSM than the experts and their averages, on average over four languages, by hand."
STUDIES = Path("runs") / "layers"  # shared by both experiments on layers: what they have in common is judged once
BOTTOM, TOP, TRANSITION, OF = 5, 2, 1, 32  # the paper's numbers of layers, for a model of 32


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="layer_swapping-") as scratch:
        studies = Path(scratch) if switches.smoke else STUDIES
        found = Comparison(bed("layer_swapping", EVALUATIONS, studies, smoke=switches.smoke))
        pair = [found.bed.skill, found.bed.language]  # the method's first input is swapped into
        depth = Layout(Folder(found.bed.pool["base"]).info).blocks
        by_hand = {
            "bottom": max(1, round(BOTTOM * depth / OF)),
            "top": max(1, round(TOP * depth / OF)),
            "transition": min(TRANSITION, max(0, depth // 4 - 1)),
        }
        found.references()
        found.take("swap by hand", [recipe.merge("layer_swap", pair, by_hand)])
        for seed in switches.seeds:
            found.search("swap, blocks searched", seed, blocks(pair, depth))
            found.search("swap, layers searched", seed, layers(pair))
    return found.findings(PAPER)


def blocks(pair: list[str], depth: int) -> dict[str, Any]:
    """Return the space of how many layers at the bottom and at the top are swapped, and of whose the embeddings are."""
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
    """Return the space of whose each layer is."""
    options = [{"expert": name} for name in pair]
    return {
        "driver": {"kind": "cma"},
        "recipe": {"stack": {"swap": {"source": {"choice": options, "per": ["layer"]}}, "rest": {"expert": pair[0]}}},
    }


if __name__ == "__main__":
    main("layer_swapping", __doc__, measure, seeds=SEEDS)
