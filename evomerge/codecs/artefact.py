"""Artefact: a folder with a base and its experts under one codec, from which each expert is decoded as a checkpoint.

`base/` is the base as an ordinary checkpoint folder, with its configuration and tokenizer; `codes/` holds the encoded
experts, as safetensors; `artefact.json` describes them. The folder is self-contained.

Everything is stored in the base's dtype and computed in float64. A tensor that no expert changed costs nothing beyond the
base. One that the codec does not handle (integers, and tensors that it declines) is stored for each expert that changed it.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, FiniteFloat, ValidationError
from safetensors.torch import save_file

from evomerge import files
from evomerge.checkpoints.folder import INDEX, Checkpoint, Computed, Folder, read_object
from evomerge.checkpoints.fused import Matrix
from evomerge.checkpoints.header import TensorInfo
from evomerge.checkpoints.layout import Layout
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.save import check_free, save
from evomerge.codecs.codec import Codec, Coded, Constants
from evomerge.codecs.emr import Emr
from evomerge.codecs.low_rank import LowRank
from evomerge.codecs.singular import Singular
from evomerge.codecs.tall import Tall
from evomerge.errors import CheckpointError, PoolError, RecipeError, nearest

CODECS: Mapping[str, type[Codec]] = {"tall": Tall, "emr": Emr, "low_rank": LowRank, "singular": Singular}
"""The codecs by name."""

_VERSION = 1
_MANIFEST = "artefact.json"
_SHARD = 1 << 30  # bytes of codes that are held before they are written
_SLICE = 1 << 20  # elements that are in memory as float64 at once; a multiple of 8, so that packed bits join


class _Manifest(BaseModel, extra="forbid", frozen=True):
    """`artefact.json`."""

    version: int
    codec: str
    parameters: dict[str, object]
    constants: dict[str, list[FiniteFloat]]
    experts: list[str]
    digests: dict[str, str]
    """sha256 of the original weights of the base and of each expert."""
    aliases: dict[str, str]
    """Tied tensors: name → the name of the tensor that it equals."""
    coded: dict[str, dict[str, float]]
    """The tensors that the codec encoded, with its figures."""
    formula: float
    """Bytes of the base and the codes by the paper's formula."""
    checks: dict[str, int]
    """CRC-32 of the bytes of every stored tensor."""


def encode(
    pool: Pool, codec: Codec, folder: Path, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> "Artefact":
    """Write the pool as an artefact to `folder`, which appears complete or not at all, and return it opened.

    One tensor of each model is read at a time, and at most 1 GiB of codes wait in memory to be written. `progress` receives
    the bytes done and the total. Raises `CheckpointError` if `folder` exists and is not empty, and `PoolError` where an
    element does not fit into the base's storage dtype.
    """
    check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    experts, total = list(pool.experts), 3 * pool.nbytes  # the model is read three times
    done = 0

    def finish(entry: TensorInfo) -> None:
        nonlocal done
        pool.forget()
        done += entry.nbytes
        progress(done, total)

    def vectors() -> Iterator[torch.Tensor]:
        for name, entry in pool.merged.items():
            for _, rows in _slices(pool, Matrix(name, name), codec):
                yield rows
            finish(entry)

    constants = codec.constants(experts, vectors())
    coded: dict[str, dict[str, float]] = {}
    checks: dict[str, int] = {}
    formula = float(pool.nbytes)

    def codes() -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal formula
        for name, entry in pool.base.info.items():
            if name not in pool.aliases:
                checks[f"base/{name}"] = _check(pool.base.tensor(name))
            for matrix in _matrices(pool.layout, name, codec) if name not in pool.aliases else ():
                encoded = _encode(pool, matrix, codec, constants)
                if encoded is not None and encoded.parts:
                    coded[matrix.name] = dict(encoded.figures)
                encoded = encoded or _plain(pool, matrix)
                formula += encoded.formula
                yield from ((f"{part}/{matrix.name}", tensor) for part, tensor in encoded.parts.items())
            finish(entry)

    with files.new_folder(folder) as new:
        aligned = pool.vocabulary is not None
        save(
            pool.base,
            new / "base",
            like=pool.base.path,
            tokenizer=pool.tokenizer if aligned else None,
            extra={"config.json": json.dumps(pool.base.config, indent=2) + "\n"} if aligned else None,
            progress=lambda part, _: progress(pool.nbytes + part, total),
        )
        done = 2 * pool.nbytes
        checks |= _write_codes(new / "codes", codes())
        manifest = _Manifest(
            version=_VERSION,
            codec=next(key for key, kind in CODECS.items() if kind is type(codec)),
            parameters=codec.model_dump(by_alias=True, exclude_none=True),
            constants={key: list(values) for key, values in constants.items()},
            experts=experts,
            digests=pool.digests,
            aliases=pool.aliases,
            coded=coded,
            formula=formula,
            checks=checks,
        )
        files.write(new / _MANIFEST, manifest.model_dump_json() + "\n")
    return Artefact(folder)


class Artefact:
    """An artefact folder, opened. No weights are read before a tensor of an expert is requested.

    `experts` are the experts' names, in the pool's order; `constants` the codec's values for the model; `figures` its figures
    by tensor that it encoded; `formula` the bytes by the formula of its paper; `digests` the sha256 of the original weights
    of `base` and each expert.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open the artefact at `folder`.

        Raises `CheckpointError` where it is no artefact, is incomplete, or has an unknown codec or version.
        """
        self.folder = Path(folder)
        manifest = self._manifest = _read(self.folder / _MANIFEST)
        self.experts = tuple(manifest.experts)
        self.constants: Constants = manifest.constants
        self.figures, self.formula, self.digests = manifest.coded, manifest.formula, manifest.digests
        self.base = Folder(self.folder / "base")
        self._codes = Folder(self.folder / "codes")
        try:
            self._codec = CODECS[manifest.codec].model_validate(manifest.parameters)
            expected = self._codec.constants(self.experts, ())
        except (ValidationError, RecipeError) as error:
            raise _damaged(self.folder, f"its parameters are not those of `{manifest.codec}`") from error
        lengths, expected_lengths = ({key: len(v) for key, v in c.items()} for c in (self.constants, expected))
        if lengths != expected_lengths:
            what = f"its constants are not those of `{manifest.codec}` and {len(self.experts)} experts"
            raise _damaged(self.folder, what)
        stored = {f"base/{name}" for name in self.base.info if name not in manifest.aliases} | {*self._codes.info}
        for key in sorted(stored ^ manifest.checks.keys()):
            raise _damaged(self.folder, f"`{key}` is {'unknown' if key in stored else 'missing'}")

    @property
    def nbytes(self) -> int:
        """The bytes of the artefact without the base's configuration and tokenizer."""
        written = (self.folder / _MANIFEST, *self.base.files, *(self.folder / "codes").iterdir())
        return sum(file.stat().st_size for file in written)

    def decode(self, expert: str) -> Checkpoint:
        """Return the expert as a lazy checkpoint, whose `tensor` raises `CheckpointError` if stored bytes changed.

        Raises `PoolError` for an unknown expert.
        """
        if expert not in self.experts:
            raise PoolError(f"{self.folder}: the artefact has no expert `{expert}`; {nearest(expert, self.experts)}")
        number = self.experts.index(expert)
        return Computed(self.base.info, lambda name: self._tensor(name, number), (self.base, self._codes))

    def _tensor(self, name: str, expert: int) -> torch.Tensor:
        name = self._manifest.aliases.get(name, name)
        base = self._part("base", name)
        plain = f"own.{expert}"
        if f"{plain}/{name}" in self._codes.info:
            return self._part(plain, name)

        def decoded(matrix: Matrix) -> torch.Tensor:
            part = matrix.of(base)
            if f"{plain}/{matrix.name}" in self._codes.info:
                return self._part(plain, matrix.name)
            if matrix.name not in self._manifest.coded:
                return part
            return apply(part, self._codec.decode(lambda key: self._part(key, matrix.name), expert, self.constants))

        return _assembled(_matrices(self._layout, name, self._codec), base, decoded)

    @cached_property
    def _layout(self) -> Layout:
        return Layout(self.base.info, self.base.config)

    def _part(self, part: str, name: str) -> torch.Tensor:
        key = f"{part}/{name}"
        if key not in self._manifest.checks:
            raise _damaged(self.folder, f"`{key}` is missing")
        tensor = self.base.tensor(name) if part == "base" else self._codes.tensor(key)
        if _check(tensor) != self._manifest.checks[key]:
            raise _damaged(self.folder, f"the bytes of `{key}` have changed")
        return tensor


def preview(pool: Pool, codec: Codec, constants: Constants, expert: int) -> Checkpoint:
    """Return the checkpoint that an artefact would decode to for expert number `expert`, without writing an artefact.

    Each tensor reads all experts, so this is for trying out parameters.
    """

    def tensor(name: str) -> torch.Tensor:
        name = pool.aliases.get(name, name)
        base = pool.base.tensor(name)

        def decoded(matrix: Matrix) -> torch.Tensor:
            part = matrix.of(base)
            coded = _encode(pool, matrix, codec, constants)
            if coded is None:
                return _plain(pool, matrix).parts.get(f"own.{expert}", part)
            return apply(part, codec.decode(coded.parts.__getitem__, expert, constants)) if coded.parts else part

        return _assembled(_matrices(pool.layout, name, codec), base, decoded)

    return Computed(pool.base.info, tensor, pool.models)


def apply(base: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Return base + vector in the base's dtype, with one cast; where the vector is 0, exactly the base."""
    work = torch.promote_types(torch.promote_types(base.dtype, torch.float32), vector.dtype)
    return torch.where(vector == 0, base, (base.to(work) + vector.to(work)).to(base.dtype))


def _matrices(layout: Layout, name: str, codec: Codec) -> tuple[Matrix, ...]:
    """Return what a codec encodes of a tensor, each by itself: its matrices, unless each element is by itself anyway."""
    return (Matrix(name, name),) if codec.elementwise else layout.matrices(name)


def _assembled(
    matrices: Sequence[Matrix], base: torch.Tensor, decoded: Callable[[Matrix], torch.Tensor]
) -> torch.Tensor:
    """Return the tensor of decoded matrices, like the one of the base."""
    if len(matrices) == 1:
        return decoded(matrices[0])
    tensor = base.clone()
    for matrix in matrices:
        matrix.of(tensor).copy_(decoded(matrix))
    return tensor


def _encode(pool: Pool, matrix: Matrix, codec: Codec, constants: Constants) -> Coded | None:
    """Return a matrix encoded as it is stored, without parts where no expert changed it; None where the codec declines."""
    base = matrix.of(pool.base.tensor(matrix.tensor))
    if not base.is_floating_point():
        return None
    if all(_equal(matrix.of(expert.tensor(matrix.tensor)), base) for expert in pool.experts.values()):
        return Coded({}, 0.0)
    pieces: dict[str, list[torch.Tensor]] = {}
    formula = 0.0
    figures: Mapping[str, float] = {}
    for piece, vectors in _slices(pool, matrix, codec):
        coded = codec.encode(piece, vectors, constants)
        if coded is None:
            return None
        formula, figures = formula + coded.formula, coded.figures
        for part, tensor in coded.parts.items():
            pieces.setdefault(part, []).append(tensor.to(base.dtype) if tensor.is_floating_point() else tensor)
    parts = {part: torch.cat(tensors) for part, tensors in pieces.items()}
    for part, tensor in parts.items():
        if tensor.is_floating_point():
            if not tensor.isfinite().all():
                raise PoolError(
                    f"tensor `{matrix.name}`: `{part}` does not fit into the base's {base.dtype}; convert the pool to float32"
                )
            parts[part] = tensor.reshape(base.shape) if codec.elementwise else tensor
    return Coded(parts, formula, figures)


def _plain(pool: Pool, matrix: Matrix) -> Coded:
    """Return a matrix without encoding, for each expert in which it differs from the base."""
    base, *experts = (matrix.of(model.tensor(matrix.tensor)) for model in pool.models)
    parts = {f"own.{k}": expert.to(base.dtype) for k, expert in enumerate(experts)}
    parts = {part: tensor for part, tensor in parts.items() if not torch.equal(tensor, base)}
    return Coded(parts, len(parts) * base.nbytes)


def _slices(pool: Pool, matrix: Matrix, codec: Codec) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield a matrix of the base and its task vectors, float64 `(experts, *shape)`; flat slices for elementwise codecs."""
    base, *experts = (matrix.of(model.tensor(matrix.tensor)) for model in pool.models)
    spans: list[Any] = [...]
    if codec.elementwise:
        base, *experts = (tensor.reshape(-1) for tensor in (base, *experts))
        spans = [slice(at, at + _SLICE) for at in range(0, base.numel(), _SLICE)]
    for span in spans:
        yield base[span], torch.stack([expert[span].double() - base[span].double() for expert in experts])


def _equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    common = torch.promote_types(left.dtype, right.dtype)
    return torch.equal(left.to(common), right.to(common))


def _write_codes(folder: Path, codes: Iterable[tuple[str, torch.Tensor]]) -> dict[str, int]:
    """Write tensors as a checkpoint folder without configuration, sharded if large; return the check of each tensor."""
    folder.mkdir()
    checks: dict[str, int] = {}
    weight_map: dict[str, str] = {}
    held: dict[str, torch.Tensor] = {}
    size = 0  # bytes that are held

    def flush() -> None:
        path = folder / f"model-{len(set(weight_map.values())) + 1:05d}.safetensors"
        save_file(held, path)
        path.chmod(0o644)  # safetensors writes 0600
        files.sync(path)
        weight_map.update(dict.fromkeys(held, path.name))
        held.clear()

    for key, tensor in codes:
        if held and size + tensor.nbytes > _SHARD:
            flush()
            size = 0
        size += tensor.nbytes
        held[key] = tensor.clone(memory_format=torch.contiguous_format)  # the view of a file may be closed next
        checks[key] = _check(tensor)
    if held:
        flush()
    if len(set(weight_map.values())) != 1:
        files.write(folder / INDEX, json.dumps({"metadata": {}, "weight_map": weight_map}, sort_keys=True))
    files.sync(folder)
    return checks


def _check(tensor: torch.Tensor) -> int:
    return zlib.crc32(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]  # numpy's stub hides its buffer


def _read(path: Path) -> _Manifest:
    if not path.is_file():
        raise CheckpointError(f"{path}: cannot be read; expected an artefact, a folder that `evomerge compress` wrote")
    data = read_object(path)
    if data.get("version") != _VERSION:
        msg = f"{path}: artefact version {data.get('version')}; expected {_VERSION}: read it with the evomerge that wrote it, or compress again"
        raise CheckpointError(msg)
    codec = str(data.get("codec"))
    if codec not in CODECS:
        raise CheckpointError(f"{path}: unknown codec `{codec}`; {nearest(codec, CODECS)}")
    try:
        return _Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(path.parent, f"{_MANIFEST}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _damaged(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{folder}: the artefact is damaged: {what}; copy it again, or compress the pool again")
