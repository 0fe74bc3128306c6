"""Commands on studies."""

from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.options import (
    AdapterOptions,
    AsAdapter,
    Device,
    Dtype,
    Energy,
    Evaluations,
    Grace,
    Hours,
    Json,
    Mlflow,
    Queue,
    Quiet,
    Rank,
    ShardSize,
    StudyFolder,
    Webhook,
    WorkerHours,
    Workers,
    hide_progress,
)
from evomerge.interrupts import GRACE

app = typer.Typer()
_PANEL = "Search"


@app.command(rich_help_panel=_PANEL, epilog="Example: evomerge demo --out runs/demo")
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="The study's directory.")] = Path("runs/demo"),
    name: Annotated[str, typer.Option("--zoo", help="Which embedded experts: text or digits.")] = "text",
    evaluations: Evaluations = None,
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Build the embedded experts, search, report on unseen examples, and export the picked model."""
    hide_progress(quiet)
    from evomerge.cli import studies

    studies.demo(out, name, evaluations, workers)


@app.command(rich_help_panel=_PANEL, epilog="Example: evomerge run study.yaml -o runs/digits --workers 2")
def run(
    file: Annotated[Path, typer.Argument(help="The study's YAML.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Study directory; by default runs/NAME, by the study's name.")
    ] = None,
    evaluations: Evaluations = None,
    workers: Workers = None,
    queue: Queue = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the search.", min=0)] = None,
    driver: Annotated[str | None, typer.Option(help="KIND of the driver, instead of the file's driver.")] = None,
    hours: Hours = None,
    worker_hours: WorkerHours = None,
    grace: Grace = GRACE,
    webhook: Webhook = None,
    mlflow: Mlflow = None,
    device: Device = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the time of the whole command, and stop.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Search as a study file says. A directory that holds the same study is resumed."""
    hide_progress(quiet)
    from evomerge.cli import studies

    studies.run(
        file,
        out,
        evaluations,
        workers,
        seed,
        driver,
        device,
        hours=hours,
        worker_hours=worker_hours,
        queue=queue,
        grace=grace,
        notify={"webhook": webhook, "mlflow": mlflow},
        dry_run=dry_run,
    )


@app.command(rich_help_panel=_PANEL, epilog="Example: evomerge resume runs/digits --evaluations 200")
def resume(
    folder: StudyFolder,
    evaluations: Evaluations = None,
    workers: Workers = None,
    queue: Queue = None,
    hours: Hours = None,
    worker_hours: WorkerHours = None,
    grace: Grace = GRACE,
    webhook: Webhook = None,
    mlflow: Mlflow = None,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed", help="After the search, evaluate candidates that failed again, for the report alone."
        ),
    ] = False,
    fork: Annotated[
        Path | None,
        typer.Option(help="Start the study's settings anew in this directory, after its code or data have changed."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Resume a study that was interrupted or killed, or extend one by a larger budget."""
    hide_progress(quiet)
    from evomerge.cli import studies

    studies.resume(
        folder,
        evaluations,
        workers,
        hours=hours,
        worker_hours=worker_hours,
        queue=queue,
        grace=grace,
        notify={"webhook": webhook, "mlflow": mlflow},
        retry_failed=retry_failed,
        fork=fork,
    )


@app.command(rich_help_panel=_PANEL, epilog="Example: evomerge control runs/digits")
def control(
    folder: StudyFolder,
    workers: Workers = None,
    queue: Queue = None,
    grace: Grace = GRACE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the time of the control, and stop.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Search again over experts whose task vectors are shuffled, and report what the real experts give beyond them.

    The driver, the seed, the space and the budget are those of the study, whose search must have ended. The control is a study of its
    own in DIR/sham: type the same again after a kill or with a larger study. `controls: {sham: true}` in a study's YAML makes it after
    the search.
    """
    hide_progress(quiet)
    from evomerge.cli import studies

    studies.control(folder, workers, queue, grace=grace, dry_run=dry_run)


@app.command(rich_help_panel=_PANEL, epilog="Example: evomerge worker /shared/queue --idle 3600")
def worker(
    folder: Annotated[
        Path, typer.Argument(help="The queue: DIR of `evomerge run STUDY.yaml --queue DIR`.", show_default=False)
    ],
    idle: Annotated[float, typer.Option(help="Seconds without work after which to end.", min=0)] = 600.0,
    once: Annotated[bool, typer.Option("--once", help="End after one candidate.")] = False,
) -> None:
    """Evaluate candidates of a study's queue, on any machine that sees its folder, until the study is done.

    SIGTERM gives the candidate back. Start as many workers as you like, before or after the study itself.
    """
    from evomerge.cli import serving

    serving.serve(folder, idle, once=once)


@app.command(rich_help_panel=_PANEL, epilog="Example: evomerge show runs/digits --csv candidates.csv")
def show(
    folder: StudyFolder,
    as_json: Json = False,
    csv: Annotated[
        Path | None,
        typer.Option(
            help="Write all candidates with their search scores and genes to this file, CSV or *.parquet, and stop."
        ),
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Report also while a search runs.")] = False,
    final: Annotated[
        bool, typer.Option("--final", help="Judge on the tasks' `final` examples, at the very end. Only prints.")
    ] = False,
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            help="Two tasks, `maths,code`, for a panel of the picture; repeat it for more. By default all pairs of up to four tasks.",
            metavar="TASK,TASK",
        ),
    ] = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Print the front and its references, scored on examples that the search never saw; write report.html, front.csv and figures.

    While another process searches or reports the study, this prints the search's own scores of the front, and scores nothing.
    """
    hide_progress(quiet)
    from evomerge.cli import studies

    studies.show(folder, as_json=as_json, csv=csv, report=report, final=final, pairs=pairs or (), device=device)


@app.command(rich_help_panel=_PANEL, epilog="Example: evomerge pick runs/digits --weights maths=2,code=1 -o merged")
def pick(
    folder: StudyFolder,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the merged checkpoint here.")] = None,
    weights: Annotated[str | None, typer.Option(help="Importance of objectives: `maths=2,code=1`.")] = None,
    floors: Annotated[str | None, typer.Option(help="At least this much: `maths=0.8`.")] = None,
    best: Annotated[str | None, typer.Option(help="With floors: the objective to be best in.")] = None,
    wish: Annotated[str | None, typer.Option(help="Nearest to these scores: `maths=0.8,code=0.6`.")] = None,
    tchebycheff: Annotated[
        str | None, typer.Option(help="Importance of objectives: the largest weighted gap to their bests is smallest.")
    ] = None,
    knee: Annotated[
        bool, typer.Option("--knee", help="The point where giving up more of one objective gains least of another.")
    ] = False,
    candidate: Annotated[
        int | None, typer.Option(help="The candidate of this number, as `#107` in tables and figures.", min=0)
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Choose among the search's candidates even where a reference is picked.")
    ] = False,
    from_surface: Annotated[
        bool, typer.Option("--surface", help="Choose among all merges that surrogates predict, not only the front.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="With --surface: evaluate the merge, and compare with its prediction.")
    ] = False,
    as_adapter: AsAdapter = False,
    rank: Rank = None,
    energy: Energy = None,
    dtype: Dtype = None,
    shard_size: ShardSize = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="In a study whose heads are not merged: write one checkpoint, with this expert's head. Default: a folder for each."
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Choose one model, and write it as a checkpoint: a point of the front or a reference, whichever fits the preference best.

    Models are chosen by estimates from the search examples, of the reported metric where the search measured it, else of the
    searched one; unseen examples only judge them. Without a preference the best mean is picked, and a reference unless a candidate of
    the search is likely enough to be better. With --surface, preferences are in units of the searched metric, which the surrogates of
    drivers such as `front` and `map` predict.
    """
    hide_progress(quiet)
    from evomerge.cli import studies

    adapter = AdapterOptions.read(rank, energy, wanted=as_adapter)
    preference = studies.read_preference(weights, floors, best, wish, tchebycheff, knee=knee)
    studies.pick(
        folder,
        out,
        preference,
        dtype,
        shard_size,
        candidate=candidate,
        anyway=anyway,
        from_surface=from_surface,
        verify=verify,
        adapter=adapter,
        head=head,
    )


@app.command(rich_help_panel=_PANEL, epilog="Example: evomerge compare runs/digits runs/other --json")
def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN...", help="Study directories with the same tasks.", show_default=False),
    ],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare runs with the first one: the means of their picks and the hypervolumes of their fronts, on unseen examples."""
    hide_progress(quiet)
    from evomerge.cli import scores

    scores.compare(folders, as_json=as_json)


@app.command(
    rich_help_panel=_PANEL, epilog="Example: evomerge bench --zoo digits --methods task_arithmetic,ties --budget 20"
)
def bench(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[BENCH.yaml]", help="The bench's YAML. Default: an embedded zoo.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The bench's directory; by default runs/NAME, by the bench's name."),
    ] = None,
    zoo: Annotated[
        str | None, typer.Option("--zoo", help="Instead of a file: embedded experts, by default text.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods to compare, `ties,tsv`. Default: all that read no data.")
    ] = None,
    budget: Annotated[
        int | None, typer.Option(help="Evaluations of the search of each method; 0 searches none.", min=0)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the rows, evaluations and time, and stop.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare all merge methods on one pool: with their papers' defaults and searched at an equal budget, on unseen examples.

    Scores are shares of those of each task's own expert, beside the base, the experts and the plain average, with what held-out tasks
    lose and what each costs. Type the same again after a kill: rows that are done are kept.
    """
    hide_progress(quiet)
    from evomerge.cli import benches

    benches.bench(file, out, zoo, methods, budget, dry_run=dry_run, as_json=as_json)


@app.command(rich_help_panel=_PANEL, epilog="Example: evomerge trust runs/from-a-colleague")
def trust(folder: StudyFolder) -> None:
    """Agree to run the code that a study from elsewhere names, having read it. Prints its files, and runs nothing."""
    from evomerge.cli import folders

    folders.trust_code(folder)


@app.command(rich_help_panel=_PANEL, epilog="Example: evomerge repair runs/digits")
def repair(folder: StudyFolder) -> None:
    """Cut a study's damaged journals before the first line that is not valid. The whole files are kept beside them."""
    from evomerge.cli import folders

    folders.repair(folder)
