"""export_adapter: the merge of a recipe as a LoRA adapter of its base, with what its rank loses."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from evomerge.build import Builder
from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.factors import combine, energy, truncate
from evomerge.checkpoints.folder import all_finite
from evomerge.checkpoints.members import Members
from evomerge.checkpoints.peft_folder import PeftFolder
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.save import check_free
from evomerge.errors import CheckpointError, RecipeError
from evomerge.merging import check
from evomerge.recipe import Recipe, StackNode
from evomerge.report import family
from evomerge.report.card import adapter_card
from evomerge.report.export import check_real, hub_name, recipe_file


@dataclass(slots=True)
class Kept:
    """How much of the changes of one kind of matrix an adapter keeps."""

    matrices: int = 0
    exact: int = 0
    """Matrices whose factors are those of the pool's adapters, side by side."""
    rank: int = 0
    """The largest rank."""
    energy: float = 0.0
    """The sum of the squares of all changes."""
    lost: float = 0.0
    """The part of `energy` that the factors lack."""

    @property
    def share_lost(self) -> float:
        """The lost share of the energy, in [0, 1]."""
        return self.lost / self.energy if self.energy else 0.0

    def __add__(self, other: "Kept") -> "Kept":
        return Kept(
            self.matrices + other.matrices,
            self.exact + other.exact,
            max(self.rank, other.rank),
            self.energy + other.energy,
            self.lost + other.lost,
        )


@dataclass(slots=True)
class Extraction:
    """What an adapter holds: factors by kind of matrix, and complete tensors."""

    kinds: dict[str, Kept] = field(default_factory=dict)
    elements: int = 0
    """Number of elements of all factors."""
    complete: dict[str, list[str]] = field(default_factory=dict)
    """Names of the tensors that are stored complete: of `biases`, and by module."""

    @property
    def total(self) -> Kept:
        """All kinds together."""
        return sum(self.kinds.values(), Kept())


def export_adapter(
    recipe: Recipe,
    pool: Pool,
    out: Path | None,
    *,
    rank: int | None = None,
    share: float | None = None,
    lineage: Mapping[str, Recipe] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Extraction:
    """Write the model that `recipe` makes of `pool` to the folder `out`, as a PEFT LoRA adapter of the pool's base; None only measures.

    A matrix that is a weighted sum of the pool's LoRA adapters has their factors, side by side, where the ranks add up to at most `rank`. The
    factors of any other are its largest singular vectors: at most `rank`, or as many as keep `share` of the energy, the sum of the squares of its change.
    Without both, every matrix must be such a sum. What is no matrix is stored complete. One matrix is in memory at a time, beside all
    factors. `progress` gets bytes read and in all. Raises `RecipeError` for a stack and for a matrix that needs a rank, and
    `CheckpointError` for a tensor that is not finite, or that no adapter can change; then nothing is written.
    """
    check(recipe)
    check_real(pool)
    if out is not None:
        check_free(out)
    if isinstance(recipe.root, StackNode):
        raise RecipeError("a stack has layers of its own, so it is no adapter of the base; leave out `--as-adapter`")
    if recipe.root.reshapes:
        raise RecipeError("a model of other shapes than the base's is no adapter of it; leave out `--as-adapter`")
    with tempfile.TemporaryDirectory(prefix="evomerge-members-") as scratch:
        members = Members(folder=Path(scratch))
        members.lineage |= lineage or {}
        builder = Builder(pool, members=members)
        checkpoint = builder.build(recipe)
        used = [pool.experts[name] for name in family.used_experts(recipe, members.lineage)]
        adapters = [expert for expert in used if isinstance(expert, Adapter)]
        folder, extraction, done = PeftFolder(pool), Extraction(), 0
        for name, entry in pool.merged.items():
            base = pool.base.tensor(name).float()
            change = builder.load(checkpoint, name).float() - base
            if not all_finite(change):
                raise CheckpointError(f"tensor `{name}` of the merge holds NaN or infinity; nothing was written")
            if change.any() and not folder.is_matrix(name):
                folder.replace(name)
            elif change.any():
                parts = [part for part in (adapter.factors(name) for adapter in adapters) if part is not None]
                whole = energy(change)
                summed = combine(change, parts, energy(base) ** 0.5 + whole**0.5) if parts and share is None else None
                exact = summed is not None and (rank is None or summed.rank <= rank)
                if summed is None or not exact:
                    if rank is None and share is None:
                        raise RecipeError(_needs_rank(name))
                    summed = truncate(change, name, rank=rank, share=share)
                folder.add(name, summed)
                kind = pool.layout.place(name).kind
                lost = 0.0 if exact else min(energy(change - summed.product), whole)
                kept = Kept(1, int(exact), summed.rank, whole, lost)
                extraction.kinds[kind] = extraction.kinds.get(kind, Kept()) + kept
            done += entry.nbytes
            progress(done, pool.nbytes)
            checkpoint.forget()
        extra = {
            "recipe.yaml": recipe_file(recipe, pool, members.lineage),
            "README.md": adapter_card(recipe, hub_name(pool.base.path.absolute()), extraction.total.share_lost),
        }
        extraction.complete = folder.finish()
        if out is not None:
            folder.write(out, checkpoint, extra)
        extraction.elements = folder.elements
    if done < pool.nbytes:  # integers, and what is stored twice
        progress(pool.nbytes, pool.nbytes)
    return extraction


def _needs_rank(name: str) -> str:
    return f"the change of `{name}` is no weighted sum of LoRA adapters of the pool, so its rank is not known; give `--rank R` or `--energy SHARE`, and the command says what they lose"
