"""Parameter space, data-flow space or both: which search finds a better model for a task that no expert solves?

A small version of the comparison in Evolutionary Optimization of Model Merging Recipes (arXiv 2403.13187): two experts of the
`language` zoo, for German and for sums, and sums in German words. Parameter space: DARE-TIES with a weight per expert and third
of the blocks and a drop rate per expert. Data-flow space: the layers of both experts in order, each included or not, without
and with a scale per layer. Both spaces: the layers of the best merge and of the experts.

    python experiments/data_flow.py [--smoke] [--seeds N] [--json] [--out DIR]

An interrupted run resumes with the same command: its studies are kept in `runs/layers/`.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from shared.harness import Findings, Switches, main
from shared.layers import Bed, Comparison, bed

from evomerge.recipe import Recipe

SEEDS = 3
EVALUATIONS = 100
PAPER = (
    "The paper, on MGSM-JA (accuracy; 7B models, one for Japanese and two for mathematics): experts 9.6, 18.4 and 30.0; "
    "TIES 4.4, DARE-TIES 35.2; parameter space 52.0, data-flow space 36.4, both 55.2."
)
STUDIES = Path("runs") / "layers"  # of both experiments on layers, which share evaluations
WEIGHTS = {
    "driver": {"kind": "cma"},
    "recipe": {
        "merge": {
            "method": "dare_ties",
            "inputs": "experts",
            "parameters": {
                "weight": {"float": [0, 1.5], "init": 0.5, "per": ["expert", "block/3"]},
                "drop": {"float": [0, 0.9], "init": 0.3, "per": ["expert"]},
                "reduce": "sum",  # not divided by the sum of the weights, which exceeds 1 in the paper
            },
        }
    },
}


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="data_flow-") as scratch:
        studies = Path(scratch) if switches.smoke else STUDIES
        comparison = Comparison(bed("data_flow", EVALUATIONS, studies, smoke=switches.smoke))
        comparison.references()
        for seed in switches.seeds:
            merged = comparison.search("parameter space", seed, WEIGHTS)
            comparison.search("data-flow space", seed, path(comparison.bed, scaled=False))
            comparison.search("data-flow space, scaled", seed, path(comparison.bed, scaled=True))
            comparison.search("both spaces", seed, path(comparison.bed, merged, scaled=False))
    return comparison.findings(PAPER)


def path(bed: Bed, *first: Recipe, scaled: bool) -> dict[str, Any]:
    """Return the space of paths through the layers of `first`, the skill's expert and the language's expert, in this order."""
    sources = [*(one.data for one in first), {"expert": bed.skill}, {"expert": bed.language}]
    form = {"sources": sources, "include": {"bit": "first", "per": ["slot"]}, "longest": 1.25}
    if scaled:
        form["scale"] = {"float": [0.5, 1.5], "init": 1, "per": ["slot"]}
    return {"driver": {"kind": "cma"}, "recipe": {"stack": {"path": form, "rest": sources[0]}}}


if __name__ == "__main__":
    main("data_flow", __doc__, measure, seeds=SEEDS)
