"""Commands on statistics and the cache that they are in: statistics, cache list, cache prune; and those that one merge reads."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evomerge import cache, files, strict_yaml, tasks, zoo
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.save import parse_size
from evomerge.cli.console import new_console, say
from evomerge.cli.scores import setup_of
from evomerge.errors import RecipeError, StudyError, nearest
from evomerge.evidence import Evidence
from evomerge.parts import open_parts
from evomerge.progress import duration, gib, step_printer
from evomerge.recipe import Recipe, describe
from evomerge.report.score import read_tasks
from evomerge.settings import StudySettings
from evomerge.statistics import STATISTICS, Collected, EvidenceSettings, store
from evomerge.study import Study


def statistics(what: Path, kinds: Sequence[str], *, dry_run: bool) -> None:
    """Collect the statistics that a study's space reads, or those of some `kinds`."""
    console = new_console()
    for kind in kinds:
        name, _, task = kind.partition("@")
        if task and name in STATISTICS:
            raise StudyError(
                f"--kind `{kind}`: `{name}` on a task is collected where a recipe reads it; leave out `--kind`, or type `--kind {name}` for each "
                "expert on the task of its evidence"
            )
        if kind not in STATISTICS:
            raise StudyError(f"--kind `{kind}`: no such statistic; {nearest(kind, STATISTICS)}")
    if (what / "study.json").exists():
        study = Study.open(what)
        parts, settings = study.parts, study.settings
    else:
        settings = StudySettings.read(what)
        parts = open_parts(settings, step_printer(console))
    wanted = tuple(kinds) or parts.space.needs
    if not wanted:
        known = ", ".join(STATISTICS)
        raise StudyError(f"{what}: its search space reads no statistics; name some, by `--kind KIND`: {known}")
    recipes = () if kinds else parts.space.examples
    evidence = Evidence(parts.pool, parts.setup, parts.tasks, settings.pool.evidence, wanted, recipes, searched=True)
    if dry_run:
        say_price(evidence, console)
        return
    evidence.collect(console)
    table = Table("statistic", "expert", "task", "examples", "size", "without", box=None)
    silent: list[str] = []
    for entry in evidence.entries:
        names = store.read_index(entry.folder)["silent"]
        size = gib(sum(file.stat().st_size for file in entry.folder.iterdir()))
        cells = (entry.kind, entry.index["expert"], entry.task, str(len(entry.examples)), size, str(len(names)))
        table.add_row(*map(escape, cells))
        silent = silent or names
    console.print(table)
    if silent:
        shown = ", ".join(f"`{name}`" for name in silent[:4]) + f" and {len(silent) - 4} more" * (len(silent) > 4)
        say(console, f"`without`: tensors of which the statistic says nothing, such as {shown}; merges take their mean")


def say_price(evidence: Evidence, console: Console) -> None:
    """Print what collecting statistics will cost."""
    done = len(evidence.entries) - len(evidence.left)
    for kind, price in evidence.price().items():
        number = sum(entry.kind == kind for entry in evidence.left)
        say(
            console,
            f"statistic {kind} of {number} experts: about {duration(price.seconds)}, {gib(price.nbytes)} in {files.cache()}",
        )
    if done:
        say(console, f"{done} of {len(evidence.entries)} statistics are in the cache")


def attach(
    pool: Pool,
    kinds: Sequence[str],
    data: Mapping[str, Any],
    file: Path,
    given: Path | None,
    zoo_name: str | None,
    console: Console,
    recipes: Sequence[Recipe] = (),
    *,
    dry_run: bool,
) -> None:
    """Give a pool the statistics that `recipes` read: of the evidence in a file, of a zoo's tasks, or those that the recipe records."""
    recorded = data.get("statistics")
    if given is None and isinstance(data.get("evidence"), str):
        given = file.parent / data["evidence"]
    if given is None and zoo_name is None:
        if isinstance(recorded, dict):
            folders = {
                kind: {name: str(store.place(str(key))) for name, key in keys.items()}
                for kind, keys in recorded.items()
            }
            pool.evidence = Collected(folders)
        return
    fields = read_tasks(given) if given is not None else {"tasks": zoo.load(str(zoo_name)).tasks, "folder": "."}
    setup = setup_of(pool, **fields)
    judged = {name: tasks.make(name, entry, Path(setup.folder)) for name, entry in setup.tasks.items()}
    evidence = Evidence(pool, setup, judged, {} if given is None else _read_evidence(given), kinds, recipes)
    if isinstance(recorded, dict):
        for kind, keys in recorded.items():
            for name, key in keys.items():
                if evidence.digests.get(kind, {}).get(name) != key:
                    msg = f"{file} `statistics`: records other statistics `{kind}` of `{name}` than {given or zoo_name} gives; give the evidence that the recipe was made with, or remove `statistics` from the file"
                    raise RecipeError(msg)
    if dry_run:
        say_price(evidence, console)
    else:
        evidence.collect(console)


def _read_evidence(file: Path) -> dict[str, EvidenceSettings]:
    """Return the evidence in a study file, or under `evidence` in any other YAML. Raises `RecipeError`."""
    data = strict_yaml.read(file)
    if "space" in data:
        return StudySettings.read(file).pool.evidence
    listed = data.get("evidence", {})
    if not isinstance(listed, dict):
        raise RecipeError(f"{file} `evidence`: expected a mapping such as {{maths: {{task: maths}}}}, got {listed!r}")
    try:
        return {name: EvidenceSettings.model_validate(entry) for name, entry in listed.items()}
    except ValidationError as error:
        raise RecipeError(describe(error, f"{file} `evidence`", {"": tuple(EvidenceSettings.model_fields)})) from None


def list_cache() -> None:
    """Print what is in the cache and can be made again."""
    console = new_console()
    entries = cache.entries()
    table = Table("what", "entries", "size", box=None)
    for what, count in Counter(entry.what for entry in entries).items():
        table.add_row(what, f"{count:,}", gib(sum(entry.nbytes for entry in entries if entry.what == what)))
    console.print(table)
    for entry in entries:
        if entry.what == "statistics":
            about = store.read_index(entry.path) if store.is_complete(entry.path) else None
            words = (
                "not finished"
                if about is None
                else f"{about['kind']} of {about['expert']}, {about['number']} examples of {about['task']}"
            )
            say(console, f"{entry.path.name[:12]}  {gib(entry.nbytes)}  {words}")
    say(console, f"cache: {files.cache()}")


def prune_cache(keep: str) -> None:
    """Remove the least recently used entries until `keep` bytes are left."""
    console = new_console()
    limit = 0 if keep.strip() == "0" else parse_size(keep)
    removed = cache.prune(limit, fresh=0.0)
    left = sum(entry.nbytes for entry in cache.entries())
    say(console, f"removed {len(removed)} entries, {gib(sum(entry.nbytes for entry in removed))}; {gib(left)} are left")
