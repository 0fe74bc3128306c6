"""The zoo's examples on disk: one JSONL file per split of a task."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SPLITS = ("train", "search", "report")


def write_rows(folder: Path, task: str, split: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write `rows` to `tasks/TASK/SPLIT.jsonl` under a zoo's `folder`; return the path relative to it."""
    path = Path("tasks", task, f"{split}.jsonl")
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    with (folder / path).open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path.as_posix()
