"""Commands that write checkpoints without a search: merge, compress, decompress; and the pool that their options name."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evomerge import codecs, merging, placement, strict_yaml, tasks, zoo
from evomerge.build import Builder
from evomerge.checkpoints import hub
from evomerge.checkpoints.beside import unmerged
from evomerge.checkpoints.cast import cast, check_dtype, with_dtype
from evomerge.checkpoints.members import ancestors
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.save import SHARD_BYTES, check_free, parse_size, save
from evomerge.checkpoints.vocabulary import TokenizerChoice
from evomerge.cli.adapters import AdapterOptions, write_adapter
from evomerge.cli.listings import new_console, say
from evomerge.errors import CheckpointError, RecipeError, nearest
from evomerge.models import LiveModel
from evomerge.parts import open_parts
from evomerge.progress import Phases, Progress, step_printer
from evomerge.recipe import Recipe, describe, expand_inputs, short_forms
from evomerge.recipe import base as base_recipe
from evomerge.report import export
from evomerge.settings import StudySettings
from evomerge.tasks import Task

_RECIPE_KEYS = ("pool", "recipe", "members", "about", "like", "dtype", "heads", "head")


class PoolOptions(NamedTuple):
    """The options that name a pool: a zoo, or a base and `NAME=FOLDER` for each expert. None of them: the file names it."""

    zoo: str | None
    base: Path | None
    experts: Sequence[str] | None
    like: str | None = None
    """The expert whose tokenizer the merged model has, whatever the file says."""
    head: str | None = None
    """The model whose head the merged model has, whatever the file says; heads are then not merged."""
    tokenizer: str | None = None
    """Which tokens the merged model has, whatever the file says: `union`, `base`, or an expert."""

    @property
    def named(self) -> bool:
        """Whether they name a pool."""
        return any(self[:3])


def merge(
    file: Path,
    out: Path,
    options: PoolOptions,
    dtype: str | None,
    shard_size: str | None,
    *,
    dry_run: bool,
    adapter: AdapterOptions | None = None,
    device: str = "cpu",
) -> None:
    """Write the merge of a recipe file, as a checkpoint or as an adapter, or only check it.

    `dtype` is by default the file's, or else the base's. Checkpoints are merged on `device`.
    """
    if adapter is not None and device != "cpu":
        raise CheckpointError("--as-adapter: adapters are made on the CPU; leave `--device` out")
    placement.find(device)
    stored = storage(dtype, shard_size, adapter)
    console = new_console()
    data = _read_file(file, f"evomerge pick RUN -o {out}")
    base, experts = _name_models(data.get("pool"), file, options)
    if dry_run and hub.missing([base, *experts.values()], step_printer(console)):
        return
    pool, recipe, lineage = _open_recipe(data, file, options, console)
    # Building a member would build its ancestors; it has the base's tensors.
    built = pool.base if recipe.members else Builder(pool).build_model(recipe)
    stored["dtype"] = stored["dtype"] or data.get("dtype")
    info = cast(built, stored["dtype"]).info.values()
    size = sum(entry.nbytes for entry in info) / 2**30
    elements = sum(entry.numel for entry in info)
    layers = f"{len(recipe.prefix_digests)} layers, " if recipe.prefix_digests else ""
    say_what_lies_beside(pool, console, "`--like EXPERT`")
    say(console, f"recipe {recipe.id[:12]}: {layers}{len(info)} tensors, {elements:,} elements, {size:.2f} GiB")
    for note in pool.notes:
        say(console, f"note: {note}")
    if dry_run:
        say(console, f"would write {out}")
        return
    if adapter is not None:
        write_adapter(recipe, pool, out, adapter, console, lineage)
        return
    head = options.head or data.get("head")
    if densities := export_recipe(recipe, pool, out, console, lineage=lineage, head=head, device=device, **stored):
        shares = ", ".join(f"{label} {share:.1%}" for label, share in densities.items())
        say(console, f"elements of the task vectors left by the edits: {shares}")
    say(console, f"merged checkpoint: {out}")


def read_recipe(
    file: Path, options: PoolOptions, console: Console, then: str
) -> tuple[Pool, Recipe, Mapping[str, Recipe]]:
    """Return the pool, the recipe and the lineage of a recipe file. Raises `RecipeError`, for a study with what to type `then`."""
    return _open_recipe(_read_file(file, then), file, options, console)


def _read_file(file: Path, then: str) -> dict[str, Any]:
    """Return the keys of a recipe file. Raises `RecipeError`."""
    if not file.is_file():
        study = f", but a study; type: evomerge pick {file} -o OUT" if (file / "study.json").is_file() else ""
        raise RecipeError(f"{file}: no such recipe file{study}")
    data = strict_yaml.read(file)
    if isinstance(data, dict) and {"pool", "space"} <= set(data):
        msg = f"{file}: this is a study, not a recipe; type: evomerge run {file}, then {then}"
        raise RecipeError(msg)
    if not isinstance(data, dict) or "recipe" not in data:
        data = {"recipe": data}
    for key in data:
        if key not in _RECIPE_KEYS:
            raise RecipeError(f"{file}: unknown key `{key}`; {nearest(str(key), _RECIPE_KEYS)}")
    return data


def _open_recipe(
    data: Mapping[str, Any], file: Path, options: PoolOptions, console: Console
) -> tuple[Pool, Recipe, Mapping[str, Recipe]]:
    head = options.head or data.get("head")
    if not isinstance(head, str | None):
        raise RecipeError(f"{file} `head`: expected the name of an expert, got {head!r}")
    if data.get("heads") not in (None, "own"):
        raise RecipeError(f"{file} `heads`: expected `own`, or none, got {data['heads']!r}")
    heads: Literal["own"] | None = "own" if head is not None or "heads" in data else None
    pool = _open_pool(data.get("pool"), file, options, console, data.get("like"), heads)
    names = list(pool.experts)
    spelled = short_forms.spell_out(expand_inputs(data["recipe"], names), pool.layout.blocks)
    recipe = Recipe.parse(spelled, experts=names)
    lineage = _read_lineage(data.get("members", {}), file)
    for candidate in (recipe, *(ancestor for _, ancestor in ancestors(recipe, lineage))):
        merging.check(candidate)
    return pool, recipe, lineage


def say_what_lies_beside(pool: Pool, console: Console, option: str) -> None:
    """Print what is not merged and differs: chat templates, end tokens, vocabularies, code; and weights outside the checkpoint."""
    if pool.vocabulary is not None:
        say(console, f"vocabulary: {pool.vocabulary.summary}")
    if different := pool.differences_in_text:
        say(
            console,
            f"note: the tokenizer, chat template and generation settings are those of {pool.text}, and the models differ in them: "
            f"{'; '.join(different)}. {option} takes an expert's",
        )
    if (pool.base.path / "config.json").exists() and "auto_map" in pool.base.config:
        say(
            console,
            "note: the base's config.json names code of its own (`auto_map`), which is copied and was not run; it runs where somebody "
            "loads the merge with `trust_remote_code=True`",
        )
    if folders := unmerged(pool.base.path):
        names = ", ".join(folders)
        say(
            console,
            f"note: the weights in {names}, which modules.json lists, are the base's: they are copied, not merged",
        )


def export_recipe(recipe: Recipe, pool: Pool, out: Path, console: Console, **options: Any) -> Mapping[str, float]:
    """Write the model that `recipe` describes to `out`, with progress, and return what `report.export.export` returns.

    `options` are those of that function.
    """
    with Phases(console) as watch:
        return export.export(recipe, pool, out, watch=watch, **options)


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


def storage(dtype: str | None, shard_size: str | None, adapter: AdapterOptions | None = None) -> dict[str, Any]:
    """Return how to store weights, by the names of the parameters of `report.export.export`. Raises `CheckpointError`."""
    check_dtype(dtype)
    if adapter is not None and (dtype or shard_size):
        raise CheckpointError("--as-adapter: `--dtype` and `--shard-size` are for checkpoints; leave them out")
    return {"dtype": dtype, "shard_bytes": SHARD_BYTES if shard_size is None else parse_size(shard_size)}


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


def _read_lineage(data: Any, file: Path) -> dict[str, Recipe]:
    """Return the recipes of earlier candidates in a recipe file, by id. Raises `RecipeError` for a wrong id."""
    if not isinstance(data, dict):
        raise RecipeError(f"{file} `members`: expected a mapping from ids to recipes, got {data!r}")
    lineage = {base_recipe().id: base_recipe()}
    for identity, member in data.items():
        lineage[identity] = Recipe.parse(member)
        if lineage[identity].id != identity:
            msg = f"{file} `members`: the recipe under `{identity[:12]}…` has the id `{lineage[identity].id[:12]}…`; it was changed"
            raise RecipeError(msg)
    return lineage


def _open_pool(
    data: Any,
    file: Path,
    options: PoolOptions,
    console: Console,
    like: Any = None,
    heads: Literal["own"] | None = None,
) -> Pool:
    """Return the pool of a zoo, of the options, or of the file's `pool`, in this order; `like` is the file's."""
    progress = step_printer(console)
    like = options.like or like
    if not isinstance(like, str | None):
        raise RecipeError(f"{file} `like`: expected the name of an expert, got {like!r}")
    listed = data.get("tokenizer") if isinstance(data, dict) else None
    choice = read_tokenizer(options.tokenizer or listed, str(file))
    base, experts = _name_models(data, file, options)
    return Pool(base, experts, like=like, heads=heads, tokenizer=choice, progress=progress)


def read_tokenizer(data: Any, where: str) -> TokenizerChoice | None:
    """Return the choice of tokens of an option or of a file's pool. Raises `RecipeError`, whose text begins with `where`."""
    if data is None:
        return None
    try:
        return TokenizerChoice.model_validate(data)
    except ValidationError as error:
        raise RecipeError(describe(error, f"{where} `tokenizer`", {"": tuple(TokenizerChoice.model_fields)})) from None


def _name_models(data: Any, file: Path, options: PoolOptions) -> tuple[str, dict[str, str]]:
    """Return the base, and the experts by name: folders, or ids on the hub."""
    if options.zoo is not None:
        built = zoo.load(options.zoo)
        return built.pool["base"], built.pool["experts"]
    if options.named:
        pairs = [entry.partition("=") for entry in options.experts or ()]
        if options.base is None or not all(equals for _, equals, _ in pairs):
            raise RecipeError("a pool is `--base FOLDER --expert NAME=FOLDER [--expert NAME=FOLDER …]`")
        return hub.locate(options.base), {name: hub.locate(path) for name, _, path in pairs}
    if (
        not isinstance(data, dict)
        or set(data) - {"tokenizer"} != {"base", "experts"}
        or not isinstance(data["experts"], dict)
    ):
        msg = f"{file}: no pool; write `pool: {{base: FOLDER, experts: {{NAME: FOLDER}}}}` into it, or give --zoo, or --base and --expert"
        raise RecipeError(msg)
    experts = {name: hub.locate(path, file.parent) for name, path in data["experts"].items()}
    return hub.locate(data["base"], file.parent), experts


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
        model = LiveModel(
            parts.pool.open_base(),
            parts.setup.auto,
            parts.setup.precision,
            placement.find(device or parts.setup.device),
            module=parts.setup.module,
            tokenizer=parts.pool.tokenizer,
            heads=parts.pool.heads,
        )
        return parts.pool, parts.tasks, model
    listed = data.get("pool") if isinstance(data, dict) else None
    pool = _open_pool(listed, file or Path(), options, console)
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
