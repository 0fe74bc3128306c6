"""Commands on studies: demo, run, resume, show, pick."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evomerge import placement, search, strict_yaml, zoo
from evomerge.checkpoints import hub
from evomerge.checkpoints.save import check_free
from evomerge.cli.adapters import write_adapter
from evomerge.cli.console import new_console, say
from evomerge.cli.controls import crew, search_control
from evomerge.cli.exchanges import write_table
from evomerge.cli.listings import build_zoo
from evomerge.cli.merges import export_recipe, say_what_lies_beside, storage
from evomerge.cli.options import AdapterOptions
from evomerge.cli.price import price, shuffling
from evomerge.cli.searches import print_results, search_and_report, warn, write_report
from evomerge.cli.statistics import say_price
from evomerge.control import settings as control_of
from evomerge.errors import StudyError, nearest
from evomerge.history import common_failure
from evomerge.models.pretrained import load_model
from evomerge.parts import Parts, open_parts
from evomerge.progress import Progress, step_printer
from evomerge.recipe import Recipe
from evomerge.report import choose, figures, measure, surface, tables, wording
from evomerge.report.results import Candidate, Results
from evomerge.search import KINDS
from evomerge.settings import QueueSettings, StudySettings
from evomerge.study import Study

_PER_GENE = 10
"""Search examples per gene below which a study is warned of. A rule of thumb: as for coefficients of a regression."""
Addresses = Mapping[str, str | None]
"""What notices are sent to, by the key of `notify`; None for what the study file says."""
_DEMO: dict[str, dict[str, Any]] = {
    "text": {
        "space": "task_arithmetic_per_tensor",
        "driver": {"kind": "front", "slopes": True},
        "evaluations": 120,
        "report": {"front": 16},
    },
    "digits": {"space": "task_arithmetic_per_block", "evaluations": 300},
}


def demo(out: Path, name: str, evaluations: int | None, workers: int | None) -> None:
    """Build a zoo, search, report, export the picked model, and load it with transformers."""
    console = new_console()
    if name not in _DEMO:
        raise StudyError(f"no demo for the zoo `{name}`; {nearest(name, _DEMO)}")
    build_zoo(name, 0)
    precision = str(zoo.fast_precision()).removeprefix("torch.")
    data = {"name": f"demo-{name}", "pool": {"zoo": name}, "precision": precision}
    settings = StudySettings.parse(data | _DEMO[name], "demo", Path.cwd())
    settings = _override(settings, evaluations, workers or min(os.cpu_count() or 1, 4))
    study = Study.create(out, settings, step_printer(console))
    _describe(study.parts, settings, console)
    results = search_and_report(study, console)
    if results is None:
        return
    merged = out / f"merged-{results.picked[:8]}"
    if not merged.exists():
        _export(study, Recipe.parse(results.pick.recipe), merged, console, results, results.pick)
    loaded = type(load_model(merged, study.parts.setup.auto or "AutoModel")).__name__
    say(console, f"merged checkpoint: {merged} (transformers loads it: {loaded})")
    say(console, f"report: {out / 'report.html'}, front: {out / 'front.png'}")


def run(
    file: Path,
    out: Path | None,
    evaluations: int | None,
    workers: int | None,
    seed: int | None,
    driver: str | None,
    device: str | None = None,
    *,
    hours: float | None = None,
    worker_hours: float | None = None,
    queue: Path | None = None,
    grace: float,
    notify: Addresses,
    dry_run: bool,
) -> None:
    """Run or resume the study of a file, or only say what it would cost."""
    console = new_console()
    if driver is not None and driver not in KINDS:
        raise StudyError(f"--driver `{driver}`: no such kind of driver; expected one of {', '.join(sorted(KINDS))}")
    settings = _override(
        StudySettings.read(file), evaluations, workers, seed, hours, worker_hours, device, queue, notify
    )
    if driver is not None:
        settings = settings.model_copy(update={"driver": {"kind": driver}})
    if dry_run:
        if hub.missing(settings.models.values(), step_printer(console)):
            return
        parts = open_parts(settings, step_printer(console))
        why = ""
        if not settings.evaluations:
            number, why = search.budget(parts.new_driver(settings.seed), parts.space)
            settings = settings.model_copy(update={"evaluations": number})
        _describe(parts, settings, console, why)
        if parts.evidence is not None and parts.evidence.left:
            say_price(parts.evidence, console)
            say(console, f"after `evomerge statistics {file}`, which collects them, --dry-run prices the search too")
            return
        price(parts, settings, console)
        return
    study = Study.create(out or Path("runs") / settings.name, settings, step_printer(console))
    _describe(study.parts, study.settings, console)
    _search(study, console, grace=grace)


def _search(study: Study, console: Console, *, grace: float, retry_failed: bool = False) -> None:
    """Search and report, and then search the control that the study asks for."""
    results = search_and_report(study, console, grace=grace, retry_failed=retry_failed)
    if results is not None and study.settings.controls.sham:
        search_control(study, control_of(study), console, grace=grace)


def control(folder: Path, workers: int | None, queue: Path | None, *, grace: float, dry_run: bool) -> None:
    """Search over shuffled experts, beside the study in a folder, or only say what it would cost."""
    console = new_console()
    study = Study.open(folder, progress=step_printer(console))
    asked = _override(control_of(study), None, workers, queue=queue)
    if dry_run:
        say(console, shuffling(study.parts))
        price(open_parts(asked, step_printer(console)), asked, console)
        return
    search_control(study, asked, console, grace=grace)


def resume(
    folder: Path,
    evaluations: int | None,
    workers: int | None,
    *,
    hours: float | None = None,
    worker_hours: float | None = None,
    queue: Path | None = None,
    grace: float,
    notify: Addresses,
    retry_failed: bool,
    fork: Path | None = None,
) -> None:
    """Resume the study in a folder, or start its settings anew in the folder `fork`."""
    console = new_console()
    if fork is not None:
        study = Study.fork(folder, fork, step_printer(console))
        say(console, f"{fork}: a new study with the settings of {folder}; all candidates are evaluated anew")
        folder = fork
    else:
        study = Study.open(folder, progress=step_printer(console))
    settings = _override(
        study.settings, evaluations, workers, hours=hours, worker_hours=worker_hours, queue=queue, notify=notify
    )
    if settings != study.settings:
        study = Study.open(folder, settings)
    _search(study, console, grace=grace, retry_failed=retry_failed)


def show(
    folder: Path,
    *,
    as_json: bool,
    csv: Path | None,
    report: bool,
    final: bool,
    pairs: Sequence[str] = (),
    device: str | None = None,
) -> None:
    """Report on the study in a folder, look at one that another process has locked, or write its candidates as CSV.

    What the report needs is scored on `device`, by default the study's.
    """
    console = Console(stderr=True) if as_json else new_console()
    study = Study.open(folder)
    if device is not None:
        study.parts = study.parts.on(device)
    panels = [[name.strip() for name in pair.split(",")] for pair in pairs]
    figures.check_pairs(panels, list(study.parts.tasks))
    if csv is not None:
        write_table(study.trials(), csv)
        say(console, f"candidates: {csv}")
        return
    holder = None if report or final else study.holder() or study.holder("report.lock")
    if holder is not None:
        _look(study, holder, console, as_json=as_json)
        return
    if final:
        with Progress("report", 1, console) as progress:
            results = measure.measure(study, watch=progress, split="final")
    else:
        results = write_report(study, console, pairs=panels)
    if as_json:
        sys.stdout.write(json.dumps(results.public(), indent=2, sort_keys=True) + "\n")
    else:
        print_results(results, study.folder, console)


def read_preference(
    weights: str | None, floors: str | None, best: str | None, wish: str | None, tchebycheff: str | None, *, knee: bool
) -> choose.Preference:
    """Return the preference that the options of `pick` spell. Raises `StudyError`."""
    return choose.Preference(_pairs(weights), _pairs(floors), best, _pairs(wish), _pairs(tchebycheff), knee)


def pick(
    folder: Path,
    out: Path | None,
    preference: choose.Preference,
    dtype: str | None = None,
    shard_size: str | None = None,
    *,
    candidate: int | None,
    anyway: bool,
    from_surface: bool,
    verify: bool,
    adapter: AdapterOptions | None = None,
    head: str | None = None,
) -> None:
    """Choose a point of a study's front or surface, or the candidate of a number, and export it to `out` if given."""
    console = new_console()
    if adapter is not None and out is None:
        raise StudyError("pick: `--as-adapter` goes with `-o`, the folder to write")
    if candidate is not None and (preference.is_set or from_surface):
        raise StudyError("pick: `--candidate` names one candidate; leave out the preference and `--surface`")
    if verify and not from_surface:
        raise StudyError("pick: `--verify` goes with `--surface`; points of the front are evaluated already")
    stored = storage(dtype, shard_size, adapter)
    study = Study.open(folder)
    if from_surface:
        if out is not None:
            check_free(out)
        evaluated = study.population()
        prediction = surface.ask(study, evaluated, surface.read(study, evaluated), preference)
        verified = None
        if verify:
            with Progress("verify", 2, console) as progress:
                verified = measure.verify(study, prediction.recipe, watch=progress)
        for part in tables.prediction(prediction, study.parts.tasks, verified):
            console.print(part)
        recipe, point = prediction.recipe, None if verified is None else verified.candidate
        results = None if point is None or out is None else write_report(study, console)
    else:
        if candidate is None:
            results = write_report(study, console)
            point = choose.choose(results, preference, anyway=anyway)
        else:  # the study's own report stays as it is
            with Progress("report", 1, console) as progress:
                results = measure.measure(study, watch=progress, also=(candidate,))
            point = next(one for one in results.front if one.name == f"#{candidate}")
        console.print(tables.point(results, point))
        for line in tables.reasons(results, point, default=candidate is None and not preference.is_set):
            console.print(line, markup=False)
        recipe = Recipe.parse(point.recipe)
    if out is None:
        console.print(strict_yaml.text(recipe.data), end="", markup=False, soft_wrap=True)
        return
    if adapter is not None:
        write_adapter(recipe, study.parts.pool, out, adapter, console, study.lineage() if recipe.members else {})
        return
    _export(study, recipe, out, console, results, point, head=head, **stored)
    say(console, f"merged checkpoint: {out}")


def _override(
    settings: StudySettings,
    evaluations: int | None,
    workers: int | None,
    seed: int | None = None,
    hours: float | None = None,
    worker_hours: float | None = None,
    device: str | None = None,
    queue: Path | None = None,
    notify: Addresses | None = None,
) -> StudySettings:
    options: dict[str, Any] = {"evaluations": evaluations, "workers": workers, "seed": seed}
    options |= {"hours": hours, "worker_hours": worker_hours, "device": device}
    addresses = {key: url for key, url in (notify or {}).items() if url is not None}
    if addresses:
        options["notify"] = ({} if settings.notify is None else settings.notify.model_dump()) | addresses
    if queue is not None:
        if workers is not None:
            raise StudyError("`--queue` goes without `--workers`: its workers are started by `evomerge worker DIR`")
        before = settings.workers.model_dump() if isinstance(settings.workers, QueueSettings) else {}
        options["workers"] = before | {"queue": str(queue.resolve())}
    return settings.with_options({key: value for key, value in options.items() if value is not None})


def _describe(parts: Parts, settings: StudySettings, console: Console, why: str = "") -> None:
    """Print what a study is; `why` says where its budget comes from, unless it was typed."""
    for note in parts.pool.notes:
        say(console, f"note: {note}")
    say_what_lies_beside(parts.pool, console, "`like: EXPERT` under `pool`")
    genes, layout = parts.space.genes, parts.pool.layout
    examples = sum(parts.sizes["search"].values())
    driver = parts.new_driver(settings.seed)
    slopes = search.climbs(driver)
    rows = {
        "pool": f"{', '.join(parts.pool.experts)} on {parts.pool.base.path.name}: {parts.pool.parameters:,} parameters, "
        f"{layout.blocks} blocks",
        "space": f"{len(genes)} genes ({genes[0].name} … {genes[-1].name}); {parts.space.about}",
        "tasks": "; ".join(
            f"{name}: {task.search_metric} on {task.size('search')}, reported {task.report_metric} on {task.size('report')} unseen"
            for name, task in parts.tasks.items()
        ),
        "examples": f"{examples} to search, {examples / len(genes):.0f} per gene",
        "driver": f"{parts.driver['kind']}: {driver}",
        "device": _device(parts, settings),
        "budget": f"{settings.evaluations} evaluations{f' by default: {why}' * bool(why)}{', one with slopes counts as three' * slopes}, {crew(settings)}, seed {settings.seed}",
    }
    table = Table(box=None, show_header=False)
    for key, value in rows.items():
        table.add_row(key, escape(value))
    console.print(table)
    if examples < _PER_GENE * len(genes) and not slopes:
        say(
            console,
            f"warning: {len(genes)} genes meet {examples} search examples, fewer than {_PER_GENE} per gene: much of what the search "
            "finds will be their noise. Give the tasks more search examples, or tile the holes more coarsely, such as `per: [expert]`.",
        )
    if unshrunk := search.unshrunk(parts.driver, driver, parts.space, examples):
        say(console, f"warning: {unshrunk}")


def _device(parts: Parts, settings: StudySettings) -> str:
    """Return in words where candidates run, and, of a study on the CPU, what accelerator there is beside it."""
    device = parts.setup.device
    words = f"{placement.described(device)}, {parts.setup.precision}"
    if device.startswith("cuda") and settings.processes > 1:
        words += f", {settings.gpus:g} GPUs for each worker"
    name, kind = next(iter(placement.available().items()))[::-1]
    return (
        words if device != "cpu" or kind == "cpu" else f"{words}; there is {kind} ({name}): `device: {kind}` runs there"
    )


def _look(study: Study, holder: str, console: Console, *, as_json: bool) -> None:
    """Print the front of a study that the process `holder` has locked, by the scores that the search has."""
    population, front = study.population(), study.front()
    failed, common = sum(evaluation.error is not None for _, evaluation in population), common_failure(population)
    if as_json:
        data = {"in_use_by": holder, "evaluations": len(population), "failed": failed, "common_failure": common}
        sys.stdout.write(json.dumps({**data, "front": json.loads(front.to_json(orient="records"))}, indent=2) + "\n")
        return
    done = f"{len(population)} of {study.settings.evaluations} evaluations, {failed} failed"
    say(console, f"{study.folder}: in use by {holder}; {done}. On the search examples, which choose the front:")
    table = Table("candidate", *map(wording.objective, study.parts.searched), box=None)
    for row in front.to_dict("records"):
        table.add_row(f"#{row['number']}", *(wording.value(row[name], name) for name in study.parts.searched))
    console.print(table)
    warn(wording.failures(failed, len(population), common), console)
    say(
        console,
        f"Nothing was scored for this. A report on unseen examples now: `evomerge show {study.folder} --report`",
    )


def _export(
    study: Study,
    recipe: Recipe,
    out: Path,
    console: Console,
    results: Results | None,
    point: Candidate | None,
    **stored: Any,
) -> None:
    lineage = study.lineage() if recipe.members else {}
    export_recipe(recipe, study.parts.pool, out, console, lineage=lineage, results=results, candidate=point, **stored)


def _pairs(text: str | None) -> dict[str, float] | None:
    """Return `maths=2,code=1` as a mapping."""
    pairs = {}
    for part in text.split(",") if text is not None else ():
        name, _, number = part.partition("=")
        try:
            pairs[name.strip()] = float(number)
        except ValueError:
            raise StudyError(f"{part!r}: expected OBJECTIVE=NUMBER, such as `maths=0.8`") from None
    return pairs or None
