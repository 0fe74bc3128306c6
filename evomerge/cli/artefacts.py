"""Commands that keep a pool's experts in one small artefact, and restore them from it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evomerge import codecs, placement, strict_yaml, tasks, zoo
from evomerge.checkpoints.cast import cast, with_dtype
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.save import check_free, save
from evomerge.cli.console import new_console, say
from evomerge.cli.merges import PoolOptions, open_pool, storage
from evomerge.errors import RecipeError
from evomerge.evaluate.setup import open_model
from evomerge.models import LiveModel
from evomerge.parts import open_parts
from evomerge.progress import Progress, step_printer
from evomerge.settings import StudySettings
from evomerge.tasks import Task


def compress(
    out: Path, file: Path | None, options: PoolOptions, codec: str, parameters: Sequence[str], device: str | None = None
) -> None:
    """Write a pool as an artefact, and print sizes and losses; models are scored on `device`, by default the study's."""
    console = new_console()
    chosen = codecs.make(codec, _read_parameters(parameters))
    check_free(out)
    pool, judged, model = _open_pool_and_tasks(file, options, console, device)
    compression = codecs.compress(pool, chosen, out, judged, model, lambda what, total: Progress(what, total, console))
    artefact = compression.artefact
    for name, values in artefact.constants.items():
        pairs = zip(artefact.experts, values, strict=True)
        console.print(f"{name}: {', '.join(f'{key} {value:.4g}' for key, value in pairs)}", markup=False)
    for name, values in compression.figures.items():
        say(console, f"{name}: {min(values):.4g} to {max(values):.4g} over {len(values)} tensors")
    size = compression.expert_bytes
    console.print(
        f"bytes: {size:,} of {len(pool.experts)} experts, {artefact.nbytes:,} of the artefact: "
        f"ratio {artefact.nbytes / size:.4f}, by the formula {artefact.formula / size:.4f}"
    )
    console.print(_loss_table(compression.losses))
    hint = f"`evomerge decompress {out} EXPERT -o FOLDER` writes an expert back"
    say(console, f"artefact: {out}, {hint}")


def decompress(folder: Path, expert: str, out: Path, dtype: str | None, shard_size: str | None) -> None:
    """Write one expert of an artefact as a checkpoint."""
    stored = storage(dtype, shard_size)
    console = new_console()
    artefact = codecs.Artefact(folder)
    decoded = cast(artefact.decode(expert), stored.pop("dtype"))
    config = with_dtype(artefact.base.config, decoded, artefact.base)
    extra = (
        {}
        if config is artefact.base.config
        else {"config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n"}
    )
    with Progress("decompress", sum(entry.nbytes for entry in decoded.info.values()), console) as progress:
        save(decoded, out, like=artefact.base.path, extra=extra, progress=progress, **stored)
    console.print(f"checkpoint of `{expert}`: {out}", markup=False)


def _open_pool_and_tasks(
    file: Path | None, options: PoolOptions, console: Console, device: str | None
) -> tuple[Pool, Mapping[str, Task], LiveModel | None]:
    """Return the pool, the tasks that come with it, and the model that they score, None without tasks."""
    if file is None and not options.named:
        msg = "which experts? give a study or a YAML with `pool`, or --zoo NAME, or --base FOLDER --expert NAME=FOLDER"
        raise RecipeError(msg)
    if file is not None and not file.is_file():
        raise RecipeError(f"{file}: no such file; expected a study, or YAML with `pool`")
    data = {} if file is None else strict_yaml.read(file)
    if file is not None and not options.named and isinstance(data, dict) and "space" in data:
        parts = open_parts(StudySettings.read(file), step_printer(console))
        model = open_model(parts.setup, parts.pool, placement.find(device or parts.setup.device))
        return parts.pool, parts.tasks, model
    listed = data.get("pool") if isinstance(data, dict) else None
    pool = open_pool(listed, file or Path(), options, console)
    settings = {} if options.zoo is None else zoo.load(options.zoo).tasks
    judged = {name: tasks.make(name, entry, Path()) for name, entry in settings.items()}
    return pool, judged, LiveModel(pool.open_base(), device=placement.find(device or "cpu")) if judged else None


def _read_parameters(options: Sequence[str]) -> dict[str, Any]:
    """Return `NAME=VALUE` options as a mapping; `NAME.EXPERT=VALUE` goes into a mapping by expert."""
    parameters: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise RecipeError(f"{option!r}: expected NAME=VALUE, such as `lambda=0.3`")
        name, dot, expert = key.partition(".")
        values = parameters.setdefault(name, {}) if dot else parameters
        if not isinstance(values, dict) or (expert if dot else name) in values:
            raise RecipeError(f"--parameter `{name}` is given twice; give one value, or one for each expert")
        values[expert if dot else name] = strict_yaml.parse(text, f"--parameter {key}")
    return parameters


def _loss_table(losses: Sequence[codecs.Loss]) -> Table:
    scored = ("task", "expert scores", "decoded", "retention") if any(loss.scores for loss in losses) else ()
    table = Table("expert", "relative error", "cosine", *scored, box=None)
    for loss in losses:
        cells = [escape(loss.expert), f"{loss.fidelity.error:.4g}", f"{loss.fidelity.cosine:.6f}"]
        if not loss.scores:
            table.add_row(*cells)
        for task, (before, after) in loss.scores.items():
            retention = f"{after / before:.2%}" if before > 0 else "-"
            table.add_row(*cells, escape(task), f"{before:.4f}", f"{after:.4f}", retention)
            cells = ["", "", ""]
    return table
