"""build(recipe, pool) -> Checkpoint: the only interpreter of recipes.

It is lazy: a tensor is merged when it is read, so a merge larger than memory streams to disk, and a worker writes a
candidate into a live model in place. Nested merges stay in fp32; the one cast is at the end, to the base's storage dtype.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch

from evomerge import files
from evomerge.alignment import Aligner, Condensed, Narrowed, Permuted, Zipped, stitched
from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.aligned import Aligned
from evomerge.checkpoints.corrected import Corrected
from evomerge.checkpoints.folder import Checkpoint, Computed
from evomerge.checkpoints.fused import Matrix
from evomerge.checkpoints.members import HeldCheckpoint, Members, recipe_of
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.shuffled import Shuffled
from evomerge.checkpoints.stack import Stacked, assembled, check_mergeable, origin
from evomerge.errors import RecipeError, nearest
from evomerge.merging import (
    Inputs,
    MergeGradient,
    Pipeline,
    Pulled,
    Statistics,
    Store,
    Watch,
    inputs_sloped,
    unwatched,
)
from evomerge.models.saved_stack import StackConfigs
from evomerge.placement import Key, Placement
from evomerge.recipe import (
    AlignNode,
    Base,
    CondenseNode,
    Expert,
    Member,
    Merge,
    MergeNode,
    NarrowNode,
    PleasNode,
    Recipe,
    RepairNode,
    StackNode,
    ZipItNode,
)
from evomerge.recipe.form import KeyPath


class Builder:
    """Builds the recipes of one pool, and caches what is independent of a recipe's parameters."""

    def __init__(
        self,
        pool: Pool,
        *,
        search: bool = False,
        members: Members | None = None,
        watch: Watch = unwatched,
        placement: Placement | None = None,
    ) -> None:
        """Build from `pool`, and from a study's earlier candidates `members`.

        For a `search`, which builds many candidates, compiled code, prepared tables, the tensors an adapter changes, those
        whose rows the pool's vocabulary moves and those that are shuffled are cached, and files stay mapped. Without, each model is built once, in little
        memory. The bytes are the same. `watch` receives the progress of the phases `measuring` and `compiling`. Merges run
        where `placement` says, by default on the CPU, with the same bytes again.
        """
        self.pool = pool
        self.placement = Placement() if placement is None else placement
        self._labels = {id(model): label for label, model in {"base": pool.base, **pool.experts}.items()}
        self.members = Members() if members is None else members
        self.store = Store(files.cache() / "prepared")
        self.search, self.watch = search, watch
        self._mapped: set[str] = set()  # names of the tensors whose pages count as memory of this process
        self._rebuilt: dict[str, HeldCheckpoint] = {}  # ancestors that are being rebuilt

    def build(self, recipe: Recipe) -> Checkpoint:
        """Return the checkpoint that `recipe` describes; nothing is merged yet. Raises `RecipeError`."""
        if self.search and recipe.root.reshapes:
            raise RecipeError(
                f"{recipe.root.key}: no model in memory has its shapes; expected it in a recipe, not in a search or a score: type `evomerge merge RECIPE "
                "-o FOLDER`, then `evomerge score FOLDER`"
            )
        match recipe.root:
            case Base():
                return self.pool.base
            case Expert(expert=name):
                if name not in self.pool.experts:
                    raise RecipeError(f"the pool has no expert `{name}`; {nearest(name, self.pool.experts)}")
                return self.pool.experts[name]
            case Member(member=identity):
                return self._member(identity)
            case MergeNode(merge=merge):
                return Merged(merge, self)
            case StackNode(stack=stack):
                return stitched(stack, assembled(stack, self.build, self.pool), self.pool, self.store)
            case AlignNode(align=align):
                return self._aligner.aligned(align, self.build)
            case CondenseNode(condense=condense):
                return self._aligner.condensed(condense, self.build(condense.source), self.load)
            case NarrowNode(narrow=narrow):
                return self._aligner.narrowed(narrow, self.build(narrow.source), self.load)
            case PleasNode(pleas=node) | ZipItNode(zipit=node):
                return self._aligner.zipped(node, self.build, self.load)
            case RepairNode(repair=repair):
                corrections = Statistics.of(self.pool.evidence, [recipe.id])
                corrections.digests("repair")  # there must be one
                return Corrected(
                    self.build(repair.source), lambda name: corrections.tables("repair", name)[0], self.load
                )

    def build_model(self, recipe: Recipe) -> Checkpoint:
        """Return `build(recipe)` as a model to score or to save. Raises `ModelError` for a stack that could not be saved."""
        built = self.build(recipe)
        if isinstance(built, Stacked):
            self.stack_config(built)
        return built

    def known_as(self, recipe: Recipe) -> Recipe:
        """Return the pool's model that an earlier candidate equals, as a recipe; any other recipe unchanged."""
        root = recipe.root
        candidate = recipe_of(root.member, self.members.lineage) if isinstance(root, Member) else recipe
        return candidate if isinstance(candidate.root, Base | Expert) else recipe

    def _member(self, identity: str) -> Checkpoint:
        """Return an earlier candidate's checkpoint: a model of the pool, kept weights, or weights rebuilt now."""
        candidate = recipe_of(identity, self.members.lineage)
        if isinstance(candidate.root, Base | Expert):
            return self.build(candidate)
        if candidate.root.outermost:
            raise RecipeError(
                f"the earlier candidate `{identity[:12]}` is a stack with maps between its layers; nothing can be made of it"
            )
        held = self._rebuilt.get(identity) or self.members.find(identity)
        if held is not None:
            return held
        missing = (*self.members.missing(candidate), identity)
        recipes = {member: recipe_of(member, self.members.lineage) for member in missing}
        last = {parent: child for child, recipe in recipes.items() for parent in recipe.members}
        for member, recipe in recipes.items():
            held = self._rebuilt[member] = self.members.keep(member, self.build(recipe))
            for parent in recipe.members:  # an ancestor is in memory until its last child is built
                if last[parent] == member:
                    self._rebuilt.pop(parent, None)
        del self._rebuilt[identity]
        assert held is not None
        return held

    def stack_config(self, stack: Stacked) -> dict[str, Any]:
        """Return the `config.json` of a stack. Raises `ModelError` for one that plain transformers could not make from it."""
        return self._stack_configs.of([layer.index for layer in stack.layers])

    @cached_property
    def _aligner(self) -> Aligner:
        return Aligner(self.pool, self.store)

    @cached_property
    def _stack_configs(self) -> StackConfigs:
        return StackConfigs(self.pool.config)

    def load(self, checkpoint: Checkpoint, name: str, number: int | None = None) -> torch.Tensor:
        """Return an input's tensor, or its matrix of this number, on the host: of a nested merge before its cast, of a folder as it is stored."""
        checkpoint, name = origin(checkpoint, name)
        if isinstance(checkpoint, Merged):
            return checkpoint.fp32(name, number).cpu()
        if isinstance(checkpoint, Condensed | Narrowed | Zipped):
            return self._part(name, number, checkpoint.fp32(name))
        if isinstance(checkpoint, Permuted):
            return self._part(name, number, self._permuted(checkpoint, name))
        if isinstance(checkpoint, Corrected):
            return self._part(name, number, checkpoint.read(name))
        if not self.search or not isinstance(checkpoint, Adapter | Aligned | Shuffled) or not checkpoint.makes(name):
            return self._part(name, number, checkpoint.tensor(name))
        digest = self.pool.digests[self._labels[id(checkpoint)]]
        tables = self.store.prepared(
            ("adapter", digest, name),
            checkpoint.info[name].numel,
            lambda: {"tensor": checkpoint.tensor(name)},
        )
        return self._part(name, number, tables["tensor"])

    def _permuted(self, aligned: Permuted, name: str) -> torch.Tensor:
        """Return a tensor of an aligned model, which a search keeps where the model is one of the pool's."""

        def made() -> dict[str, torch.Tensor]:
            return {"tensor": aligned.read(name, partial(self.load, aligned.source))}

        if not self.search or id(aligned.source) not in self._labels:
            return made()["tensor"]
        return self.store.prepared((*aligned.key, name), aligned.info[name].numel, made)["tensor"]

    def _part(self, name: str, number: int | None, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if number is None else self.pool.layout.matrices(name)[number].of(tensor)

    def load_all(self, checkpoints: Sequence[Checkpoint], name: str, number: int) -> list[torch.Tensor]:
        """Return the matrix of each input, see `load`; before that, files are closed of which much is mapped."""
        if not self.search and name not in self._mapped:
            info = self.pool.base.info
            if sum(info[mapped].nbytes for mapped in (*self._mapped, name)) * len(checkpoints) > MAPPED:
                self.pool.forget()
                self._mapped.clear()
            self._mapped.add(name)
        return [self.load(checkpoint, name, number) for checkpoint in checkpoints]

    def fetch_all(self, checkpoints: Sequence[Checkpoint], name: str, number: int) -> list[torch.Tensor]:
        """Return the matrix of each input where merges run: a model of the pool may be there, a nested merge is made there."""
        sources = [origin(checkpoint, name) for checkpoint in checkpoints]
        keys = {
            i: (self._labels[id(one)], at, number) for i, (one, at) in enumerate(sources) if id(one) in self._labels
        }
        placed = dict(zip(keys, self.placement.fetch([*keys.values()], self._on_host), strict=True))
        for i, (one, at) in enumerate(sources):
            if isinstance(one, Merged):
                placed[i] = one.fp32(at, number)
            elif i not in placed:
                placed[i] = self.placement.send(self.load(one, at, number))
        return [placed[i] for i in range(len(sources))]

    def _on_host(self, key: Key) -> torch.Tensor:
        label, name, number = key
        return self.load(self.pool.base if label == "base" else self.pool.experts[label], name, number)


MAPPED = 256 << 20
"""Bytes of the pool's files that stay mapped while a model is built once, beside the tensors of one name."""

VARIANCE = "running_var"
"""Last part of the names of the variances that batch normalisation measured in training."""

COMPILED = 32_000_000
"""Minimum number of a model's parameters for which compiling its merges, which takes seconds, pays off in the first few."""


class Merged(Computed):
    """The checkpoint of a merge: shapes, names and dtypes of the base, tensors merged when they are read."""

    def __init__(self, merge: Merge, builder: Builder) -> None:
        """Prepare to merge. Raises `RecipeError`."""
        self._pool = builder.pool
        sources = [builder.build(inner) for inner in merge.inputs]
        models = (self._pool.base, *sources)
        self._merge, self._inputs, self._load = merge, sources, builder.load
        self._device = builder.placement.device
        for label, source in zip(merge.labels, sources, strict=True):
            if isinstance(source, Stacked):
                check_mergeable(label, source, self._pool.base.info)
        recipes = [builder.known_as(inner) for inner in merge.inputs]
        layout = self._pool.layout
        self._matrices = {name: layout.matrices(name) for name in self._pool.merged}
        by_name = {matrix.name: matrix for parts in self._matrices.values() for matrix in parts}

        def fetch(name: str) -> Sequence[torch.Tensor]:
            return builder.fetch_all(models, by_name[name].tensor, by_name[name].number)

        inputs = Inputs(
            names=by_name,
            ids=lambda: [
                self._pool.digests["base"],
                *(self._pool.digests.get(recipe.root.label or "", recipe.id) for recipe in recipes),
            ],
            size=lambda name: self._size(by_name[name]),
            place=lambda name: layout.place(by_name[name].tensor),
            load=lambda name: builder.load_all(models, by_name[name].tensor, by_name[name].number),
            watch=builder.watch,
            nested={i for i, recipe in enumerate(recipes, 1) if not isinstance(recipe.root, Base | Expert)},
            placement=builder.placement,
            statistics=Statistics.of(self._pool.evidence, [recipe.root.label or "" for recipe in recipes]),
            fetch=fetch if builder.placement.copies else None,
        )
        compiled = self._pool.parameters >= COMPILED
        self._pipeline = Pipeline(merge, inputs, builder.store, compile=compiled, once=not builder.search)
        super().__init__(self._pool.base.info, lambda name: self._make(name, self.info[name].dtype).cpu(), models)

    def _size(self, matrix: Matrix) -> int:
        return matrix.of(torch.empty(self.info[matrix.tensor].shape, device="meta")).numel()

    def fp32(self, name: str, number: int | None = None) -> torch.Tensor:
        """The merged tensor, or its matrix of this number, before the last cast, where merges run."""
        if number is None:
            return self._make(name, torch.float32)
        matrix = self._matrices[name][number]
        out = torch.empty(self.info[name].shape, dtype=torch.float32, device="meta")
        merged = torch.empty(matrix.of(out).shape, dtype=torch.float32, device=self._device)
        self._write(matrix, merged)
        return merged

    def write(self, name: str, out: torch.Tensor) -> None:
        """Merge the tensor into `out`: directly where its dtype is the base's, else rounded to that first."""
        direct = out.device == self._device and out.dtype == self.info[name].dtype and out.is_contiguous()
        source = self._pool.aliases.get(name, name)
        if direct and source in self._pool.merged:
            self._merge_into(source, out)
        else:
            out.copy_(self._make(name, self.info[name].dtype))

    @cached_property
    def _gradient(self) -> MergeGradient:
        return MergeGradient(self._merge, self._pipeline)

    @cached_property
    def _inner(self) -> Mapping[int, "Merged"]:
        """Those of the inputs that are merges and to which slopes pass, by number."""
        merges = {i: source for i, source in enumerate(self._inputs) if isinstance(source, Merged)}
        return merges if merges and inputs_sloped(self._merge) else {}

    def pull(
        self, name: str, gradient: torch.Tensor, take: "Callable[[Merged, KeyPath, str, Pulled], None]", at: KeyPath
    ) -> None:
        """Pass on the derivatives of <gradient, tensor> by this merge, whose JSON data is at the key path `at`, and its inputs.

        `gradient` is float32, of the tensor's shape.
        """
        for matrix in self._matrices.get(self._pool.aliases.get(name, name), ()):
            self.pull_matrix(matrix, matrix.of(gradient).contiguous(), take, at)

    def pull_matrix(
        self,
        matrix: Matrix,
        gradient: torch.Tensor,
        take: "Callable[[Merged, KeyPath, str, Pulled], None]",
        at: KeyPath,
    ) -> None:
        """Pass on the derivatives by one matrix, as `pull` does by all of a tensor."""
        pulled = self._gradient.pull(matrix.name, gradient, self._inner)
        take(self, at, matrix.name, pulled)
        for i, inner in pulled.inputs.items():
            self._inner[i].pull_matrix(matrix, inner.view(gradient.shape), take, (*at, "inputs", i, "merge"))

    def numbers(self, name: str, pulled: Pulled) -> Iterator[tuple[KeyPath, float]]:
        """Yield the derivatives that were pulled of a matrix, by key path: see `MergeGradient.numbers`."""
        return self._gradient.numbers(name, pulled)

    def linear(self, name: str) -> bool:
        """Return whether slopes through a tensor are inner products with its inputs' tensors, for any gradient."""
        return not self._inner and all(self._gradient.linear(matrix.name) for matrix in self._matrices.get(name, ()))

    def moved(self) -> list[str]:
        """Return the names of the tensors that the numbers of its recipe change."""
        return [
            name
            for name, parts in self._matrices.items()
            if self._inner or any(self._pipeline.depends(matrix.name) for matrix in parts)
        ]

    def densities(self) -> dict[str, float]:
        """The share of merged elements that are not zero after the merge's edits, by input; {} before all were written."""
        return self._pipeline.densities()

    def _make(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        source = self._pool.aliases.get(name, name)
        if source not in self._pool.merged:
            return self._pool.base.tensor(source)
        out = torch.empty(self.info[source].shape, dtype=dtype, device=self._device)
        self._merge_into(source, out)
        return out

    def _merge_into(self, name: str, out: torch.Tensor) -> None:
        """Merge the matrices of a tensor into `out`."""
        for matrix in self._matrices[name]:
            part = matrix.of(out)
            if part.is_contiguous():
                self._write(matrix, part)
            else:
                merged = torch.empty(part.shape, dtype=out.dtype, device=out.device)
                self._write(matrix, merged)
                part.copy_(merged)

    def _write(self, matrix: Matrix, out: torch.Tensor) -> None:
        """Merge a matrix into `out`; a variance is at least the smallest of the models', since below 0 it has no meaning."""
        self._pipeline.write(matrix.name, out)
        if matrix.tensor.endswith(VARIANCE):
            models = [self._load(model, matrix.tensor).float() for model in (self._pool.base, *self._inputs)]
            least = torch.stack(models).amin(0).to(out.device, out.dtype)
            torch.maximum(out, least, out=out)
