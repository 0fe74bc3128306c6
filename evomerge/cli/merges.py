"""The command that writes a checkpoint without a search: merge; and the pool and the recipe that its options and its file name.

It imports torch, and of this package no more than it needs: that is most of what a small merge costs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError
from rich.console import Console

from evomerge import merging, placement, strict_yaml
from evomerge.alignment import Condensed
from evomerge.build import Builder
from evomerge.checkpoints import hub
from evomerge.checkpoints.beside import unmerged
from evomerge.checkpoints.cast import cast, check_dtype
from evomerge.checkpoints.members import ancestors
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.save import SHARD_BYTES, STITCHES, parse_size
from evomerge.checkpoints.vocabulary import TokenizerChoice
from evomerge.cli.console import new_console, say
from evomerge.cli.options import AdapterOptions
from evomerge.errors import CheckpointError, RecipeError, nearest
from evomerge.progress import Phases, step_printer
from evomerge.recipe import Recipe, describe, expand_inputs, short_forms
from evomerge.recipe import base as base_recipe
from evomerge.report import export

_RECIPE_KEYS = ("pool", "recipe", "members", "about", "like", "dtype", "heads", "head", "evidence", "statistics")


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
    evidence: Path | None = None,
) -> None:
    """Write the merge of a recipe file, as a checkpoint or as an adapter, or only check it.

    `dtype` is by default the file's, or else the base's. Checkpoints are merged on `device`. `evidence` is a file with the tasks of
    statistics that the recipe needs, by default the recipe file's.
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
    if kinds := export.needed(recipe, lineage):
        from evomerge.cli.statistics import attach

        recipes = export.made_of(recipe, lineage)
        attach(pool, kinds, data, file, evidence, options.zoo, console, recipes, dry_run=dry_run)
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
    if isinstance(built, Condensed):
        for router, groups in built.groups().items():
            say(console, f"{router}: experts {'; '.join(' + '.join(map(str, members)) for members in groups)}")
    if adapter is not None:
        from evomerge.cli.adapters import write_adapter

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
    pool = open_pool(data.get("pool"), file, options, console, data.get("like"), heads)
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
            "note: the base's config.json names code of its own (`auto_map`), which is copied and was not run; it runs where the "
            "merge is loaded with `trust_remote_code=True`",
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
        made = export.export(recipe, pool, out, watch=watch, **options)
    if (out / STITCHES).exists():
        say(
            console,
            f"note: {out} has affine maps between its layers, in `{STITCHES}`: load it with `evomerge.models.load_stack`; plain transformers "
            "refuses it",
        )
    return made


def storage(dtype: str | None, shard_size: str | None, adapter: AdapterOptions | None = None) -> dict[str, Any]:
    """Return how to store weights, by the names of the parameters of `report.export.export`. Raises `CheckpointError`."""
    check_dtype(dtype)
    if adapter is not None and (dtype or shard_size):
        raise CheckpointError("--as-adapter: `--dtype` and `--shard-size` are for checkpoints; leave them out")
    return {"dtype": dtype, "shard_bytes": SHARD_BYTES if shard_size is None else parse_size(shard_size)}


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


def open_pool(
    data: Any,
    file: Path,
    options: PoolOptions,
    console: Console,
    like: Any = None,
    heads: Literal["own"] | None = None,
) -> Pool:
    """Return the pool of a zoo, of the options, or of a file's `pool`, `data`, in this order; `like` is the file's."""
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
        from evomerge import zoo

        built = zoo.load(options.zoo)
        return built.pool["base"], built.pool["experts"]
    if options.named:
        pairs = [entry.partition("=") for entry in options.experts or ()]
        if options.base is None or not all(equals for _, equals, _ in pairs):
            raise RecipeError("a pool is `--base FOLDER --expert NAME=FOLDER [--expert NAME=FOLDER …]`")
        names = [name for name, _, _ in pairs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise RecipeError(
                f"--expert: {names.count(twice[0])} models are named `{twice[0]}`; give each a name of its own"
            )
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
