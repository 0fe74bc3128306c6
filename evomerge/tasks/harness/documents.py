"""Documents of the harness's tasks: which of them are examples, and the requests that each makes of a model."""

import copy
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evomerge.errors import nearest
from evomerge.tasks.data import digests, task_error
from evomerge.trial import Split

FEW_SHOT_SEED = 1234
"""That of `lm_eval.simple_evaluate`."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A document of one task of the harness, by its number there."""

    source: "Source"
    number: int

    @property
    def document(self) -> Any:
        """The document, as its task returns it."""
        return self.source.documents[self.number]


class Source:
    """One task of the harness, its documents, and their keys: equal documents have equal keys."""

    def __init__(self, leaf: Any) -> None:
        """Read the documents that the harness would evaluate."""
        self.leaf = leaf
        self.name = str(leaf.task_name)
        self.documents = list(leaf.eval_docs)
        self.keys = digests(self.documents)

    def of_split(self, task: str, split: str) -> "Source":
        """Return the same task on another split of its data set.

        Examples of few-shot prompts from that split are then other documents than the one that is asked about, as the harness
        sees to for its own split. Raises `TaskError` for an unknown split.
        """
        splits = list(getattr(self.leaf, "dataset", None) or ())
        config = self.leaf.config
        if split not in splits or not hasattr(self.leaf, "fewshot_cfg"):
            msg = f"`search_split` is `{split}`, and the data of `{self.name}` have no such split; {nearest(split, splits)}"
            raise task_error(task, msg)
        leaf = copy.copy(self.leaf)
        leaf._config = copy.copy(config)  # noqa: SLF001  # the harness has no public way to copy a task
        leaf.set_config("test_split", split)
        fewshot = self.leaf.fewshot_cfg
        if fewshot.split is None and fewshot.samples is None:
            pool = config.training_split or config.validation_split or config.test_split
            leaf.fewshot_cfg = replace(fewshot, split=pool)
        return Source(leaf)

    def requests(self, numbers: Collection[int], template: Any, options: Mapping[str, Any]) -> dict[int, list[Any]]:
        """Return the harness's requests for the documents with these numbers, with the prompts of its run on all documents.

        The examples of few-shot prompts come from one random sequence, in the order of the documents: the prompts of all
        documents up to the last are made. `template` renders messages as the tokenizer's chat template, or is None.
        """
        leaf, shots = self.leaf, self.leaf.config.num_fewshot or 0
        leaf.set_fewshot_seed(seed=FEW_SHOT_SEED)
        chat = {"apply_chat_template": template is not None, "chat_template": template}
        built = {}
        for number in range(max(numbers, default=-1) + 1):
            if number not in numbers and not shots:
                continue
            document = self.documents[number]
            prompt = leaf.fewshot_context(
                document, num_fewshot=shots, gen_prefix=leaf.doc_to_prefix(document), **chat, **options
            )
            if number in numbers:
                metadata = (leaf.config["task"], number, leaf.config.repeats)
                made = leaf.construct_requests(doc=document, ctx=prompt, metadata=metadata, **chat)
                built[number] = made if isinstance(made, list) else [made]
        return built


def draw(
    task: str,
    sources: Sequence[Source],
    sizes: Mapping[Split, int],
    seed: int,
    search_split: str | None,
    *,
    by_size: bool,
) -> dict[Split, list[Example]]:
    """Return the examples of each split: different documents, in an order that depends on them and on `seed` only.

    `report` takes the first, `final` those after them, `search` the last, or documents of `search_split` that are in neither.
    A group's documents are drawn in proportion to its tasks' sizes, or in equal parts, so that their plain mean is the
    group's score. Raises `TaskError` where there are too few.
    """
    kept: tuple[Split, ...] = ("report", "final")
    asked: tuple[Split, ...] = kept if search_split else ("report", "final", "search")
    orders = _orders(sources, seed, ())
    taken = _take(task, orders, {split: sizes[split] for split in asked if split in sizes}, by_size)
    if search_split:
        used = {example.source.keys[example.number] for split in kept for example in taken.get(split, ())}
        others = _orders([source.of_split(task, search_split) for source in sources], seed, used)
        taken |= _take(task, others, {"search": sizes["search"]}, by_size)
    return {split: taken[split] for split in sizes}


def _orders(sources: Iterable[Source], seed: int, without: Collection[str]) -> list[list[Example]]:
    """Return the different documents of each source in the order in which they are drawn, without those with some keys."""
    seen = set(without)
    orders = []
    for source in sources:
        first = {}
        for number, key in enumerate(source.keys):
            if key not in seen:
                seen.add(key)
                first[hashlib.sha256(f"{seed} {key}".encode()).hexdigest()] = number
        orders.append([Example(source, first[key]) for key in sorted(first)])
    return orders


def _take(
    task: str, orders: Sequence[Sequence[Example]], sizes: Mapping[Split, int], by_size: bool
) -> dict[Split, list[Example]]:
    weights = [len(order) if by_size else 1 for order in orders]
    shares = {split: _shares(size, weights) for split, size in sizes.items()}
    taken: dict[Split, list[Example]] = {split: [] for split in sizes}
    for i, order in enumerate(orders):
        wanted = sum(share[i] for share in shares.values())
        if wanted > len(order):
            where = (
                f" of the split `{order[0].source.leaf.config.test_split}`" if order and "report" not in sizes else ""
            )
            names = " and ".join(f"`{split}: {size}`" for split, size in sizes.items())
            raise task_error(
                task,
                f"{names} take {wanted} documents, and there are {len(order)} different ones{where}; ask for fewer",
            )
        start = 0
        for split, share in shares.items():
            taken[split] += order[len(order) - share[i] :] if split == "search" else order[start : start + share[i]]
            start += share[i]
    return taken


def _shares(size: int, weights: Sequence[int]) -> list[int]:
    """Return whole numbers that sum to `size` in proportion to `weights`, by the largest remainders."""
    exact = [size * weight / max(1, sum(weights)) for weight in weights]
    shares = [int(share) for share in exact]
    most = sorted(range(len(exact)), key=lambda i: shares[i] - exact[i])
    for i in most[: size - sum(shares)]:
        shares[i] += 1
    return shares
