"""The commands: their arguments, options and help texts. What they do is in the modules that they import."""

import time
from pathlib import Path
from typing import Annotated

import typer

STARTED = time.monotonic()
app = typer.Typer(
    help="Search for the recipe by which fine-tuned models that share a base merge into one, or into a whole front.",
    epilog="Exit codes: 0 done, 2 an error you can fix (the message says what to type), 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
zoo_app = typer.Typer(help="The embedded experts: real models and data, built on this machine.", no_args_is_help=True)
app.add_typer(zoo_app, name="zoo")

Out = Annotated[Path, typer.Option("-o", "--out", help="Folder to write; it must not exist, or be empty.")]
Workers = Annotated[int | None, typer.Option(help="Worker processes. More give the same search, sooner.", min=1)]
Evaluations = Annotated[int | None, typer.Option(help="How many candidates to evaluate in all.", min=1)]
ZooName = Annotated[str | None, typer.Option("--zoo", help="Take the pool from an embedded zoo.")]
Base = Annotated[Path | None, typer.Option(help="The base: a folder, or org/name@revision on the hub.")]
Like = Annotated[
    str | None,
    typer.Option(
        help="The expert whose tokenizer, chat template and generation settings to take. Default: the base's."
    ),
]
Head = Annotated[
    str | None,
    typer.Option(
        help="Leave heads out of the merge, and write this model's: an expert, or `base`. Default: where heads differ, one folder for each expert; else they are merged."
    ),
]
Experts = Annotated[
    list[str] | None,
    typer.Option("--expert", help="An expert: NAME=FOLDER, or NAME=org/name@revision. May be repeated."),
]
AsAdapter = Annotated[
    bool,
    typer.Option(
        "--as-adapter",
        help="Write a LoRA adapter of the base (a PEFT folder). Weighted sums of LoRA adapters are exact; others need --rank or --energy.",
    ),
]
Rank = Annotated[int | None, typer.Option(help="Largest rank of an adapter's factors.", min=1)]
Energy = Annotated[
    float | None,
    typer.Option(help="Instead of a rank: the share of the squares of each matrix's change to keep, such as 0.99."),
]
Dtype = Annotated[
    str | None, typer.Option(help="Store weights as float32, bfloat16 or float16. Default: the base's dtype.")
]
ShardSize = Annotated[str | None, typer.Option(help="Largest weights file: 5GB, 500MB. Default: 2GiB.")]
StudyFolder = Annotated[Path, typer.Argument(help="The study's directory.", show_default=False)]


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(f"evomerge {version('evomerge')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="The study's directory.")] = Path("runs/demo"),
    name: Annotated[str, typer.Option("--zoo", help="Which embedded experts: text or digits.")] = "text",
    evaluations: Evaluations = None,
    workers: Workers = None,
) -> None:
    """Build the embedded experts, search, report on unseen examples, and export the picked model."""
    from evomerge.cli import studies

    studies.demo(out, name, evaluations, workers)


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="The study's YAML.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Study directory; by default runs/NAME, by the study's name.")
    ] = None,
    evaluations: Evaluations = None,
    workers: Workers = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the search.", min=0)] = None,
    driver: Annotated[str | None, typer.Option(help="KIND of the driver, instead of the file's driver.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the time of the whole command, and stop.")
    ] = False,
) -> None:
    """Search as a study file says. A directory that holds the same study is resumed."""
    from evomerge.cli import studies

    studies.run(file, out, evaluations, workers, seed, driver, dry_run=dry_run)


@app.command()
def resume(
    folder: StudyFolder,
    evaluations: Evaluations = None,
    workers: Workers = None,
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
) -> None:
    """Resume a study that was interrupted or killed, or extend one by a larger budget."""
    from evomerge.cli import studies

    studies.resume(folder, evaluations, workers, retry_failed=retry_failed, fork=fork)


@app.command()
def trust(folder: StudyFolder) -> None:
    """Agree to run the code that a study from elsewhere names, having read it. Prints its files, and runs nothing."""
    from evomerge.cli import folders

    folders.trust_code(folder)


@app.command()
def repair(folder: StudyFolder) -> None:
    """Cut a study's damaged journals before the first line that is not valid. The whole files are kept beside them."""
    from evomerge.cli import folders

    folders.repair(folder)


@app.command()
def show(
    folder: StudyFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    csv: Annotated[
        Path | None,
        typer.Option(help="Write all candidates with their search scores and genes to this file, and stop."),
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
) -> None:
    """Print the front and its references, scored on examples that the search never saw; draw it; write report.html.

    While another process searches or reports the study, this prints the search's own scores of the front, and scores nothing.
    """
    from evomerge.cli import studies

    studies.show(folder, as_json=as_json, csv=csv, report=report, final=final, pairs=pairs or ())


@app.command()
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
) -> None:
    """Choose one model, and write it as a checkpoint: a point of the front or a reference, whichever fits the preference best.

    Models are chosen by estimates from the search examples, of the reported metric where the search measured it, else of the
    searched one; unseen examples only judge them. Without a preference the best mean is picked, and a reference unless a candidate of
    the search is likely enough to be better. With --surface, preferences are in units of the searched metric, which the surrogates of
    drivers such as `front` and `map` predict.
    """
    from evomerge.cli import adapters, studies

    adapter = adapters.AdapterOptions.read(rank, energy, wanted=as_adapter)
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


@app.command()
def merge(
    file: Annotated[Path, typer.Argument(help="YAML with `recipe`, and `pool` unless given here.", show_default=False)],
    out: Out,
    name: ZooName = None,
    base: Base = None,
    expert: Experts = None,
    like: Like = None,
    head: Head = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Tokens of the merged model where models have their own: union, base, or an expert."),
    ] = None,
    dtype: Dtype = None,
    shard_size: ShardSize = None,
    shard_mib: Annotated[int | None, typer.Option(help="The same in MiB.", min=1, hidden=True)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and print what would be written.")] = False,
    as_adapter: AsAdapter = False,
    rank: Rank = None,
    energy: Energy = None,
) -> None:
    """Make one merged checkpoint from a recipe. It streams: a merge may be larger than memory."""
    from evomerge.cli import adapters, merges

    adapter = adapters.AdapterOptions.read(rank, energy, wanted=as_adapter)
    options = merges.PoolOptions(name, base, expert, like, head, tokenizer)
    shard_size = f"{shard_mib}MiB" if shard_mib and shard_size is None else shard_size
    merges.merge(file, out, options, dtype, shard_size, dry_run=dry_run, adapter=adapter)


@app.command()
def extract_lora(
    base: Annotated[str, typer.Argument(help="The base: a folder, or org/name@revision.", show_default=False)],
    model: Annotated[str, typer.Argument(help="The fine-tuned model, likewise.", show_default=False)],
    rank: Rank = None,
    energy: Energy = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder to write. Without it, only the loss is measured.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Write the difference of a fine-tuned model from its base as a LoRA adapter (a PEFT folder), and print what its rank loses."""
    from evomerge.cli import adapters

    options = adapters.AdapterOptions.read(rank, energy, wanted=True)
    assert options is not None
    adapters.extract(base, model, out, options, as_json=as_json)


@app.command("import")
def import_(
    file: Annotated[
        Path, typer.Argument(help="A configuration of mergekit or of mergekit-evolve.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write; by default it is printed.")] = None,
    definitions: Annotated[
        str, typer.Option("--as", help="Whose definitions to take where they differ: evomerge, or mergekit.")
    ] = "evomerge",
) -> None:
    """Turn a mergekit configuration into a recipe, and list in words what evomerge defines otherwise for this file.

    A configuration of mergekit-evolve becomes a study, whose tasks are to be filled in.
    """
    from evomerge.cli import exchanges

    exchanges.read(file, out, definitions)


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="YAML with `recipe`, and `pool` unless given here.", show_default=False)],
    mergekit: Annotated[bool, typer.Option("--mergekit", help="Write a mergekit configuration.")] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write; by default it is printed.")] = None,
    name: ZooName = None,
    base: Base = None,
    expert: Experts = None,
) -> None:
    """Write a recipe for another tool, or say which part of it that tool cannot express."""
    from evomerge.cli import exchanges, merges

    exchanges.write(file, out, merges.PoolOptions(name, base, expert), mergekit=mergekit)


@app.command()
def compress(
    out: Out,
    file: Annotated[Path | None, typer.Argument(help="Study (its tasks measure the loss) or YAML with `pool`.")] = None,
    name: ZooName = None,
    base: Base = None,
    expert: Experts = None,
    codec: Annotated[str, typer.Option(help="tall, emr, low_rank or singular.")] = "tall",
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", help="NAME=VALUE: `lambda=0.3`, or `lambda.maths=0.3` for one expert."),
    ] = None,
) -> None:
    """Keep all experts of a pool in one small artefact, from which `evomerge decompress` restores each.

    Where there are tasks, the λ of TALL masks is chosen for each expert on the search examples, unless it is given, and the retention
    is the decoded expert's score on unseen examples as a share of the expert's.
    """
    from evomerge.cli import merges

    merges.compress(out, file, merges.PoolOptions(name, base, expert), codec, parameter or [])


@app.command()
def decompress(
    folder: Annotated[Path, typer.Argument(help="The artefact that `compress` wrote.", show_default=False)],
    expert: Annotated[str, typer.Argument(help="Which of its experts.", show_default=False)],
    out: Out,
    dtype: Dtype = None,
    shard_size: ShardSize = None,
) -> None:
    """Write one expert of an artefact as a checkpoint, with the base's configuration and tokenizer."""
    from evomerge.cli import merges

    merges.decompress(folder, expert, out, dtype, shard_size)


@app.command()
def score(
    what: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint folder or org/name on the hub, a recipe's YAML, or a study's directory.",
            show_default=False,
        ),
    ],
    tasks: Annotated[
        Path | None, typer.Option(help="YAML with `tasks:` as in a study file, or a study file; a study has its own.")
    ] = None,
    front: Annotated[
        bool, typer.Option("--front", help="Of a study: its front and its references instead of its pick.")
    ] = False,
    name: ZooName = None,
    base: Base = None,
    expert: Experts = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Score models on the report examples of tasks, with 95% intervals. Nothing is written.

    A recipe needs a pool, in its file or by options, as for `evomerge merge`.
    """
    from evomerge.cli import merges, scores

    scores.score(what, tasks, merges.PoolOptions(name, base, expert), front=front, as_json=as_json)


@app.command()
def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN...", help="Study directories with the same tasks.", show_default=False),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Compare runs with the first one: the means of their picks and the hypervolumes of their fronts, on unseen examples."""
    from evomerge.cli import scores

    scores.compare(folders, as_json=as_json)


@app.command()
def check(
    base: Annotated[str, typer.Argument(help="The base: a folder, or org/name@revision.", show_default=False)],
    experts: Annotated[
        list[str],
        typer.Argument(
            metavar="EXPERT...",
            help="The experts: folders, adapters, or org/name@revision, each also as NAME=MODEL.",
            show_default=False,
        ),
    ],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Draw norms and cosines into this PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    no_weights: Annotated[
        bool, typer.Option("--no-weights", help="Compare headers and configurations alone, in seconds.")
    ] = False,
) -> None:
    """Say whether models can be merged, and how they differ, before any download of weights.

    Where all weights are on this machine, the norms of the task vectors and the cosines between them follow. Exits with 0 where all
    can be merged, else with 2.
    """
    from evomerge.cli import check

    check.check(base, experts, out, weights=not no_weights, as_json=as_json)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A checkpoint folder, as `merge` writes it.", show_default=False)],
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The model on the hub.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Create it private, where it is new.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent, and stop.")] = False,
) -> None:
    """Send a whole checkpoint to the Hugging Face hub, after showing what would be sent where."""
    from evomerge.cli import push

    push.push(folder, repository, private=private, yes=yes, dry_run=dry_run)


@app.command()
def spaces(
    name: Annotated[str | None, typer.Argument(help="Print this one's YAML.", show_default=False)] = None,
    from_method: Annotated[str | None, typer.Option(help="Print a space of all parameters of a merge method.")] = None,
) -> None:
    """List the shipped search spaces and the merge methods; or print a space to start your own from."""
    from evomerge.cli import listings

    listings.spaces(name, from_method)


@app.command()
def tasks(
    kind: Annotated[str | None, typer.Argument(help="Print all keys of this kind.", show_default=False)] = None,
) -> None:
    """List the kinds of tasks; or print one's keys, defaults and an example."""
    from evomerge.cli import listings

    listings.task_kinds(kind)


@zoo_app.command("list")
def zoo_list() -> None:
    """List the embedded zoos, and whether they are built."""
    from evomerge.cli import listings

    listings.zoos()


@zoo_app.command("build")
def zoo_build(
    name: Annotated[str, typer.Argument(help="text, text4, digits or language.", show_default=False)],
    seed: Annotated[int, typer.Option(help="Another seed makes other experts.", min=0)] = 0,
    text: Annotated[Path | None, typer.Option(help="For `language`: a folder of German plain text.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Build it even if it is there.")] = False,
) -> None:
    """Build a zoo from files that installed packages ship; it is kept in the cache folder."""
    from evomerge.cli import listings

    listings.build_zoo(name, seed, text=text, again=again)
