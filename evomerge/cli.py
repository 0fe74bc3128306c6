"""The command line: demo, run, resume, show, pick, merge, compress, decompress, spaces, zoo.

Every error that a user can mend is one message on standard error and exit code 2. What was interrupted ends with 130, and
says how to go on.
"""

import json
import math
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evomerge import codecs, merging, space, strict_yaml, tasks, zoo
from evomerge.build import Builder
from evomerge.checkpoints.members import ancestors
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.save import check_free, save
from evomerge.errors import EvomergeError, RecipeError, StudyError, nearest
from evomerge.models import LiveModel
from evomerge.progress import Progress, Throttled, step_printer
from evomerge.recipe import Recipe, expand_inputs, short_forms
from evomerge.recipe import base as base_recipe
from evomerge.report import choose, export, figures, html, measure, population, surface, surface_figures, tables
from evomerge.report.results import Candidate, Results
from evomerge.report.wording import covered, duration
from evomerge.search import Population
from evomerge.settings import Parts, StudySettings, open_parts
from evomerge.study import Study
from evomerge.tasks import Task
from evomerge.trial import Evaluation, Proposal

app = typer.Typer(
    help="Search for the recipe by which fine-tuned models that share a base merge into one, or into a whole front.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
zoo_app = typer.Typer(help="The embedded experts: real models and data, built on this machine.", no_args_is_help=True)
app.add_typer(zoo_app, name="zoo")

_DEMO: dict[str, dict[str, Any]] = {
    "text": {
        "space": "task_arithmetic_per_block",
        "driver": {"kind": "nsga2", "population": 16},
        "evaluations": 120,
        "report": {"front": 16},
    },
    "digits": {"space": "task_arithmetic_per_block", "evaluations": 300},
}

Out = Annotated[Path, typer.Option("-o", "--out", help="Folder to write; it must not exist, or be empty.")]
Workers = Annotated[int | None, typer.Option(help="Worker processes. More give the same search, sooner.", min=1)]
Evaluations = Annotated[int | None, typer.Option(help="How many candidates to evaluate in all.", min=1)]


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 110, highlight=False)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Where the study goes.")] = Path("runs/demo"),
    name: Annotated[str, typer.Option("--zoo", help="Which embedded experts: text or digits.")] = "text",
    evaluations: Evaluations = None,
    workers: Workers = None,
) -> None:
    """Build the embedded experts, search, report on unseen examples, and export the picked merge."""
    console = _console()
    if name not in _DEMO:
        msg = f"no demo for the zoo `{name}`; {nearest(name, _DEMO)}"
        raise StudyError(msg)
    _build_zoo(name, 0, console)
    precision = str(zoo.fast_precision()).removeprefix("torch.")
    data = {"name": f"demo-{name}", "pool": {"zoo": name}, "precision": precision, **_DEMO[name]}
    settings = StudySettings.parse(data, "demo", Path.cwd())
    settings = _override(settings, evaluations, workers or min(os.cpu_count() or 1, 4), None)
    study = Study.create(out, settings, step_printer(console))
    _describe(study.parts, settings, console)
    results = _search_and_report(study, console)
    merged = out / f"merged-{results.picked[:8]}"
    if not merged.exists():
        point = next(point for point in results.front if point.recipe_id == results.picked)
        _export_point(study, results, point, merged, console)
    loaded = _load(study.parts, merged)
    console.print(f"merged checkpoint: {merged} (transformers loads it: {loaded})")
    console.print(f"report: {out / 'report.html'}, front: {out / 'front.png'}")


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="The study's YAML.", show_default=False)],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The study's directory [runs/NAME].")] = None,
    evaluations: Evaluations = None,
    workers: Workers = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the search.", min=0)] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would happen, evaluate one candidate to see its cost, and stop.")
    ] = False,
) -> None:
    """Search as a study file says. A directory that holds the same study is gone on with."""
    console = _console()
    settings = _override(StudySettings.read(file), evaluations, workers, seed)
    if dry_run:
        parts = open_parts(settings, step_printer(console))
        _describe(parts, settings, console)
        _price(parts, settings, console)
        return
    study = Study.create(out or Path("runs") / settings.name, settings, step_printer(console))
    _describe(study.parts, settings, console)
    _search_and_report(study, console)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="The study's directory.", show_default=False)],
    evaluations: Evaluations = None,
    workers: Workers = None,
) -> None:
    """Go on with a study that was stopped, killed, or deserves a larger budget."""
    console = _console()
    study = Study.open(folder, progress=step_printer(console))
    if evaluations is not None or workers is not None:
        study = Study.open(folder, _override(study.settings, evaluations, workers, None))
    _search_and_report(study, console)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="The study's directory.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Print the front with its references, scored on examples that the search never saw; draw it; write report.html."""
    console = Console(stderr=True) if as_json else _console()
    study = Study.open(folder)
    results = _report(study, console)
    if as_json:
        sys.stdout.write(json.dumps(results.public(), indent=2, sort_keys=True) + "\n")
    else:
        _print(results, study.folder, console)


@app.command()
def pick(
    folder: Annotated[Path, typer.Argument(help="The study's directory.", show_default=False)],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the merged checkpoint here.")] = None,
    weights: Annotated[str | None, typer.Option(help="Importance of objectives: `maths=2,code=1`.")] = None,
    floors: Annotated[str | None, typer.Option(help="At least this much: `maths=0.8`.")] = None,
    best: Annotated[str | None, typer.Option(help="With floors: the objective to be best in.")] = None,
    wish: Annotated[str | None, typer.Option(help="Nearest to these scores: `maths=0.8,code=0.6`.")] = None,
    tchebycheff: Annotated[
        str | None,
        typer.Option(
            help="Importance of objectives, `maths=2,code=1`, by the augmented weighted Tchebycheff distance to the ideal: "
            "the worst weighted gap to each objective's best is smallest."
        ),
    ] = None,
    knee: Annotated[
        bool, typer.Option("--knee", help="The point where giving up more of one gains least of another.")
    ] = False,
    from_surface: Annotated[
        bool,
        typer.Option(
            "--surface",
            help="Choose among all merges that the search's surrogates predict (drivers `front`, `map`, …), not only among those measured.",
        ),
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="With --surface: evaluate the merge, and compare with its prediction.")
    ] = False,
) -> None:
    """Choose one point of the front, and write it as a checkpoint. Without a preference: the best mean.

    Points are chosen by their scores on the search examples, and judged by those on unseen ones. Weights, Tchebycheff and
    the knee compare the searched metric; floors and wishes are in units of the reported one, or with --surface in those
    of the searched one, which is what is predicted.
    """
    console = _console()
    preference = choose.Preference(
        weights=_pairs(weights),
        floors=_pairs(floors),
        best=best,
        wish=_pairs(wish),
        tchebycheff=_pairs(tchebycheff),
        knee=knee,
    )
    if verify and not from_surface:
        msg = "pick: `--verify` goes with `--surface`; points of the front have been measured"
        raise StudyError(msg)
    study = Study.open(folder)
    if from_surface:
        _pick_from_surface(study, preference, out, console, verify=verify)
        return
    results = _report(study, console)
    point = choose.choose(study, results, preference)
    console.print(tables.point(results, point))
    recipe = Recipe.parse(point.recipe)
    if out is None:
        console.print(strict_yaml.text(recipe.data), end="", markup=False)
        return
    _export_point(study, results, point, out, console)
    console.print(f"merged checkpoint: {out}")


@app.command()
def merge(
    file: Annotated[Path, typer.Argument(help="YAML with `recipe`, and `pool` unless given here.", show_default=False)],
    out: Out,
    name: Annotated[str | None, typer.Option("--zoo", help="Take the pool from an embedded zoo.")] = None,
    base: Annotated[Path | None, typer.Option(help="The base's checkpoint folder.")] = None,
    expert: Annotated[
        list[str] | None, typer.Option(help="An expert: NAME=FOLDER. May be given more than once.")
    ] = None,
    shard_mib: Annotated[int, typer.Option(help="Largest output file, in MiB.", min=1)] = 2048,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would be written.")] = False,
) -> None:
    """Make one merged checkpoint from a recipe. Streams: a merge may be larger than memory."""
    console = _console()
    if not file.is_file():
        msg = f"{file}: no such recipe file"
        raise RecipeError(msg)
    data = strict_yaml.read(file)
    if not isinstance(data, dict) or "recipe" not in data:
        data = {"recipe": data}
    for key in data:
        if key not in ("pool", "recipe", "members", "about"):
            msg = f"{file}: unknown key `{key}`; {nearest(str(key), ('pool', 'recipe', 'members', 'about'))}"
            raise RecipeError(msg)
    pool = _pool(data.get("pool"), file, name, base, expert or [], console)
    spelled = short_forms.spell_out(expand_inputs(data["recipe"], list(pool.experts)), pool.layout.blocks)
    recipe = Recipe.parse(spelled, experts=list(pool.experts))
    lineage = _lineage(data.get("members", {}), file)
    for made in (recipe, *(own for _, own in ancestors(recipe, lineage))):
        merging.check(made)
    like = pool.base if recipe.members else Builder(pool).build(recipe)  # to build a member is to build its ancestors
    info = like.info.values()
    size = sum(entry.nbytes for entry in info) / 2**30
    numbers = sum(entry.numel for entry in info)
    layers = f"{len(recipe.prefix_digests)} layers, " if recipe.prefix_digests else ""
    console.print(f"recipe {recipe.id[:12]}: {layers}{len(info)} tensors, {numbers:,} numbers, {size:.2f} GiB")
    if dry_run:
        console.print(f"would write {out}")
        return
    _export(recipe, pool, out, console, lineage=lineage, shard_bytes=shard_mib << 20)
    console.print(f"merged checkpoint: {out}")


def _lineage(data: Any, file: Path) -> dict[str, Recipe]:
    """Return the recipes of earlier candidates in a recipe file. Raises `RecipeError` for one that is not whose it says."""
    if not isinstance(data, dict):
        msg = f"{file} `members`: expected a mapping from ids to recipes, got {data!r}"
        raise RecipeError(msg)
    lineage = {base_recipe().id: base_recipe()}
    for identity, own in data.items():
        lineage[identity] = Recipe.parse(own)
        if lineage[identity].id != identity:
            msg = f"{file} `members`: the recipe under `{identity[:12]}…` has the id `{lineage[identity].id[:12]}…`; it was changed"
            raise RecipeError(msg)
    return lineage


@app.command()
def compress(
    out: Out,
    file: Annotated[
        Path | None, typer.Argument(help="A study, whose tasks then score what is lost; or any YAML with `pool`.")
    ] = None,
    name: Annotated[str | None, typer.Option("--zoo", help="Take pool and tasks from an embedded zoo.")] = None,
    base: Annotated[Path | None, typer.Option(help="The base's checkpoint folder.")] = None,
    expert: Annotated[
        list[str] | None, typer.Option(help="An expert: NAME=FOLDER. May be given more than once.")
    ] = None,
    codec: Annotated[str, typer.Option(help="tall, emr, low_rank or singular.")] = "tall",
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "-p", "--parameter", help="NAME=VALUE, such as `lambda=0.3`, or `lambda.maths=0.3` for one expert."
        ),
    ] = None,
) -> None:
    """Keep all experts of a pool in one small artefact, from which `evomerge decompress` makes each again.

    Where tasks are known, the λ of TALL masks is chosen for each expert on the search examples, unless it is given, and
    the retention is what the decoded expert scores on unseen examples, as a share of what the expert does.
    """
    console = _console()
    made = codecs.make(codec, _parameters(parameter or []))
    check_free(out)
    pool, judged, live = _pool_and_tasks(file, name, base, expert or [], console)
    done = codecs.compress(
        pool, made, out, judged, live() if judged else None, lambda what, total: Progress(what, total, console)
    )
    artefact = done.artefact
    for what, numbers in artefact.constants.items():
        pairs = zip(artefact.experts, numbers, strict=True)
        console.print(f"{what}: {', '.join(f'{key} {number:.4g}' for key, number in pairs)}", markup=False)
    for what, numbers in done.figures.items():
        console.print(f"{what}: {min(numbers):.4g} to {max(numbers):.4g} over {len(numbers)} tensors")
    console.print(
        f"bytes: {done.expert_bytes:,} of {len(pool.experts)} experts, {artefact.nbytes:,} of the artefact: "
        f"ratio {artefact.nbytes / done.expert_bytes:.4f}, by the formula {artefact.formula / done.expert_bytes:.4f}"
    )
    console.print(_losses(done.losses))
    console.print(
        f"artefact: {out}, `evomerge decompress {out} EXPERT -o FOLDER` writes an expert back",
        markup=False,
        soft_wrap=True,
    )


@app.command()
def decompress(
    folder: Annotated[Path, typer.Argument(help="The artefact that `compress` wrote.", show_default=False)],
    expert: Annotated[str, typer.Argument(help="Which of its experts.", show_default=False)],
    out: Out,
) -> None:
    """Write one expert of an artefact as a checkpoint, with the base's configuration and tokenizer."""
    console = _console()
    artefact = codecs.Artefact(folder)
    decoded = artefact.decode(expert)
    with Progress("decompress", sum(entry.nbytes for entry in decoded.info.values()), console) as progress:
        save(decoded, out, like=artefact.base.path, progress=progress)
    console.print(f"checkpoint of `{expert}`: {out}", markup=False)


@app.command()
def spaces(
    name: Annotated[str | None, typer.Argument(help="Print this one's YAML.", show_default=False)] = None,
    from_method: Annotated[
        str | None, typer.Option("--from-method", help="Print a space of all parameters of a merge method.")
    ] = None,
) -> None:
    """List the search spaces that come with evomerge, and the merge methods; or print a space to start your own from."""
    console = _console()
    known = space.shipped()
    if from_method is not None:
        console.print(space.from_method(from_method), end="", markup=False, soft_wrap=True)
        return
    if name is not None:
        if name not in known:
            msg = f"no search space `{name}`; {nearest(name, known)}"
            raise StudyError(msg)
        console.print(known[name].read_text(encoding="utf-8"), end="", markup=False, soft_wrap=True)
        return
    table = Table("space", "what it searches", box=None)
    for key, entry in known.items():
        table.add_row(key, strict_yaml.parse(entry.read_text(encoding="utf-8"), key)["about"])
    console.print(table)
    methods = Table("method", "what it merges by", box=None)
    for key, method in merging.METHODS.items():
        methods.add_row(key, escape(method.about))
    console.print()
    console.print(methods)
    console.print(
        "\nevomerge spaces NAME prints a space, evomerge spaces --from-method METHOD makes one of a method's parameters; "
        "`space:` in a study takes a name, a file, or the space itself."
    )


@zoo_app.command("list")
def zoo_list() -> None:
    """List the embedded zoos, and whether they are built."""
    console = _console()
    table = Table("zoo", "built", "where", "what it is", box=None)
    for name in zoo.names():
        try:
            found = zoo.load(name)
            table.add_row(name, "yes", str(found.folder), found.about)
        except EvomergeError:
            table.add_row(name, "no", f"evomerge zoo build {name}", "")
    console.print(table)


@zoo_app.command("build")
def zoo_build(
    name: Annotated[str, typer.Argument(help="text, digits or language.", show_default=False)],
    seed: Annotated[int, typer.Option(help="Another seed makes other experts.", min=0)] = 0,
    text: Annotated[Path | None, typer.Option(help="For `language`: a folder of German plain text.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Build it even if it is there.")] = False,
) -> None:
    """Build a zoo from what installed packages ship; it is kept in the cache folder."""
    _build_zoo(name, seed, _console(), text=text, again=again)


# -- pieces ------------------------------------------------------------------------------------------------------------


def _build_zoo(name: str, seed: int, console: Console, *, text: Path | None = None, again: bool = False) -> None:
    with Progress(f"zoo {name}", 100, console) as progress:

        def tell(done: float, doing: str) -> None:
            progress(round(100 * done), note=doing)

        make = zoo.build if again else zoo.find_or_build
        built = make(name, seed=seed, text=text, progress=tell)
    console.print(f"zoo {name}: {built.folder}")


def _override(settings: StudySettings, evaluations: int | None, workers: int | None, seed: int | None) -> StudySettings:
    given = {"evaluations": evaluations, "workers": workers, "seed": seed}
    return settings.model_copy(update={key: value for key, value in given.items() if value is not None})


def _describe(parts: Parts, settings: StudySettings, console: Console) -> None:
    for note in parts.pool.notes:
        console.print(f"note: {note}")
    genes = parts.space.genes
    layout = parts.pool.layout
    rows = {
        "pool": f"{', '.join(parts.pool.experts)} on {parts.pool.base.path.name}: {parts.pool.parameters:,} numbers, "
        f"{layout.blocks} blocks",
        "space": f"{len(genes)} genes ({genes[0].name} … {genes[-1].name}); {parts.space.about}",
        "tasks": "; ".join(
            f"{name}: {task.search_metric} on {task.size('search')}, reported {task.report_metric} on {task.size('report')} unseen"
            for name, task in parts.tasks.items()
        ),
        "driver": f"{parts.driver['kind']}: {parts.new_driver(settings.seed)}",
        "budget": f"{settings.evaluations} evaluations, {settings.workers} workers, seed {settings.seed}",
    }
    table = Table(box=None, show_header=False)
    for key, value in rows.items():
        table.add_row(key, escape(value))
    console.print(table)


def _price(parts: Parts, settings: StudySettings, console: Console) -> None:
    """Evaluate the space's initial recipe once, and say what the whole search would cost."""
    from evomerge.evaluate import Worker

    worker = Worker(parts.setup)
    recipe = parts.initial
    worker.evaluate(recipe, "search")  # the first one also reads the model and the data
    evaluation = worker.evaluate(recipe, "search")
    if evaluation.error is not None:
        msg = f"the space's initial recipe cannot be evaluated: {evaluation.error}"
        raise StudyError(msg)
    each = sum(evaluation.seconds.values())
    split = ", ".join(f"{kind} {duration(seconds)}" for kind, seconds in evaluation.seconds.items())
    console.print(f"one evaluation: {duration(each)} ({split})")
    whole = each * settings.evaluations / settings.workers
    console.print(f"the search: about {duration(whole)} with {settings.workers} workers; nothing was written")


def _search_and_report(study: Study, console: Console) -> Results:
    total = study.settings.evaluations
    best = -math.inf
    covering = Throttled(lambda: _covering(study))
    with study.evaluator() as evaluator, Progress("search", total, console) as progress:

        def watch(proposal: Proposal, evaluation: Evaluation) -> None:
            nonlocal best
            if (whole := evaluator.lookup(proposal.recipe.id, proposal.split)) is not None:
                best = max(best, float(whole.means(study.parts.searched).mean()))
            note = f"failed: {evaluation.error}" if evaluation.error else f"best mean {best:.4g}" * (best > -math.inf)
            progress(min(int(study.spent), total), note=note + covering(now=study.spent >= total))

        study.run(evaluator, watch)
        results = _report(study, console, evaluator)
    _print(results, study.folder, console)
    return results


def _covering(study: Study) -> str:
    """Return how well the population that a study searches with covers the examples by now, to be put behind a comma."""
    found = study.driver.diagnostics() if isinstance(study.driver, Population) else {}
    return f", {covered(found['coverage'], found.get('entropy'))}" if found else ""


def _report(study: Study, console: Console, evaluator: Any = None) -> Results:
    with Progress("report", 1, console) as progress:
        results = measure.measure(study, evaluator, progress)
    measure.write(results, study.folder)
    figures.front(results, study.folder / "front.png")
    figures.hypervolume(results, study.folder / "hypervolume.png")
    population.write(results, study.folder)
    surface_figures.write(results, study.folder)
    html.write(results, study.folder)
    return results


def _print(results: Results, folder: Path, console: Console) -> None:
    for part in tables.summary(results):
        console.print(part)
    for sentence in tables.sentences(results):
        console.print(sentence, markup=False)
    console.print(f"digest {results.digest}")
    console.print(f"more: {folder / 'report.html'}, `evomerge pick {folder} --weights … -o OUT`")


def _pick_from_surface(
    study: Study, preference: choose.Preference, out: Path | None, console: Console, *, verify: bool
) -> None:
    if out is not None:
        check_free(out)
    evaluated = study.population()
    found = surface.ask(study, evaluated, surface.read(study, evaluated), preference)
    verified = None
    if verify:
        with Progress("verify", 2, console) as progress:
            verified = measure.verify(study, found.recipe, watch=progress)
    for part in tables.prediction(found, study.parts.tasks, verified):
        console.print(part)
    if out is None:
        console.print(strict_yaml.text(found.recipe.data), end="", markup=False)
        return
    if verified is None:
        _export(found.recipe, study.parts.pool, out, console)
    else:
        _export_point(study, _report(study, console), verified.candidate, out, console)
    console.print(f"merged checkpoint: {out}")


def _export_point(study: Study, results: Results, point: Candidate, out: Path, console: Console) -> None:
    recipe = Recipe.parse(point.recipe)
    lineage = study.lineage() if recipe.members else {}
    _export(recipe, study.parts.pool, out, console, lineage=lineage, results=results, candidate=point)


def _export(recipe: Recipe, pool: Pool, out: Path, console: Console, **more: Any) -> None:
    with Progress("merge", pool.nbytes, console) as progress:
        export.export(recipe, pool, out, progress=progress, **more)


def _load(parts: Parts, folder: Path) -> str:
    """Load a checkpoint the ordinary way, and say as what."""
    from evomerge.models.pretrained import load_model

    return type(load_model(folder, parts.setup.auto or "AutoModel")).__name__


def _pairs(text: str | None) -> dict[str, float] | None:
    if text is None:
        return None
    found = {}
    for part in text.split(","):
        name, equals, number = part.partition("=")
        try:
            found[name.strip()] = float(number)
        except ValueError:
            equals = ""
        if not equals:
            msg = f"{part!r}: expected OBJECTIVE=NUMBER, such as `maths=0.8`"
            raise StudyError(msg)
    return found


def _pool(given: Any, file: Path, name: str | None, base: Path | None, experts: list[str], console: Console) -> Pool:
    if name is not None:
        found = zoo.load(name)
        return Pool(found.pool["base"], found.pool["experts"], progress=step_printer(console))
    if base is not None or experts:
        pairs = [entry.partition("=") for entry in experts]
        if base is None or not all(equals for _, equals, _ in pairs):
            msg = "a pool is `--base FOLDER --expert NAME=FOLDER [--expert NAME=FOLDER …]`"
            raise RecipeError(msg)
        return Pool(base, {key: path for key, _, path in pairs}, progress=step_printer(console))
    if not isinstance(given, dict) or set(given) != {"base", "experts"} or not isinstance(given["experts"], dict):
        msg = f"{file}: no pool; write `pool: {{base: FOLDER, experts: {{NAME: FOLDER}}}}` into it, or give --zoo, or --base and --expert"
        raise RecipeError(msg)
    folder = file.parent
    return Pool(
        folder / given["base"],
        {key: folder / path for key, path in given["experts"].items()},
        progress=step_printer(console),
    )


def _pool_and_tasks(
    file: Path | None, name: str | None, base: Path | None, experts: list[str], console: Console
) -> tuple[Pool, Mapping[str, Task], Callable[[], LiveModel]]:
    """Return what was named: the pool, the tasks that come with it, and what makes the model that they score."""
    if file is None and name is None and base is None and not experts:
        msg = "which experts? give a study or a YAML with `pool`, or --zoo NAME, or --base FOLDER --expert NAME=FOLDER"
        raise RecipeError(msg)
    if file is not None and not file.is_file():
        msg = f"{file}: no such file; expected a study, or YAML with `pool`"
        raise RecipeError(msg)
    data = {} if file is None else strict_yaml.read(file)
    elsewhere = name is not None or base is not None or bool(experts)
    if file is not None and not elsewhere and isinstance(data, dict) and "space" in data:
        parts = open_parts(StudySettings.read(file), step_printer(console))
        setup = parts.setup
        return (
            parts.pool,
            parts.tasks,
            lambda: LiveModel(parts.pool.base.path, setup.auto, setup.precision, module=setup.module),
        )
    listed = data.get("pool") if isinstance(data, dict) else None
    pool = _pool(listed, file or Path(), name, base, experts, console)
    found = {} if name is None else zoo.load(name).tasks
    made = {key: tasks.make(key, entry, Path()) for key, entry in found.items()}
    return pool, made, lambda: LiveModel(pool.base.path)


def _parameters(given: list[str]) -> dict[str, Any]:
    """Return `NAME=VALUE` pairs as data; `NAME.EXPERT=VALUE` goes into a mapping by expert."""
    found: dict[str, Any] = {}
    for entry in given:
        key, equals, text = entry.partition("=")
        if not equals:
            msg = f"{entry!r}: expected NAME=VALUE, such as `lambda=0.3`"
            raise RecipeError(msg)
        what, dot, expert = key.partition(".")
        value = strict_yaml.parse(text, f"--parameter {key}")
        inner = found.setdefault(what, {}) if dot else found
        if not isinstance(inner, dict) or (expert if dot else what) in inner:
            msg = f"--parameter `{what}` is given twice; give one value, or one for each expert"
            raise RecipeError(msg)
        inner[expert if dot else what] = value
    return found


def _losses(losses: Sequence[codecs.Loss]) -> Table:
    """Return the table of what each expert lost."""
    scored = ("task", "expert scores", "decoded", "retention") if any(loss.scores for loss in losses) else ()
    table = Table("expert", "relative error", "cosine", *scored, box=None)
    for loss in losses:
        first = [escape(loss.expert), f"{loss.fidelity.error:.4g}", f"{loss.fidelity.cosine:.6f}"]
        if not loss.scores:
            table.add_row(*first)
        for task, (before, after) in loss.scores.items():
            retention = f"{after / before:.2%}" if before > 0 else "-"
            table.add_row(*first, escape(task), f"{before:.4f}", f"{after:.4f}", retention)
            first = ["", "", ""]
    return table


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is like Ctrl-C: what is done is safe
    try:
        app(standalone_mode=False)
    except EvomergeError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"evomerge: {error}", markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print("evomerge: stopped; nothing finished is lost: `evomerge resume DIR` goes on")
        sys.exit(130)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        if error.__class__.__module__.startswith(("click", "typer")):  # usage errors of the command line itself
            error.show()  # type: ignore[attr-defined]  # a usage error shows itself
            sys.exit(2)
        raise


if __name__ == "__main__":
    main()
