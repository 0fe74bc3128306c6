"""Subjects of statistics: tiny models in memory, and tasks for them."""

import json

from evomerge import tasks
from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.layout import Layout
from evomerge.models import LiveModel
from evomerge.statistics import Subject

TEXTS = ["a cat", "the dog sat there", "to be", "or not to be, that is", "x = 2 + 40"]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def text_task(folder, kind):
    """Return a task of five texts of different lengths."""
    columns = {
        "language_modelling": [{"text": text} for text in TEXTS],
        "generation": [{"prompt": text, "answer": str(i)} for i, text in enumerate(TEXTS)],
        "classification": [{"text": text, "label": i % 3} for i, text in enumerate(TEXTS)],
        "multiple_choice": [
            {"prompt": text, "choices": ["yes", "perhaps not", "no"], "answer": i % 3} for i, text in enumerate(TEXTS)
        ],
    }
    keys = {"classification": {"input": "text", "label": "label"}, "language_modelling": {"text": "text"}}
    settings = {
        "kind": kind,
        "search": jsonl(folder / "search.jsonl", columns[kind]),
        "report": jsonl(folder / "report.jsonl", [{**columns[kind][0], **_other(kind)}]),
        **keys.get(kind, {}),
    }
    return tasks.make("maths", settings, folder)


def _other(kind):
    return {"text" if kind in ("language_modelling", "classification") else "prompt": "unseen"}


def image_task(folder):
    rows = [
        {"image": [[[(3 * i + j + k) % 5 / 4 for j in range(4)] for k in range(4)]], "label": i % 3} for i in range(5)
    ]
    report = [{"image": [[[0.5] * 4] * 4], "label": 0}]
    paths = {"search": jsonl(folder / "s.jsonl", rows), "report": jsonl(folder / "r.jsonl", report)}
    return tasks.make("maths", {"kind": "classification", "input": "image", "label": "label", **paths}, folder)


def subject_of(folder, task, examples=None, names=None, live=None):
    """Return a subject of the checkpoint in `folder`."""
    stored = Folder(folder)
    layout = Layout(stored.info, stored.config)
    floating = {name: entry for name, entry in stored.info.items() if entry.dtype.is_floating_point}
    matrices = {matrix.name: matrix for name in floating for matrix in layout.matrices(name)}
    kept = {name: matrix for name, matrix in matrices.items() if names is None or name in names}
    shapes = {name: entry.shape for name, entry in floating.items()}
    chosen = range(task.size("search")) if examples is None else examples
    return Subject(live or LiveModel(folder), task, list(chosen), kept, shapes, "seed")
