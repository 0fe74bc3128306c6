"""Reading: mergekit's configuration in, a recipe and its pool out, and in words what evomerge defines otherwise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from evomerge import merging
from evomerge.checkpoints import hub
from evomerge.checkpoints.folder import Folder
from evomerge.errors import RecipeError, nearest
from evomerge.exchange import gradients
from evomerge.exchange.documents import Document, Parameters, Reference, Slice, Source
from evomerge.exchange.methods import REFUSED, RULES, Note
from evomerge.exchange.one_merge import OneMerge
from evomerge.exchange.tables import Outline
from evomerge.recipe import Recipe


@dataclass(frozen=True)
class Imported:
    """A recipe, the pool that it is of as a recipe's file has it, and what evomerge defines otherwise."""

    recipe: Recipe
    pool: Mapping[str, Any]
    notes: Sequence[Note]

    @property
    def data(self) -> dict[str, Any]:
        """The content of a recipe's file."""
        return {"pool": dict(self.pool), "recipe": self.recipe.data}


class Reader:
    """Reads the documents of one file."""

    def __init__(
        self,
        documents: Sequence[Document],
        where: str,
        folder: Path,
        *,
        exact: bool,
        pool: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Choose the result and the pool. `pool` are models by name, with the base; by default names are the ends of paths."""
        self._pool = pool
        self.where, self.exact, self.notes = where, exact, dict[str, Note]()
        self._folder = folder
        self._named = {document.name: document for document in documents if document.name is not None}
        self._result = self._choose(documents)
        self._read: dict[int, Any] = {}
        self._reading: list[int] = []
        used = self._used(self._result, ())
        self.models = list(dict.fromkeys(r for one in used for r in one.references if not self._is_merge(r)))
        self.base = self._choose_base(used)
        self.names = self._name_models()
        blocks = [source.layer_range[1] for one in used for piece in one.slices or () for source in piece.sources]
        folder_of_base = self._find(self.base.path) or self._cached(self.base.model)
        if folder_of_base is None:
            self.outline = Outline.stand_in(max(blocks, default=24))
        else:
            self.outline = Outline.of(Folder(folder_of_base))
        self._whole = not blocks or folder_of_base is not None

    def imported(self) -> Imported:
        """Return the recipe, the pool and the notes."""
        data = self.document(self._result)
        recipe = Recipe.parse(data)
        merging.check(recipe)
        pool: dict[str, Any] = {"base": self._path(self.base.model)}
        pool["experts"] = {name: self._path(r.lora or r.model) for r, name in self.names.items() if name != "base"}
        if not pool["experts"]:
            pool["experts"] = {"other" if (name := _short(self.base)) == "base" else name: pool["base"]}
        if (tokenizer := self._tokenizer()) is not None:
            pool["tokenizer"] = tokenizer
        return Imported(recipe, pool, list(self.notes.values()))

    def say(self, key: str, text: str) -> None:
        """Note what is defined otherwise, once."""
        self.notes.setdefault(text, Note(key, text))

    def document(self, document: Document) -> Any:
        """Return the recipe of a document, as data."""
        key = id(document)
        if key not in self._read:
            self._check(document)
            self._say_dtypes(document)
            pieces, whole = self._slices(document)
            self._read[key] = self._layers(document, pieces, whole=whole)
        return self._read[key]

    def source(self, reference: Reference) -> Any:
        """Return the recipe of an input, as data."""
        if self._is_merge(reference):
            self.say(
                "nested", "merges inside a merge stay in fp32; mergekit writes them to disk in between, in their dtype"
            )
            return self.document(self._named[reference.path])
        name = self.names[reference]
        return "base" if name == "base" else {"expert": name}

    # -- the models ----------------------------------------------------------------------------------------------------

    def _choose(self, documents: Sequence[Document]) -> Document:
        """Return the document that is the result: the one without a name, else the one that no other refers to."""
        if not documents:
            raise RecipeError(f"{self.where}: empty; expected a mergekit configuration with `merge_method`")
        inner = {reference.path for document in documents for reference in document.references}
        outer = [document for document in documents if document.name is None] or [
            document for document in documents if document.name not in inner
        ]
        if len(outer) != 1:
            names = ", ".join(f"`{document.name}`" for document in outer) or "each is an input of another"
            raise RecipeError(f"{self.where}: several merges, {names}; expected one result: write one file for each")
        return outer[0]

    def _used(self, document: Document, above: Sequence[Document]) -> list[Document]:
        """Return the document and those that it refers to, inner ones first. Raises `RecipeError` for a circle."""
        if any(one is document for one in above):
            raise RecipeError(f"{self.where}: the merge `{document.name}` is made of itself; break the circle")
        used: list[Document] = []
        for reference in document.references:
            if self._is_merge(reference):
                used += self._used(self._named[reference.path], (*above, document))
        return [*used, document]

    def _is_merge(self, reference: Reference) -> bool:
        if reference.path in self._named and (reference.lora or reference.revision):
            raise RecipeError(f"{self.where}: `{reference}` is a merge of this file; it has no revision and no adapter")
        return reference.path in self._named

    def _choose_base(self, used: Sequence[Document]) -> Reference:
        """Return the pool's base: where task vectors start, else a base of other methods, else the first model."""
        origins, others = dict[Reference, None](), dict[Reference, None]()
        for document in used:
            bases = [document.base_model, *(piece.base_model for piece in document.slices or ())]
            rule = RULES.get(document.merge_method)
            starts = rule is not None and rule.base in ("origin", "optional")
            for base in filter(None, bases):
                (origins if starts else others)[base] = None
        if len(origins) > 1:
            raise RecipeError(
                f"{self.where}: task vectors start at {' and at '.join(f'`{base}`' for base in origins)}; a pool has one base"
            )
        if "base" in self._pool:
            return Reference(path=self._pool["base"])
        for base in (*origins, *others, *self.models):
            if not self._is_merge(base):
                if base.lora is not None:
                    continue
                return base
            if base in origins:
                raise RecipeError(f"{self.where} `base_model`: `{base}` is a merge of this file; expected a model")
        first = next((model for model in self.models if model.lora is not None), None)
        if first is None:
            raise RecipeError(f"{self.where}: names no model")
        return first.model_copy(update={"lora": None})  # the base of the adapters

    def _name_models(self) -> dict[Reference, str]:
        names: dict[Reference, str] = {}
        known = {path: name for name, path in self._pool.items() if name != "base"}
        for reference in self.models:
            if reference.lora is not None and reference.model != self.base.model:
                msg = f"{self.where}: `{reference}` is an adapter of another model than the base, `{self.base.model}`; merge it into a folder first"
                raise RecipeError(msg)
            name = "base" if reference == self.base else known.get(str(reference), _short(reference))
            if name == "base" and reference != self.base:
                name = "other"
            taken, number = set(names.values()), 2
            while name in taken or name in self._named:
                name = f"{name.rpartition('-')[0] if number > 2 else name}-{number}"
                number += 1
            names[reference] = name
        return names

    def _find(self, path: str) -> Path | None:
        """Return the folder of a path, None where there is none on this machine."""
        return next((place.resolve() for place in (Path(path), self._folder / path) if place.is_dir()), None)

    def _cached(self, model: str) -> Path | None:
        """Return the folder of a model of the hub that is on this machine already."""
        named = hub.hub_id(hub.locate(model, self._folder))
        return None if named is None else hub.cached(named)

    def _path(self, model: str) -> str:
        folder = self._find(model)
        return model if folder is None else str(folder)

    def _tokenizer(self) -> dict[str, Any] | None:
        document = self._result
        given = document.tokenizer
        source = document.tokenizer_source if given is None else given.source
        if source is None:
            return None
        padded = {} if given is None or given.pad_to_multiple_of is None else {"pad_to": given.pad_to_multiple_of}
        if source in ("union", "base"):
            return {"source": source, **padded}
        known = {str(reference): name for reference, name in self.names.items()}
        if source not in known:
            raise RecipeError(
                f"{self.where} `tokenizer_source`: `{source}` is no model of this merge; {nearest(source, known)}"
            )
        return {"source": known[source], **padded}

    # -- checks --------------------------------------------------------------------------------------------------------

    def _check(self, document: Document) -> None:
        """Raise `RecipeError` for a method or a parameter that means nothing here."""
        name, where = document.merge_method, self.place(document)
        if name in REFUSED:
            raise RecipeError(f"{where} `merge_method`: evomerge has no {name}, {REFUSED[name]}")
        if name not in RULES:
            raise RecipeError(f"{where} `merge_method`: unknown method `{name}`; {nearest(name, RULES)}")
        merge = {key for key, given in RULES[name].parameters.items() if given.scope == "merge"}
        self._check_parameters(document, document.parameters, f"{where} `parameters", merge)
        for number, entry in enumerate(document.models or ()):
            base = entry.model == document.base_model
            self._check_parameters(
                document, entry.parameters, f"{where} `models[{number}].parameters", merge, base=base
            )
        for number, piece in enumerate(document.slices or ()):
            start = f"{where} `slices[{number}]"
            self._check_parameters(document, piece.parameters, f"{start}.parameters", merge)
            for index, source in enumerate(piece.sources):
                base = source.model == (piece.base_model or document.base_model)
                inner = f"{start}.sources[{index}].parameters"
                self._check_parameters(document, source.parameters, inner, merge, base=base)

    def _check_parameters(
        self, document: Document, given: Parameters, where: str, merge: set[str], *, base: bool | None = None
    ) -> None:
        """Check parameters of a file, or where `base` says whether it is the base, those of a model."""
        rule = RULES[document.merge_method]
        for name, setting in given.items():
            if name in rule.ignored:
                continue
            if name not in rule.parameters:
                msg = f"{where}.{name}`: {document.merge_method} has no such parameter; remove it. {nearest(name, rule.parameters)}"
                raise RecipeError(msg)
            if base is not None and name in merge:
                raise RecipeError(f"{where}.{name}`: one value for all models; write it into the file's `parameters`")
            if base and rule.parameters[name].scope == "other":
                raise RecipeError(f"{where}.{name}`: the base has none in {document.merge_method}; remove it")
            gradients.check(setting, f"{where}.{name}`")

    def _say_dtypes(self, document: Document) -> None:
        stored = self.outline.dtype
        work, out = (None if d is None else d.removeprefix("torch.") for d in (document.dtype, document.out_dtype))
        if work is not None and work != stored:
            self.say("dtype", f"models are read as they are stored; mergekit casts them to {work} first")
        written = out or work or stored
        if document is self._result and written != stored:
            what = f"the base's dtype, {stored}" if stored else "the base's dtype"
            then = f"; `evomerge merge --dtype {written}` is the same" if written else ""
            self.say("output", f"the merged model is stored in {what}; mergekit stores {written}{then}")
        if RULES[document.merge_method].narrow and (work or stored) != "float32":
            self.say(
                "precision",
                f"all arithmetic is in fp32; mergekit's is in {work or stored or 'the dtype of the weights'}",
            )

    def place(self, document: Document) -> str:
        """Return the beginning of a message about a document."""
        return self.where if document.name is None else f"{self.where}, `{document.name}`"

    # -- layers --------------------------------------------------------------------------------------------------------

    def _slices(self, document: Document) -> tuple[list[Slice], bool]:
        """Return a document's slices, and whether it was written as whole models."""
        if document.slices is not None:
            return list(document.slices), False
        blocks, base = self.outline.blocks, document.base_model
        entries = [(entry.model, entry.parameters) for entry in document.models or ()]
        if base is not None and base not in [model for model, _ in entries]:
            entries.append((base, {}))
        sources = [Source.model_construct(model=m, parameters=p, layer_range=(0, blocks)) for m, p in entries]
        return [Slice.model_construct(sources=tuple(sources), base_model=None, parameters={})], True

    def _layers(self, document: Document, pieces: Sequence[Slice], *, whole: bool) -> Any:
        """Return one merge where the slices are all layers of the same models in order, else a stack."""
        for number, piece in enumerate(pieces):
            if len({source.layer_range for source in piece.sources}) > 1:
                unlike = ", ".join(f"{list(source.layer_range)} of `{source.model}`" for source in piece.sources)
                msg = f"{self.place(document)} `slices[{number}]`: {unlike}; evomerge merges layers of the same number; cut the slices so"
                raise RecipeError(msg)
        ranges = [piece.sources[0].layer_range for piece in pieces]
        starts = [0, *(last for _, last in ranges[:-1])]
        in_order = [first for first, _ in ranges] == starts and ranges[-1][1] == self.outline.blocks
        alike = len({self._who(document, piece) for piece in pieces}) == 1
        deeper = any(last > self.outline.blocks for _, last in ranges)
        if deeper:
            raise RecipeError(
                f"{self.place(document)}: layers up to {max(last for _, last in ranges)} of a model that has {self.outline.blocks}"
            )
        if not whole and not self._whole:
            self.say(
                "outline", f"`{self.base}` is not on this machine: it is taken to have {self.outline.blocks} layers"
            )
        if in_order and alike:
            return OneMerge(self, document, pieces).recipe()
        recipes = [
            OneMerge(self, document, [piece], first=i == 0, last=i == len(pieces) - 1).recipe()
            for i, piece in enumerate(pieces)
        ]
        slots = [
            {"source": recipe, "layer": layer}
            for recipe, (first, last) in zip(recipes, ranges, strict=True)
            for layer in range(first, last)
        ]
        rest = recipes[0]
        if Recipe.parse(recipes[0]) != Recipe.parse(recipes[-1]):
            labels = [Recipe.parse(recipe).root.label or f"#{i}" for i, recipe in enumerate((recipes[0], recipes[-1]))]
            table = {"per": ["expert", "block/2"], "values": dict(zip(labels, ([1, 0], [0, 1]), strict=True))}
            stages = {"origin": "zero", "weigh": [{"weight": {"weight": table}}], "reduce": "sum"}
            rest = {"merge": {"inputs": [recipes[0], recipes[-1]], "stages": stages}}
        return {"stack": {"slots": slots, "rest": rest}}

    def _who(self, document: Document, piece: Slice) -> tuple[Any, ...]:
        base = piece.base_model or document.base_model
        return (base, *(source.model for source in piece.sources))


def _short(reference: Reference) -> str:
    """Return a name for a model: the last part of its path, in letters that a recipe's tables can have."""
    last = (reference.lora or reference.path).partition("@")[0].rstrip("/").rpartition("/")[2]
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in last) or "model"
