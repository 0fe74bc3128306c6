"""Are layers, weights, or both the better space to search for a model that does what no expert can do alone?

The comparison of Evolutionary Optimization of Model Merging Recipes (arXiv 2403.13187), small: two experts of the
`language` zoo, for German and for sums, and sums asked in German. In parameter space DARE-TIES with a weight for each expert
and third of the layers, and a share that is dropped of each expert; in data-flow space the layers of both, one after the
other, each taken or not, without and with a scale for each; in both spaces, the layers of the best merge and of the experts.

    python experiments/data_flow.py [--smoke] [--seeds N] [--json] [--out DIR]

A run that was cut short goes on where it was when typed again: its studies are kept under `runs/layers/`.
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
    "The paper, on MGSM-JA (accuracy, 7B models, of which one reads Japanese and two do sums): experts 9.6, 18.4 and 30.0; "
    "TIES 4.4, DARE-TIES 35.2; parameter space 52.0, data-flow space 36.4, both 55.2."
)
STUDIES = Path("runs") / "layers"  # shared by both experiments on layers: what they have in common is judged once
WEIGHTS = {
    "driver": {"kind": "cma"},
    "recipe": {
        "merge": {
            "method": "dare_ties",
            "inputs": "experts",
            "parameters": {
                "weight": {"float": [0, 1.5], "init": 0.5, "per": ["expert", "block/3"]},
                "drop": {"float": [0, 0.9], "init": 0.3, "per": ["expert"]},
                "reduce": "sum",  # not divided by the weights, whose sum the paper found to grow above 1
            },
        }
    },
}


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="data_flow-") as scratch:
        studies = Path(scratch) if switches.smoke else STUDIES
        found = Comparison(bed("data_flow", EVALUATIONS, studies, smoke=switches.smoke))
        found.references()
        for seed in switches.seeds:
            merged = found.search("parameter space", seed, WEIGHTS)
            found.search("data-flow space", seed, path(found.bed, scaled=False))
            found.search("data-flow space, scaled", seed, path(found.bed, scaled=True))
            found.search("both spaces", seed, path(found.bed, merged, scaled=False))
    return found.findings(PAPER)


def path(bed: Bed, *first: Recipe, scaled: bool) -> dict[str, Any]:
    """Return the space of paths through the layers of `first`, the skill's expert and the language's, in this order."""
    sources = [*(one.data for one in first), {"expert": bed.skill}, {"expert": bed.language}]
    form = {"sources": sources, "include": {"bit": "first", "per": ["slot"]}, "longest": 1.25}
    if scaled:
        form["scale"] = {"float": [0.5, 1.5], "init": 1, "per": ["slot"]}
    return {"driver": {"kind": "cma"}, "recipe": {"stack": {"path": form, "rest": sources[0]}}}


if __name__ == "__main__":
    main("data_flow", __doc__, measure, seeds=SEEDS)
