"""Documents: mergekit's configuration files as data, checked key by key. What they mean is in `reading`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field, StrictInt, ValidationError

from evomerge import strict_yaml
from evomerge.errors import RecipeError, nearest
from evomerge.recipe import describe
from evomerge.recipe.validation import FrozenModel

Parameters: TypeAlias = dict[str, Any]

DTYPES = ("float32", "bfloat16", "float16")

_REFUSED = {
    "modules": "merges of single modules have no recipe here: write `models` or `slices`, for a model of one module",
    "chat_template": "a merged model has the chat template of the base, or of `like: EXPERT`: remove the key, and write `like` into the recipe's file",
    "residual_weight": "evomerge has no such key; remove it: mergekit does not use it either",
    "override_architecture": "evomerge reads the architecture from config.json; remove the key",
    "tokens": "the embeddings of single tokens cannot be chosen here; remove the key, and write only `source`",
}
"""Keys of mergekit that mean nothing here, and what to do."""


class Reference(FrozenModel):
    """A model: a folder or a name on the hub, its revision, and an adapter on it; `path@revision+lora`."""

    path: str = Field(min_length=1)
    revision: str | None = None
    lora: str | None = None

    @property
    def model(self) -> str:
        """The path with its revision."""
        return self.path if self.revision is None else f"{self.path}@{self.revision}"

    def __str__(self) -> str:
        return self.model if self.lora is None else f"{self.model}+{self.lora}"


def _reference(value: Any) -> Any:
    """Return the parts of a model reference in either of mergekit's forms."""
    if isinstance(value, Mapping) and set(value) <= {"model", "lora"} and "model" in value:
        lora = value.get("lora")
        return {**_parts(value["model"]), "lora": None if lora is None else _text(_parts(lora))}
    if not isinstance(value, str):
        raise RecipeError(f"expected a model such as `path`, `org/name@revision` or `path+lora`, got {value!r}")
    model, *lora = value.split("+")
    if len(lora) > 1:
        raise RecipeError(f"{value!r} has more than one `+`; expected `model+lora`")
    return {**_parts(model), "lora": lora[0] if lora else None}


def _parts(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping) and set(value) <= {"path", "revision"} and "path" in value:
        return dict(value)
    path, *revision = str(value).split("@")
    if len(revision) > 1:
        raise RecipeError(f"{value!r} has more than one `@`; expected `path@revision`")
    return {"path": path, "revision": revision[0] if revision else None}


def _text(parts: Mapping[str, Any]) -> str:
    revision = parts.get("revision")
    return str(parts["path"]) if revision is None else f"{parts['path']}@{revision}"


Model: TypeAlias = Annotated[Reference, BeforeValidator(_reference)]


class WholeModel(FrozenModel):
    """An entry of `models`."""

    model: Model
    parameters: Parameters = Field(default_factory=dict)


class Source(WholeModel):
    """An entry of a slice's `sources`: layers of a model, the first and one past the last."""

    layer_range: tuple[StrictInt, StrictInt]


class Slice(FrozenModel):
    """An entry of `slices`: layers of the output, merged from those of the sources."""

    sources: tuple[Source, ...] = Field(min_length=1)
    base_model: Model | None = None
    parameters: Parameters = Field(default_factory=dict)


class Tokenizer(FrozenModel):
    """The key `tokenizer`."""

    source: str = "union"
    pad_to_multiple_of: StrictInt | None = Field(default=None, ge=1)


class Document(FrozenModel):
    """One merge of a file; other documents of the file refer to it by its `name`."""

    merge_method: str
    name: str | None = None
    models: tuple[WholeModel, ...] | None = Field(default=None, min_length=1)
    slices: tuple[Slice, ...] | None = Field(default=None, min_length=1)
    base_model: Model | None = None
    parameters: Parameters = Field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None
    tokenizer: Tokenizer | None = None

    @property
    def references(self) -> list[Reference]:
        """The models that it names, in order; the base last."""
        inputs = [entry.model for entry in self.models or ()]
        for piece in self.slices or ():
            inputs += [source.model for source in piece.sources]
            inputs += [piece.base_model] if piece.base_model else []
        return list(dict.fromkeys([*inputs, *([self.base_model] if self.base_model else [])]))


_MODELS: dict[str, type[FrozenModel]] = {
    "": Document,
    "models": WholeModel,
    "slices": Slice,
    "sources": Source,
    "tokenizer": Tokenizer,
}


def read_all(path: Path) -> list[Any]:
    """Return the data of all documents of a file. Raises `RecipeError` or `YamlError`."""
    if not path.is_file():
        raise RecipeError(f"{path}: no such file; expected a mergekit configuration")
    return strict_yaml.read_all(path)


def parse(data: Sequence[Any], where: str) -> list[Document]:
    """Return the documents in `data`. Every error begins with `where`. Raises `RecipeError`."""
    documents = []
    for number, entry in enumerate(data):
        place = where if len(data) == 1 else f"{where}, document {number + 1}"
        if not isinstance(entry, Mapping):
            raise RecipeError(f"{place}: expected a mapping with `merge_method`, got {entry!r}")
        _refuse(entry, place)
        try:
            document = Document.model_validate(entry)
        except ValidationError as error:
            known = {key: tuple(model.model_fields) for key, model in _MODELS.items()}
            raise RecipeError(describe(error, place, known)) from None
        _check(document, place)
        documents.append(document)
    names = [document.name for document in documents]
    for name in names:
        if names.count(name) > 1:
            what = "have no `name`; only the last merge goes without" if name is None else f"are named `{name}`"
            raise RecipeError(f"{where}: {names.count(name)} documents {what}")
    return documents


def _refuse(data: Any, where: str, above: str = "") -> None:
    """Raise `RecipeError` for a key that means nothing here, outside of parameters."""
    for key, value in data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, list) else ():
        path = f"{above}[{key}]" if isinstance(key, int) else f"{above}.{key}" if above else str(key)
        if key in _REFUSED and value is not None:
            raise RecipeError(f"{where} `{path}`: {_REFUSED[key]}")
        if key != "parameters":
            _refuse(value, where, path)


def _check(document: Document, where: str) -> None:
    if (document.models is None) == (document.slices is None):
        raise RecipeError(f"{where}: expected exactly one of `models` and `slices`")
    if document.tokenizer is not None and document.tokenizer_source is not None:
        raise RecipeError(f"{where}: has both `tokenizer` and `tokenizer_source`; keep one")
    for key in ("dtype", "out_dtype"):
        value = getattr(document, key)
        if value is not None and value.removeprefix("torch.") not in DTYPES:
            raise RecipeError(f"{where} `{key}`: {value!r}; {nearest(value, DTYPES)}")
    for number, piece in enumerate(document.slices or ()):
        lengths = {last - first for first, last in (source.layer_range for source in piece.sources)}
        if len(lengths) > 1 or min(lengths) < 1 or min(source.layer_range[0] for source in piece.sources) < 0:
            ranges = ", ".join(str(list(source.layer_range)) for source in piece.sources)
            msg = f"{where} `slices[{number}]`: layer ranges {ranges}; expected as many layers of each source, at least one"
            raise RecipeError(msg)
