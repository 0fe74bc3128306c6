"""OneMerge: one merge of a mergekit configuration, with its parameters looked up for each tensor as mergekit does."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from evomerge.errors import RecipeError
from evomerge.exchange import gradients
from evomerge.exchange.documents import Document, Reference, Slice
from evomerge.exchange.methods import REQUIRED, RULES, Body, Given
from evomerge.exchange.tables import Outline, Row, tabulate
from evomerge.recipe import Recipe


class Around(Protocol):
    """What a merge needs to know of the file that it is in."""

    outline: Outline
    base: Reference
    exact: bool

    def source(self, reference: Reference) -> Any:
        """Return the recipe of an input, as data."""

    def place(self, document: Document) -> str:
        """Return the beginning of a message about a document."""

    def say(self, key: str, text: str) -> None:
        """Note what is defined otherwise."""


class OneMerge:
    """One merge: slices of a document with the same models. It is what the methods read their parameters from."""

    def __init__(
        self, reader: Around, document: Document, pieces: Sequence[Slice], *, first: bool = True, last: bool = True
    ) -> None:
        """Choose the inputs. Tensors outside the blocks count for the `first` slice of a model, or for its `last`.

        Raises `RecipeError` unless the method takes so many inputs.
        """
        self.reader, self.document, self.pieces, self.first, self.last = reader, document, pieces, first, last
        piece, rule = pieces[0], RULES[document.merge_method]
        self.exact, self.rule = reader.exact, rule
        models = [source.model for source in piece.sources]
        for model in models:
            if models.count(model) > 1:
                raise RecipeError(f"{self._where}: names `{model}` twice; expected each model once")
        base = piece.base_model or document.base_model
        if rule.base in ("origin", "first") and base not in models:
            raise RecipeError(f"{self._where}: {self.document.merge_method} needs `base_model`, one of the models")
        others = [model for model in models if model != base]
        self.based = rule.base == "origin" or (rule.base == "optional" and base in models)
        self.models = models if rule.base == "input" else [base, *others] if rule.base == "first" and base else others
        least, most = rule.inputs
        if len(self.models) < least or (most is not None and len(self.models) > most):
            wanted = f"{least}" if least == most else f"{least} or more"
            got = ", ".join(f"`{model}`" for model in self.models) or "none"
            beside = " beside the base" if self.based else ""
            raise RecipeError(f"{self._where}: {self.document.merge_method} takes {wanted} model(s){beside}; got {got}")
        self.inputs = [self.reader.source(model) for model in self.models]
        self.labels: Sequence[str] = [Recipe.parse(one).root.label or f"#{i}" for i, one in enumerate(self.inputs)]
        self._curves = [curve for setting in self._settings() for curve in gradients.curves(setting)]

    def recipe(self) -> Any:
        """Return the merge as a recipe's data; an input itself where nothing is done to it."""
        rule = self.rule
        if self.document.merge_method == "passthrough" and set(self._values("scale", 0).values()) == {1.0}:
            return self.inputs[0]
        body: Body = rule.write(self.document.merge_method, self)
        return {"merge": {"inputs": self.inputs, **body}}

    # -- what methods read ---------------------------------------------------------------------------------------------

    def rows(self, name: str) -> Mapping[str, Sequence[float]]:
        """Return by tensor a parameter's values of all inputs, or its one value."""
        count = 1 if self.rule.parameters[name].scope == "merge" else len(self.models)
        columns = [self._values(name, i) for i in range(count)]
        return {tensor: [column[tensor] for column in columns] for tensor in columns[0]}

    def table(self, name: str, change: Callable[[float], float] = lambda value: value) -> Any:
        """Return a parameter, its values changed, as a recipe writes it."""
        shared = self.rule.parameters[name].scope == "merge"
        columns = [self._values(name, i) for i in range(1 if shared else len(self.models))]
        rows = {
            None if shared else label: {tensor: change(value) for tensor, value in column.items()}
            for label, column in zip(self.labels, columns, strict=False)
        }
        return self._tabulated(name, rows, [[change(value) for value in curve] for curve in self._curves])

    def combined(self, name: str, change: Callable[[Sequence[float]], float]) -> Any:
        """Return a number of the merge, made of a parameter's values of all inputs, as a recipe writes it."""
        return self._tabulated(name, {None: {tensor: change(row) for tensor, row in self.rows(name).items()}}, [])

    def flag(self, name: str) -> bool:
        """Return a flag. Raises `RecipeError` where it differs between tensors."""
        values = set(self._values(name, 0).values())
        if len(values) > 1:
            raise self.refuse(name, "it differs between tensors; write one value")
        return bool(values.pop())

    def _tabulated(self, name: str, rows: Mapping[str | None, Row], curves: Sequence[Sequence[float]]) -> Any:
        table = tabulate(self.reader.outline, rows, curves)
        if table is None:
            msg = f"{self._where}: the filters of `{name}` need the names of the tensors, and `{self.reader.base}` is not on this machine; download it"
            raise RecipeError(msg)
        if isinstance(table, Mapping) and not self.reader.outline.known:
            self.reader.say(
                "outline",
                f"`{self.reader.base}` is not on this machine: its tensors are taken to be named as a Llama's",
            )
        return table

    def say(self, key: str, text: str) -> None:
        """Note what is defined otherwise."""
        self.reader.say(key, f"{self.document.merge_method}: {text}")

    def refuse(self, name: str, why: str) -> RecipeError:
        """Return the error about a parameter that evomerge cannot follow."""
        return RecipeError(f"{self._where} `parameters.{name}`: {why}")

    @property
    def _where(self) -> str:
        return self.reader.place(self.document)

    # -- how mergekit looks a parameter up -----------------------------------------------------------------------------

    def _settings(self) -> list[Any]:
        parts = [self.document.parameters]
        for piece in self.pieces:
            parts += [piece.parameters, *(source.parameters for source in piece.sources)]
        return [setting for part in parts for setting in part.values()]

    def _values(self, name: str, index: int) -> dict[str, Any]:
        """Return a parameter of one input by tensor, of the tensors that the slices are about."""
        given, outline = self.rule.parameters[name], self.reader.outline
        values, moved = {}, False
        theirs = self.exact and outline.known  # only a table over tensors can say it
        for tensor, place in outline.places.items():
            if place.inside:
                piece = next((p for p in self.pieces if _holds(p, place.block) or place.model), None)
                if piece is None:
                    continue
                first, last = piece.sources[0].layer_range
                if place.model:
                    first, last = 0, place.blocks
                shares = [(place.block - first) / (last - first - 1) if last - first > 1 else 1.0]
            elif outline.begins(tensor):
                if not self.first:
                    continue
                piece, shares = self.pieces[0], [0.0]
            else:
                if not self.last:
                    continue
                piece, shares = self.pieces[-1], [0.0, 1.0]
            ends = [self._look_up(given, name, piece, index, tensor, t) for t in shares]
            values[tensor] = ends[0] if theirs else ends[-1]
            moved |= ends[0] != ends[-1]
        if moved and not theirs:
            self.reader.say(
                "gradient",
                "gradients give the final norm and the head their last value; in mergekit they have the first",
            )
        return values

    def _look_up(self, given: Given, name: str, piece: Slice, index: int, tensor: str, t: float) -> Any:
        scopes = [piece.parameters, self.document.parameters]
        if given.scope != "merge":
            scopes = [source.parameters for source in piece.sources if source.model == self.models[index]] + scopes
        for scope in scopes:
            value = gradients.at(scope[name], tensor, t) if name in scope else None
            if value is not None:
                return self._read(given, name, value)
        if given.default is REQUIRED:
            model = "" if given.scope == "merge" else f" for `{self.models[index]}`"
            raise RecipeError(
                f"{self._where}: `{name}` is missing{model} at the tensor `{tensor}`; mergekit needs it too"
            )
        return given.default

    def _read(self, given: Given, name: str, value: Any) -> Any:
        expected = "true or false" if given.flag else "a number"
        if isinstance(value, str) or (given.flag and not isinstance(value, bool) and value not in (0, 1)):
            raise self.refuse(name, f"{value!r}; expected {expected}")
        return bool(value) if given.flag else float(value)


def _holds(piece: Slice, block: int) -> bool:
    first, last = piece.sources[0].layer_range
    return first <= block < last
