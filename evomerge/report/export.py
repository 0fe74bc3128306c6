"""export: a recipe's merge as a checkpoint folder that transformers loads, with the recipe beside the weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from evomerge import checkpoint, strict_yaml
from evomerge.build import Builder
from evomerge.checkpoint import Folder
from evomerge.merging import check
from evomerge.pool import Pool
from evomerge.recipe import Recipe
from evomerge.report.card import model_card
from evomerge.report.results import Candidate, Results


def export(
    recipe: Recipe,
    pool: Pool,
    out: Path,
    *,
    results: Results | None = None,
    candidate: Candidate | None = None,
    shard_bytes: int = 2 << 30,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the model that `recipe` makes of `pool` to the folder `out`, which appears whole or not at all.

    Configuration and tokenizer are the base's. `README.md` is the model card; `recipe.yaml` is what
    `evomerge merge` makes the same bytes from. `progress` gets bytes done and in all. Raises `RecipeError` or
    `CheckpointError` before anything is written.
    """
    check(recipe)
    experts = {name: str(pool.experts[name].path) for name in pool.experts}
    file: dict[str, Any] = {"pool": {"base": str(pool.base.path), "experts": experts}, "recipe": recipe.data}
    extra = {
        "README.md": model_card(recipe, pool.base.path.name, list(pool.experts), results, candidate),
        "recipe.yaml": strict_yaml.text(file),
    }
    used = [pool.base, *(pool.experts[name] for name in recipe.experts)]
    checkpoint.save(
        Builder(pool).build(recipe),
        out,
        like=pool.base.path,
        extra=extra,
        shard_bytes=shard_bytes,
        sources=[source for source in used if isinstance(source, Folder)],  # what an adapter adds to its base is small
        progress=progress,
    )
