"""model_card: the README.md of a merged checkpoint, for the hub and for whoever finds the folder in a year."""

from collections.abc import Sequence
from importlib.metadata import version

from evomerge import strict_yaml
from evomerge.recipe import Recipe
from evomerge.report import wording
from evomerge.report.results import Candidate, Results


def model_card(
    recipe: Recipe,
    base: str,
    experts: Sequence[str],
    results: Results | None = None,
    candidate: Candidate | None = None,
) -> str:
    """Return the card of the model that `recipe` makes of the pool: the recipe, and what was measured if it was.

    `base` is the base's name and `experts` the pool's; with `results` and a `candidate` of them, its scores on unseen
    examples stand beside those of the references.
    """
    front_matter = {"library_name": "transformers", "tags": ["merge", "evomerge"], "base_model": [base]}
    used = ", ".join(f"`{name}`" for name in recipe.experts) or "none"
    parts = [
        f"---\n{strict_yaml.text(front_matter)}---\n",
        f"# A merge on {base}\n",
        f"Merged by evomerge {version('evomerge')} from the base `{base}` and the experts {used}"
        + (
            f", of a pool of {', '.join(f'`{name}`' for name in experts)}.\n"
            if set(experts) != set(recipe.experts)
            else ".\n"
        ),
        "It loads like any other checkpoint of its base: `AutoModel.from_pretrained(folder)`, or the class that its "
        "`config.json` names. No remote code.\n",
        "## Recipe\n",
        f"`recipe.yaml` beside this file holds it with the pool's paths; `evomerge merge recipe.yaml -o OUT` makes the same "
        f"bytes again. Id `{recipe.id}`.\n",
        f"```yaml\n{strict_yaml.text(recipe.data)}```\n",
    ]
    if results is not None and candidate is not None:
        parts += ["## Scores on unseen examples\n", _scores(results, candidate)]
    return "\n".join(parts)


def _scores(results: Results, candidate: Candidate) -> str:
    mean = wording.mean_metric(results)
    shown = [*results.references.values(), candidate]
    names = [*results.references, "**this merge**"]
    head = [f"{o.name} ({wording.metric(o.report)})" for o in results.objectives]
    lines = [f"| model | {' | '.join(head)} | mean |", "|---" * (len(head) + 2) + "|"]
    for name, model in zip(names, shown, strict=True):
        cells = [wording.interval(model.report[o.name], o.report) for o in results.objectives]
        lines.append(f"| {name} | {' | '.join(cells)} | {wording.interval(model.mean, mean)} |")
    sizes = ", ".join(f"{o.name} {o.examples[1]}" for o in results.objectives)
    lines.append(f"\nExamples: {sizes}. In brackets: 95% bootstrap intervals over examples.\n")
    return "\n".join(lines)
