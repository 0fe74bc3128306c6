"""Members: the weights of a study's earlier candidates, for as long as a driver may use them as parents.

Weights are only the cache of a recipe. They are in memory up to a budget, then on disk; a candidate in neither is built
again from its lineage: the recipes of its ancestors, back to the models of the pool.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.folder import Checkpoint, Computed
from evomerge.checkpoints.header import TensorInfo
from evomerge.errors import RecipeError
from evomerge.recipe import Base, Expert, Recipe, base


class HeldCheckpoint(Computed):
    """A checkpoint whose tensors are in memory, or mapped from one file."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Hold `tensors`, which must not change."""
        info = {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        super().__init__(info, tensors.__getitem__)
        self.tensors = tensors
        self.nbytes = sum(entry.nbytes for entry in info.values())


class Members:
    """Weights of candidates by their recipes' ids.

    `lineage` maps the id of every candidate so far to its recipe; the caller adds new candidates. It starts with the base.
    """

    def __init__(self, budget: int = 1 << 30, folder: Path | None = None, *, shared: bool = False) -> None:
        """Keep up to `budget` bytes in memory and the rest in `folder`; a `shared` folder gets every candidate at once."""
        self.lineage: dict[str, Recipe] = {base().id: base()}
        self._budget = budget
        self._folder = folder
        self._shared = shared
        self._held: OrderedDict[str, HeldCheckpoint] = OrderedDict()  # in the order of last use

    def keep(self, identity: str, checkpoint: Checkpoint) -> HeldCheckpoint:
        """Compute all tensors of a candidate, keep them, and return its checkpoint."""
        held = self._held[identity] = HeldCheckpoint({name: checkpoint.tensor(name) for name in checkpoint.info})
        if self._shared and self._folder is not None:
            self._save(identity, held)
        while sum(entry.nbytes for entry in self._held.values()) > self._budget and len(self._held) > 1:
            oldest, entry = self._held.popitem(last=False)
            if self._folder is not None:
                self._save(oldest, entry)
        return held

    def find(self, identity: str) -> HeldCheckpoint | None:
        """Return a candidate's checkpoint from memory or from disk, None if it is in neither."""
        if identity in self._held:
            self._held.move_to_end(identity)
            return self._held[identity]
        return HeldCheckpoint(load_file(self._path(identity))) if self.on_disk(identity) else None

    def on_disk(self, identity: str) -> bool:
        """Return whether a candidate's weights are in the folder."""
        return self._folder is not None and self._path(identity).is_file()

    def retain(self, identities: Collection[str]) -> None:
        """Drop all other candidates, in memory and on disk."""
        for identity in self._held.keys() - set(identities):
            del self._held[identity]
        for path in self._folder.glob("[0-9a-f]*.safetensors") if self._folder is not None else ():
            if path.stem not in identities:
                path.unlink(missing_ok=True)

    def missing(self, recipe: Recipe) -> list[str]:
        """Return the ancestors of `recipe` that must be built again before it, parents before children.

        Raises `RecipeError` for an ancestor that is not in the lineage.
        """
        graph = {
            identity: parent.members
            for identity, parent in ancestors(recipe, self.lineage, lambda identity: self.find(identity) is not None)
            if not isinstance(parent.root, Base | Expert) and identity not in self._held and not self.on_disk(identity)
        }
        return [identity for identity in TopologicalSorter(graph).static_order() if identity in graph]

    def _path(self, identity: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{identity}.safetensors"

    def _save(self, identity: str, checkpoint: HeldCheckpoint) -> None:
        path = self._path(identity)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f".{path.name}.{os.getpid()}")
            save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, new)
            new.replace(path)


def ancestors(
    recipe: Recipe, lineage: Mapping[str, Recipe], complete: Callable[[str], bool] = lambda identity: False
) -> Iterator[tuple[str, Recipe]]:
    """Yield the id and the recipe of each earlier candidate that `recipe` is made of, parents before grandparents.

    Ancestors of `complete` candidates are left out. Raises `RecipeError` for a candidate that is not in `lineage`.
    """
    waiting = list(recipe.members)
    seen: set[str] = set()
    for identity in waiting:
        if identity in seen:
            continue
        seen.add(identity)
        parent = recipe_of(identity, lineage)
        yield identity, parent
        if not complete(identity):
            waiting.extend(parent.members)


def recipe_of(identity: str, lineage: Mapping[str, Recipe]) -> Recipe:
    """Return the recipe of an earlier candidate. Raises `RecipeError` where `lineage` lacks it."""
    if identity not in lineage:
        msg = f"no candidate `{identity[:12]}…` is in the lineage, so its weights cannot be built; expected its recipe under `members`, as in the `recipe.yaml` of an exported checkpoint"
        raise RecipeError(msg)
    return lineage[identity]
