"""export: the merge of a recipe as a checkpoint folder that transformers loads, with the recipe beside the weights."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge import files, strict_yaml
from evomerge.alignment import Condensed, Narrowed, Zipped
from evomerge.build import Builder, Merged
from evomerge.checkpoints import hub
from evomerge.checkpoints.aligned import Aligned
from evomerge.checkpoints.beside import has_tokenizer, with_token_ids
from evomerge.checkpoints.cast import cast, with_dtype
from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.members import Members, ancestors
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.save import SCALES, SHARD_BYTES, check_free, save
from evomerge.checkpoints.stack import Stacked
from evomerge.errors import PoolError, RecipeError, nearest
from evomerge.merging import Watch, check, needs, unwatched
from evomerge.models import stitches
from evomerge.placement import Placement, find
from evomerge.recipe import Recipe
from evomerge.report import family
from evomerge.report.card import model_card
from evomerge.report.results import Candidate, Results


def export(
    recipe: Recipe,
    pool: Pool,
    out: Path,
    *,
    lineage: Mapping[str, Recipe] | None = None,
    results: Results | None = None,
    candidate: Candidate | None = None,
    head: str | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    watch: Watch = unwatched,
    device: str = "cpu",
) -> Mapping[str, float]:
    """Write the model that `recipe` makes of `pool` to the folder `out`, completely or not at all.

    Return the share of elements that the edits of a merge left, by input; {} for another recipe, or one without edits.

    Configuration and tokenizer are the base's (the tokenizer may be that of the pool's `like`), except for the layers of a stack in `config.json`, and for the dtype where
    weights of an expert are taken as they are. The scales of a stack are folded into its weights if that gives the same model,
    which is tested with the model in memory; otherwise, and in a stitched stack, they are in a separate file, as the card explains. Maps
    between its layers are in a file of their own, and `evomerge.models.load_stack` loads the folder, which transformers refuses. A candidate made of
    earlier ones needs their `lineage`, which is written into `recipe.yaml` and drawn in `family.png`. `README.md` is the model
    card, and `evomerge merge recipe.yaml` writes the same bytes again. `dtype` (float32, bfloat16, float16) is that of the weights on
    disk, by default the base's; the merge is rounded to it once. It is made on `device`, with the same bytes: see `placement`.

    Where heads stay outside of merges, `head` names the model of the pool whose head and configuration the export has; None
    writes a complete checkpoint for each expert with a head, into a folder of its name inside `out`. `watch` receives the progress
    of `merging` in bytes, and of the phases within, see `Inputs.watch`. Raises
    `RecipeError`, `CheckpointError`, or `ModelError` for a stack that transformers cannot load, before anything is written, and
    `CheckpointError` for a tensor that is not finite; then nothing is left of what was written.
    """
    check(recipe)
    check_real(pool)
    check_free(out)
    if head is not None and head not in pool.heads:
        known = nearest(head, pool.heads) if pool.heads else "heads are merged in this pool; leave it out"
        raise RecipeError(f"`head` is `{head}`, which has no head of its own; {known}")
    if head == "base" and pool.vocabulary is not None:
        raise RecipeError("`head` is `base`, and with `tokenizer` the base's own head is left out; expected an expert")
    if pool.heads and head is None:
        out.parent.mkdir(parents=True, exist_ok=True)
        densities: Mapping[str, float] = {}
        with files.new_folder(out) as new:
            for name in [name for name, one in pool.heads.items() if one.own and name != "base"]:
                densities = export(
                    recipe,
                    pool,
                    new / name,
                    lineage=lineage,
                    results=results,
                    candidate=candidate,
                    head=name,
                    dtype=dtype,
                    shard_bytes=shard_bytes,
                    watch=watch,
                    device=device,
                )
        return densities
    with tempfile.TemporaryDirectory(prefix="evomerge-members-") as scratch:
        members = Members(folder=Path(scratch))
        members.lineage |= lineage or {}
        builder = Builder(pool, members=members, watch=watch, placement=Placement(find(device)))
        built = builder.build_model(recipe)
        checkpoint = cast(built, dtype, builder.load)
        models = [pool.base, *(pool.experts[name] for name in family.used_experts(recipe, members.lineage))]
        used = [model.model if isinstance(model, Aligned) else model for model in models]
        sources = [source for source in used if isinstance(source, Folder)]  # what an adapter adds to its base is small
        extra: dict[str, str | bytes] = {}
        folding = None
        config = pool.config
        if recipe.root.reshapes and isinstance(built, Condensed | Narrowed | Zipped):
            sources, config = [], built.config  # their tensors have other shapes
        if isinstance(checkpoint, Stacked):
            sources = []  # their layers have other indices
            config, maps = stitches.saved(checkpoint, builder.stack_config(checkpoint))
            extra |= maps
            scales = [layer.scale for layer in checkpoint.layers]
            if maps and any(scale != 1 for scale in scales):
                extra[SCALES] = json.dumps({"scales": scales}) + "\n"
            elif any(scale != 1 for scale in scales):
                from evomerge.models import LiveModel
                from evomerge.models.folding import fold

                folding = fold(LiveModel(pool.open_base()), checkpoint)
                if folding.stack is None:
                    extra[SCALES] = json.dumps({"scales": scales}) + "\n"
                else:
                    checkpoint = folding.stack
        tokenizer = pool.tokenizer
        like: Folder | Aligned = pool.base
        if head is not None:
            checkpoint = cast(pool.heads[head].on(checkpoint), dtype)
            like = pool.heads[head].model
            config = like.config
            if tokenizer is None and has_tokenizer(pool.base.path):
                tokenizer = pool.base.path
        if head is not None and (settings := pool.heads[head].settings) is not None:
            ids = with_token_ids({}, tokenizer).items()
            config = {**settings, **{key: number for key, number in ids if number is not None}}
        else:
            config = with_token_ids(config, tokenizer)
        config = with_dtype(config, checkpoint, like)  # an expert, or layers of one, may be in its own dtype
        if config is not like.config or like.settings != like.path:
            extra["config.json"] = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        base = pool.base.path.absolute()
        if recipe.members:
            from evomerge.report.figures import png

            extra["family.png"] = png(family.draw(recipe, members.lineage))
        extra["README.md"] = model_card(
            recipe,
            hub_name(base),
            list(pool.experts),
            results,
            candidate,
            folding,
            members.lineage,
            pool.like,
            head,
            pool.vocabulary,
            [*built.stitches] if isinstance(built, Stacked) else [],
        )
        extra["recipe.yaml"] = recipe_file(recipe, pool, members.lineage, dtype, head)
        watch("merging", 0, sum(entry.nbytes for entry in checkpoint.info.values()))
        save(
            checkpoint,
            out,
            like=like.path,
            tokenizer=tokenizer,
            extra=extra,
            shard_bytes=shard_bytes,
            sources=sources,
            progress=lambda done, total: watch("merging", done, total),
        )
        return built.densities() if isinstance(built, Merged) else {}


def made_of(recipe: Recipe, lineage: Mapping[str, Recipe]) -> list[Recipe]:
    """Return a recipe, and the earlier candidates that it is made of."""
    return [recipe, *(ancestor for _, ancestor in ancestors(recipe, lineage))]


def needed(recipe: Recipe, lineage: Mapping[str, Recipe]) -> list[str]:
    """Return the kinds of statistics that a recipe reads, or one of the earlier candidates that it is made of."""
    return sorted({kind for one in made_of(recipe, lineage) for kind in needs(one)})


def recipe_file(
    recipe: Recipe, pool: Pool, lineage: Mapping[str, Recipe], dtype: str | None = None, head: str | None = None
) -> str:
    """Return the text of a `recipe.yaml` from which `evomerge merge` makes the model of `recipe` again, with this `head`."""
    experts = {name: _reference(expert.path) for name, expert in pool.experts.items()}
    file: dict[str, Any] = {"pool": {"base": _reference(pool.base.path), "experts": experts}, "recipe": recipe.data}
    if pool.vocabulary is not None:
        file["pool"]["tokenizer"] = pool.vocabulary.choice.model_dump(exclude_defaults=True) or "union"
    if pool.like is not None:
        file["like"] = pool.like
    if dtype is not None:
        file["dtype"] = dtype
    if head is not None:
        file["head"] = head
    elif pool.heads:
        file["heads"] = "own"
    if pool.evidence is not None and (kinds := needed(recipe, lineage)):
        evidence = pool.evidence
        used, made = recipe.experts or list(pool.experts), made_of(recipe, lineage)
        models = list(dict.fromkeys(model for one in made for model in one.models))
        experts_of = {kind: models if "@" in kind else used for kind in kinds}
        if "repair" in experts_of:
            experts_of["repair"] = list(dict.fromkeys(repair.id for one in made for repair in one.repairs))
        file["statistics"] = {k: {name: evidence.digest(k, name) for name in names} for k, names in experts_of.items()}
    if recipe.members:
        file["members"] = family.tree(recipe, lineage)
    return strict_yaml.text(file)


def _reference(folder: Path) -> str:
    """Return what names a model in `recipe.yaml`, whose reader takes relative paths from the file's folder."""
    return hub.name_of(folder) or str(folder.absolute())


def check_real(pool: Pool) -> None:
    """Raise `PoolError` for a pool of shuffled experts, whose merges are of no use to anyone."""
    if pool.shuffled is not None:
        raise PoolError(
            "the experts are shuffled, as a control's: there is nothing to export; export from the study itself"
        )


def hub_name(folder: Path) -> str:
    """Return the name of a model's folder, or its `OWNER/NAME` where the folder is a snapshot in the hub's cache."""
    parts = folder.parent.parent.name.split("--")
    return "/".join(parts[1:]) if folder.parent.name == "snapshots" and parts[0] == "models" else folder.name
