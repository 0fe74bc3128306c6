"""Options and arguments that several commands have."""

from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from evomerge.errors import RecipeError

Out = Annotated[Path, typer.Option("-o", "--out", help="Folder to write; it must not exist, or be empty.")]
Workers = Annotated[int | None, typer.Option(help="Worker processes. More give the same search, sooner.", min=1)]
Queue = Annotated[
    Path | None,
    typer.Option(
        help="Evaluate by workers that share this folder: `evomerge worker DIR`, on any machine that sees it."
    ),
]
Evaluations = Annotated[int | None, typer.Option(help="How many candidates to evaluate in all.", min=1)]
Hours = Annotated[
    float | None,
    typer.Option(help="Search for at most so many hours, summed over all resumptions. Then report.", min=0),
]
WorkerHours = Annotated[float | None, typer.Option(help="The same in hours times workers.", min=0)]
Grace = Annotated[
    float,
    typer.Option(metavar="SECONDS", help="After SIGTERM, wait at most so long for what is being evaluated.", min=0),
]
Webhook = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Post JSON there at the start, at the end, and if too many candidates fail."),
]
Mlflow = Annotated[
    str | None, typer.Option("--mlflow", metavar="URL", help="Send the scores of candidates to this MLflow server.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print no progress: only results, warnings and errors.")]
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
Tokenizer = Annotated[
    str | None,
    typer.Option(help="Tokens of merged models where models have their own: union, base, or an expert."),
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
Device = Annotated[
    str | None, typer.Option(help="Where to run: cpu, cuda, cuda:1, mps, or auto, an accelerator if there is one.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
StudyFolder = Annotated[Path, typer.Argument(help="The study's directory.", show_default=False)]


class AdapterOptions(NamedTuple):
    """The options about the rank of an adapter: at most one of them; neither means exact factors."""

    rank: int | None = None
    energy: float | None = None

    @classmethod
    def read(cls, rank: int | None, energy: float | None, *, wanted: bool) -> "AdapterOptions | None":
        """Return the options, None where no adapter is `wanted`. Raises `RecipeError`."""
        if not wanted and (rank is not None or energy is not None):
            raise RecipeError("`--rank` and `--energy` are of adapters; add `--as-adapter`, or leave them out")
        if rank is not None and energy is not None:
            raise RecipeError("`--rank` and `--energy` both choose ranks; give one of them")
        if energy is not None and not 0 < energy < 1:
            raise RecipeError(f"--energy {energy:g}: expected a share between 0 and 1, such as 0.99")
        return cls(rank, energy) if wanted else None


def hide_progress(quiet: bool) -> None:
    """Show no progress of this command, if it is to be quiet."""
    from evomerge import progress

    progress.hide(quiet)
