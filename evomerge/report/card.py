"""model_card: the README.md of a merged checkpoint."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import version
from itertools import groupby
from typing import Any

from evomerge import strict_yaml
from evomerge.checkpoints.save import SCALES, STITCHES
from evomerge.checkpoints.vocabulary import Vocabulary
from evomerge.models.folding import TOLERANCE, Folding
from evomerge.recipe import Base, Expert, Recipe, Stack, StackNode
from evomerge.report import family, wording
from evomerge.report.results import Candidate, Results

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_LOAD = """It loads like its base. For a model with a head, use the class that `config.json` names in place of `AutoModel`:

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("path/to/this/folder")
```
"""
_LOAD_SCALED = f"""**Plain transformers loads this folder, but what it then computes is another model**: it ignores `{SCALES}`, the
factors of the residual stream before each layer. This loads the right one; for a model with a head, name its class, such as
`AutoModelForCausalLM`:

```python
from evomerge.models import load_stack

model = load_stack("path/to/this/folder", "AutoModel")
```
"""
_LOAD_STITCHED = f"""**Plain transformers refuses this folder**: between layers of different models it needs the affine maps of the residual stream in
`{STITCHES}`, which are linear layers. This loads it; for a model with a head, name its class, such as `AutoModelForCausalLM`:

```python
from evomerge.models import load_stack

model = load_stack("path/to/this/folder", "AutoModel")
```
"""
_LOAD_ADAPTER = """PEFT loads it onto its base. For a model with a head, use the class that the base's `config.json` names in place of `AutoModel`:

```python
from peft import PeftModel
from transformers import AutoModel

model = PeftModel.from_pretrained(AutoModel.from_pretrained("path/to/base"), "path/to/this/folder")
```
"""


def model_card(
    recipe: Recipe,
    base: str,
    experts: Sequence[str],
    results: Results | None = None,
    candidate: Candidate | None = None,
    folding: Folding | None = None,
    lineage: Mapping[str, Recipe] | None = None,
    like: str | None = None,
    head: str | None = None,
    vocabulary: Vocabulary | None = None,
    stitches: Sequence[int] = (),
) -> str:
    """Return the card of the model of `recipe`: its sources, its scores if they were measured, and the recipe.

    `base` and `experts` are the pool's names. With `results` and one `candidate` of them, the card has its scores on unseen
    examples beside those of the references. `folding` has the result of folding a stack's scales, `lineage` the ancestors of
    a member of a population, `like` the expert whose tokenizer the model has, `head` the model whose head it has, `vocabulary` its
    tokens where the models have tokens of their own, `stitches` the layers of a stack before which its residual stream is mapped. The front matter names the base only if it is `OWNER/NAME`, as on the hub. Names are escaped: they cannot
    become Markdown or HTML.
    """
    front_matter: dict[str, Any] = {"library_name": "transformers", "tags": ["merge", "evomerge"]}
    if _HUB_NAME.fullmatch(base):
        front_matter["base_model"] = [base]
    lineage = lineage or {}
    used = family.used_experts(recipe, lineage)
    unused = [name for name in experts if name not in used]
    sources = ["the base" if base == "base" else f"the base {_plain(base)}"]
    sources += [f"the expert {_plain(name)}" for name in used]
    origin = f"Made by evomerge {version('evomerge')} from {', '.join(sources[:-1])}{' and ' * (len(sources) > 1)}{sources[-1]}."
    if unused:
        origin += f" The pool also held {', '.join(map(_plain, unused))}, which this recipe does not use."
    if recipe.members:
        origin += f" It is made of earlier candidates of its search, {len(family.tree(recipe, lineage))} in all: see `family.png`."
    if like is not None:
        origin += f" Its tokenizer, chat template and generation settings are those of {_plain(like)}."
    if head is not None:
        origin += f" Its head, which is not merged, and its configuration are those of {_plain(head)}."
    if vocabulary is not None:
        origin += (
            f" Rows of embeddings and heads were matched by token. Its vocabulary has {_plain(vocabulary.summary)}."
        )
    parts = [
        f"---\n{strict_yaml.text(front_matter)}---\n",
        f"# A merge on {_plain(base)}\n",
        f"{origin}\n",
        _LOAD_STITCHED if stitches else _LOAD if folding is None or folding.stack is not None else _LOAD_SCALED,
    ]
    if isinstance(recipe.root, StackNode):
        stack = recipe.root.stack
        parts += ["## Layers\n", _layers(stack, base), _scales(stack, folding, stitches), *_stitches(stack, stitches)]
    if results is not None and candidate is not None:
        parts += ["## Scores on unseen examples\n", _scores(results, candidate)]
    again = "`recipe.yaml` beside this file also names the pool: `evomerge merge recipe.yaml -o OUT` makes this model again."
    parts += ["## Recipe\n", f"{again} Recipe id: `{recipe.id}`.\n", _fenced(strict_yaml.text(recipe.data))]
    return "\n".join(parts)


def adapter_card(recipe: Recipe, base: str, lost: float) -> str:
    """Return the card of the adapter that `recipe` makes of the pool's `base`; `lost` is the share of the energy that its rank lacks."""
    front_matter: dict[str, Any] = {"library_name": "peft", "tags": ["lora", "merge", "evomerge"]}
    if _HUB_NAME.fullmatch(base):
        front_matter["base_model"] = [base]
    experts = ", ".join(map(_plain, recipe.experts)) or "earlier candidates of a search"
    parts = [
        f"---\n{strict_yaml.text(front_matter)}---\n",
        f"# A LoRA adapter of {_plain(base)}\n",
        f"Made by evomerge {version('evomerge')} from {experts}. Its factors lack {lost:.2%} of the energy (the sum of the squares of the changes of all matrices).\n",
        _LOAD_ADAPTER,
        "## Recipe\n",
        f"`recipe.yaml` beside this file also names the pool: `evomerge merge recipe.yaml -o OUT` makes the complete model. Recipe id: `{recipe.id}`.\n",
        _fenced(strict_yaml.text(recipe.data)),
    ]
    return "\n".join(parts)


def _layers(stack: Stack, base: str) -> str:
    """Return the layers of a stack in words: their number, and their sources as runs of consecutive layers."""

    def name(recipe: Recipe) -> str:
        match recipe.root:
            case Base():
                return _plain(base)
            case Expert(expert=expert):
                return _plain(expert)
            case _:
                return f"merge `{recipe.id[:8]}`"

    parts = []
    for _, run in groupby(enumerate(stack.slots), lambda pair: (pair[1].source.id, pair[1].layer - pair[0])):
        slots = [slot for _, slot in run]
        parts.append(f"{name(slots[0].source)} {slots[0].layer}" + f"-{slots[-1].layer}" * (len(slots) > 1))
    count = f"{len(stack.slots)} layer{'s' * (len(stack.slots) > 1)}"
    return f"{count}, numbered as in their sources: {', '.join(parts)}. Embeddings, final norm and head are those of {name(stack.rest)}.\n"


def _stitches(stack: Stack, stitches: Sequence[int]) -> list[str]:
    """Return in words where a stack's residual stream is mapped, if it is."""
    if stack.stitch is None or not stitches:
        return []
    end, last = len(stack.slots), "after the last layer"
    where = ", ".join(last if number == end else f"before layer {number}" for number in stitches)
    task, ridge = _plain(stack.stitch.task), f"{stack.stitch.ridge:g}"
    how = f"by least squares on the hidden states of both models on the task {task}, with a ridge of {ridge}"
    return [f"The residual stream is mapped {where} (counted from 0), {how}.\n"]


def _scales(stack: Stack, folding: Folding | None, stitches: Sequence[int]) -> str:
    """Return the scales of a stack's residual stream in words, and where they are stored."""
    scaled = [f"{slot.scale:g} before layer {i}" for i, slot in enumerate(stack.slots) if slot.scale != 1]
    what = f"The residual stream is multiplied by {', '.join(scaled)} (counted from 0)."
    if scaled and stitches:
        return f"{what} These scales are in `{SCALES}`.\n"
    if not scaled or folding is None:
        return "The residual stream is passed on from layer to layer unscaled.\n"
    if folding.stack is None:
        return f"{what} These scales are not in the weights, because {folding.why}.\n"
    return (
        f"{what} These scales are folded into the weights. On random inputs in fp32, this changed the outputs by up to "
        f"{folding.difference:.1e} of the largest (accepted as rounding: {TOLERANCE:.1e}); with the folded weights rounded to "
        f"their storage dtype, by up to {folding.stored:.1e}.\n"
    )


def _scores(results: Results, candidate: Candidate) -> str:
    mean = wording.mean_metric(results)
    rows = [(_plain(name), model) for name, model in results.references.items()]
    rows.append(("**this merge**", candidate))
    head = [
        f"{_plain(o.name)}<br>{_plain(wording.metric(o.report))}{wording.unit(o.report)}" for o in results.objectives
    ]
    lines = [
        f"| model | {' | '.join(head)} | mean<br>{_plain(mean)}{wording.unit(mean)} |",
        "|---" + "|--:" * (len(head) + 1) + "|",
    ]
    for name, model in rows:
        cells = [wording.interval(model.report[o.name], o.report) for o in results.objectives]
        lines.append(f"| {name} | {' | '.join(cells)} | {wording.interval(model.mean, mean)} |")
    sizes = ", ".join(f"{_plain(o.name)} {o.examples[1]}" for o in results.objectives)
    lines.append(f"\nUnseen examples: {sizes}. In brackets: 95% intervals over them, each by itself.\n")
    return "\n".join(lines)


def _plain(name: str) -> str:
    """Return a name escaped for Markdown, on one line, that stays within its cell of a table."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", escape(" ".join(name.split()), quote=False))


def _fenced(text: str) -> str:
    """Return YAML in a fence that is longer than any run of backticks inside."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`+", text))])
    return f"{fence}yaml\n{text}{fence}\n"
