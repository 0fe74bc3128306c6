"""Commands on checkpoints, recipes and artefacts."""

import os
from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.options import (
    AdapterOptions,
    AsAdapter,
    Base,
    Device,
    Dtype,
    Energy,
    Experts,
    Head,
    Json,
    Like,
    Out,
    Quiet,
    Rank,
    ShardSize,
    Tokenizer,
    ZooName,
    hide_progress,
)

app = typer.Typer()
_PANEL = "Models"


def _share_cores() -> None:
    """Have torch's threads sleep, not spin, while they wait for each other: on a busy machine spinning takes many times the work."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported


@app.command(
    rich_help_panel=_PANEL,
    epilog="Example: evomerge check path/to/base maths=path/to/maths org/name@v2 --out check.png",
)
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
    tokenizer: Tokenizer = None,
    as_json: Json = False,
    no_weights: Annotated[
        bool, typer.Option("--no-weights", help="Compare headers and configurations alone, in seconds.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Say whether models can be merged, and how they differ, before any download of weights.

    Where all weights are on this machine, the norms of the task vectors and the cosines between them follow. Exits with 0 where all
    can be merged, else with 2.
    """
    hide_progress(quiet)
    _share_cores()
    from evomerge.cli import check

    check.check(base, experts, out, tokenizer, weights=not no_weights, as_json=as_json)


@app.command(
    rich_help_panel=_PANEL,
    epilog="Example: evomerge merge recipe.yaml -o merged --base path/to/base --expert maths=path/to/maths",
)
def merge(
    file: Annotated[Path, typer.Argument(help="YAML with `recipe`, and `pool` unless given here.", show_default=False)],
    out: Out,
    name: ZooName = None,
    base: Base = None,
    expert: Experts = None,
    like: Like = None,
    head: Head = None,
    tokenizer: Tokenizer = None,
    dtype: Dtype = None,
    shard_size: ShardSize = None,
    shard_mib: Annotated[int | None, typer.Option(help="The same in MiB.", min=1, hidden=True)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and print what would be written.")] = False,
    as_adapter: AsAdapter = False,
    rank: Rank = None,
    energy: Energy = None,
    device: Device = None,
    evidence: Annotated[
        Path | None,
        typer.Option(help="Of methods that read data: a study file, or YAML with `tasks:` and `evidence:`."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Make one merged checkpoint from a recipe. It streams: a merge may be larger than memory."""
    hide_progress(quiet)
    _share_cores()
    from evomerge.cli import merges

    adapter = AdapterOptions.read(rank, energy, wanted=as_adapter)
    options = merges.PoolOptions(name, base, expert, like, head, tokenizer)
    shard_size = f"{shard_mib}MiB" if shard_mib and shard_size is None else shard_size
    merges.merge(
        file,
        out,
        options,
        dtype,
        shard_size,
        dry_run=dry_run,
        adapter=adapter,
        device=device or "cpu",
        evidence=evidence,
    )


@app.command(rich_help_panel=_PANEL, epilog="Example: evomerge statistics study.yaml --dry-run")
def statistics(
    what: Annotated[Path, typer.Argument(help="The study's YAML, or its directory.", show_default=False)],
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Which statistic, such as gram; may be repeated. Default: those that the space reads."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it will cost, and stop.")] = False,
    quiet: Quiet = False,
) -> None:
    """Collect what methods that read data need of each expert, into this machine's cache. A study does so itself, before its search."""
    hide_progress(quiet)
    from evomerge.cli import statistics

    statistics.statistics(what, kind or [], dry_run=dry_run)


@app.command(rich_help_panel=_PANEL, epilog="Example: evomerge score merged --tasks study.yaml --json")
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
    tokenizer: Tokenizer = None,
    as_json: Json = False,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Score models on the report examples of tasks, with 95% intervals. Nothing is written.

    A recipe needs a pool, in its file or by options, as for `evomerge merge`.
    """
    hide_progress(quiet)
    from evomerge.cli import merges, scores

    scores.score(
        what,
        tasks,
        merges.PoolOptions(name, base, expert, tokenizer=tokenizer),
        front=front,
        as_json=as_json,
        device=device,
    )


@app.command(
    rich_help_panel=_PANEL, epilog="Example: evomerge extract-lora path/to/base path/to/maths --rank 16 -o lora"
)
def extract_lora(
    base: Annotated[str, typer.Argument(help="The base: a folder, or org/name@revision.", show_default=False)],
    model: Annotated[str, typer.Argument(help="The fine-tuned model, likewise.", show_default=False)],
    rank: Rank = None,
    energy: Energy = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder to write. Without it, only the loss is measured.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the difference of a fine-tuned model from its base as a LoRA adapter (a PEFT folder), and print what its rank loses."""
    hide_progress(quiet)
    from evomerge.cli import adapters

    options = AdapterOptions.read(rank, energy, wanted=True)
    assert options is not None
    adapters.extract(base, model, out, options, as_json=as_json)


@app.command(rich_help_panel=_PANEL, epilog="Example: evomerge compress study.yaml -o artefact --codec tall")
def compress(
    out: Out,
    file: Annotated[Path | None, typer.Argument(help="Study (its tasks measure the loss) or YAML with `pool`.")] = None,
    name: ZooName = None,
    base: Base = None,
    expert: Experts = None,
    tokenizer: Tokenizer = None,
    codec: Annotated[str, typer.Option(help="tall, emr, low_rank or singular.")] = "tall",
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", help="NAME=VALUE: `lambda=0.3`, or `lambda.maths=0.3` for one expert."),
    ] = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Keep all experts of a pool in one small artefact, from which `evomerge decompress` restores each.

    Where there are tasks, the λ of TALL masks is chosen for each expert on the search examples, unless it is given, and the retention
    is the decoded expert's score on unseen examples as a share of the expert's.
    """
    hide_progress(quiet)
    from evomerge.cli import artefacts, merges

    artefacts.compress(
        out, file, merges.PoolOptions(name, base, expert, tokenizer=tokenizer), codec, parameter or [], device
    )


@app.command(rich_help_panel=_PANEL, epilog="Example: evomerge decompress artefact maths -o restored")
def decompress(
    folder: Annotated[Path, typer.Argument(help="The artefact that `compress` wrote.", show_default=False)],
    expert: Annotated[str, typer.Argument(help="Which of its experts.", show_default=False)],
    out: Out,
    dtype: Dtype = None,
    shard_size: ShardSize = None,
    quiet: Quiet = False,
) -> None:
    """Write one expert of an artefact as a checkpoint, with the base's configuration and tokenizer."""
    hide_progress(quiet)
    from evomerge.cli import artefacts

    artefacts.decompress(folder, expert, out, dtype, shard_size)


@app.command("import", rich_help_panel=_PANEL, epilog="Example: evomerge import mergekit.yaml -o recipe.yaml")
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


@app.command(rich_help_panel=_PANEL, epilog="Example: evomerge export recipe.yaml --mergekit")
def export(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE|RUN",
            help="YAML with `recipe`, and `pool` unless given here; or a study's directory.",
            show_default=False,
        ),
    ],
    mergekit: Annotated[bool, typer.Option("--mergekit", help="Write a mergekit configuration.")] = False,
    optuna: Annotated[
        str | None,
        typer.Option(
            metavar="STORAGE",
            help="Add a search's candidates to an Optuna study in this storage, such as sqlite:///optuna.db, for optuna-dashboard.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write; by default it is printed.")] = None,
    name: ZooName = None,
    base: Base = None,
    expert: Experts = None,
    tokenizer: Tokenizer = None,
) -> None:
    """Write a recipe or a search for another tool, or say which part of a recipe that tool cannot express."""
    from evomerge.cli import exchanges, merges

    if optuna is not None:
        exchanges.mirror(file, optuna)
        return
    exchanges.write(file, out, merges.PoolOptions(name, base, expert, tokenizer=tokenizer), mergekit=mergekit)


@app.command(rich_help_panel=_PANEL, epilog="Example: evomerge push merged org/name --private")
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
