"""Members: the weights of a study's earlier candidates, for as long as a driver may make new ones of them.

Weights are only the cache of a recipe. They are in memory up to a budget, then on disk, and what is in neither is built
again from its lineage: the recipes of its ancestors, back to the pool's own models.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.folder import Checkpoint, TensorInfo
from evomerge.errors import RecipeError
from evomerge.recipe import Base, Expert, Recipe, base


class Kept:
    """A checkpoint whose tensors are in memory, or mapped from one file."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Hold `tensors`, which nobody may write into."""
        self.tensors = tensors
        self.info: Mapping[str, TensorInfo] = {
            name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()
        }
        self.nbytes = sum(entry.nbytes for entry in self.info.values())

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in its storage dtype."""
        return self.tensors[name]

    def write(self, name: str, out: torch.Tensor) -> None:
        """Copy the tensor into `out`."""
        out.copy_(self.tensors[name])

    def forget(self) -> None:
        """Do nothing: what is kept stays."""


class Members:
    """Weights of candidates by their recipes' ids.

    `lineage` has the recipe of every candidate that was ever asked for; whoever asks for one puts it there. The base may
    always be named.
    """

    def __init__(self, budget: int = 1 << 30, folder: Path | None = None, *, shared: bool = False) -> None:
        """Keep up to `budget` bytes in memory, and more in `folder`, if there is one; in a `shared` one all, at once."""
        self.lineage: dict[str, Recipe] = {base().id: base()}
        self._budget = budget
        self._folder = folder
        self._shared = shared
        self._held: OrderedDict[str, Kept] = OrderedDict()  # in the order of their last use

    def keep(self, identity: str, checkpoint: Checkpoint) -> Kept:
        """Make all tensors of a candidate, keep them, and return its checkpoint."""
        kept = Kept({name: checkpoint.tensor(name) for name in checkpoint.info})
        self._held[identity] = kept
        if self._shared and self._folder is not None:
            self._save(identity, kept)
        while sum(entry.nbytes for entry in self._held.values()) > self._budget and len(self._held) > 1:
            oldest, entry = self._held.popitem(last=False)
            if self._folder is not None:
                self._save(oldest, entry)
        return kept

    def find(self, identity: str) -> Kept | None:
        """Return a candidate's checkpoint if it is in memory or on disk."""
        if identity in self._held:
            self._held.move_to_end(identity)
            return self._held[identity]
        return Kept(load_file(self._path(identity))) if self.on_disk(identity) else None

    def on_disk(self, identity: str) -> bool:
        """Return whether a candidate's weights are in the folder."""
        return self._folder is not None and self._path(identity).is_file()

    def retain(self, identities: Collection[str]) -> None:
        """Let go of all others, in memory and on disk."""
        for identity in [identity for identity in self._held if identity not in identities]:
            del self._held[identity]
        if self._folder is None or not self._folder.is_dir():
            return
        for path in self._folder.glob("[0-9a-f]*.safetensors"):
            if path.stem not in identities:
                path.unlink(missing_ok=True)

    def missing(self, recipe: Recipe) -> list[str]:
        """Return the ancestors of `recipe` that must be built again before it, in an order in which that can be done.

        Raises `RecipeError` for one whose recipe is not known.
        """
        ordered: list[str] = []
        seen: set[str] = set()
        stack = [(identity, False) for identity in reversed(recipe.members)]
        while stack:  # depth first, without recursion: a lineage may be thousands of generations long
            identity, done = stack.pop()
            if done:
                ordered.append(identity)
            elif identity not in seen:
                seen.add(identity)
                own = recipe_of(identity, self.lineage)
                if isinstance(own.root, Base | Expert) or self.find(identity) is not None:
                    continue
                stack.append((identity, True))
                stack.extend((parent, False) for parent in reversed(own.members))
        return ordered

    def _path(self, identity: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{identity}.safetensors"

    def _save(self, identity: str, kept: Kept) -> None:
        path = self._path(identity)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f".{path.name}.{os.getpid()}")
            save_file({name: tensor.contiguous() for name, tensor in kept.tensors.items()}, new)
            new.replace(path)


def ancestors(
    recipe: Recipe, lineage: Mapping[str, Recipe], known: Callable[[str], bool] = lambda identity: False
) -> Iterator[tuple[str, Recipe]]:
    """Yield each earlier candidate that `recipe` is made of, parents before grandparents, with its own recipe.

    The ancestors of those that are `known` are left out. Raises `RecipeError` for one whose recipe is not in `lineage`.
    """
    waiting = list(recipe.members)
    seen: set[str] = set()
    for identity in waiting:
        if identity in seen:
            continue
        seen.add(identity)
        own = recipe_of(identity, lineage)
        yield identity, own
        if not known(identity):
            waiting.extend(own.members)


def recipe_of(identity: str, lineage: Mapping[str, Recipe]) -> Recipe:
    """Return the recipe of an earlier candidate. Raises `RecipeError` where it is not known."""
    if identity not in lineage:
        msg = (
            f"no candidate `{identity[:12]}…` is known here, so its weights cannot be made; expected its recipe under "
            "`members`, as in the `recipe.yaml` of an exported checkpoint"
        )
        raise RecipeError(msg)
    return lineage[identity]
