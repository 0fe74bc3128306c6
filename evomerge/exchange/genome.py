"""Genome: a configuration of mergekit-evolve in, a study out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, StrictInt, ValidationError, field_validator

from evomerge.errors import RecipeError
from evomerge.exchange.documents import Document, Model, WholeModel
from evomerge.exchange.methods import Note
from evomerge.exchange.reading import Reader
from evomerge.recipe import describe
from evomerge.recipe.validation import FrozenModel

FILL_IN = "FILL-IN"
"""What stands in a study where something is to be filled in."""


class _Genome(FrozenModel):
    models: tuple[Model, ...] = Field(min_length=1)
    merge_method: Literal["linear", "task_arithmetic", "ties", "dare_ties", "slerp"]
    base_model: Model | None = None
    tokenizer_source: str | None = None
    layer_granularity: StrictInt = 0
    normalize: bool | None = None
    allow_negative_weights: bool = False
    filters: tuple[str, ...] = ()
    smooth: bool = False


class _Scored(FrozenModel):
    name: str
    weight: float = 1.0
    metric: str = "acc,none"


class _Evolve(FrozenModel):
    genome: _Genome
    tasks: tuple[_Scored, ...] = Field(min_length=1)
    limit: StrictInt | None = None
    num_fewshot: StrictInt | None = None
    shuffle: bool = False
    random_init: bool = False
    apply_chat_template: bool = True
    fewshot_as_multiturn: bool = True

    @field_validator("tasks", mode="before")
    @classmethod
    def _names(cls, tasks: Any) -> Any:
        return (
            [{"name": task} if isinstance(task, str) else task for task in tasks] if isinstance(tasks, list) else tasks
        )


@dataclass(frozen=True)
class ImportedStudy:
    """The content of a study's file, whose tasks are to be filled in, and what evomerge does otherwise."""

    data: Mapping[str, Any]
    notes: Sequence[Note]


def is_genome(documents: Sequence[Any]) -> bool:
    """Return whether a file is a configuration of mergekit-evolve."""
    return len(documents) == 1 and isinstance(documents[0], Mapping) and "genome" in documents[0]


def read_genome(data: Mapping[str, Any], path: Path, *, exact: bool = False) -> ImportedStudy:
    """Return the study of a mergekit-evolve configuration. `exact` takes mergekit's definitions. Raises `RecipeError`."""
    where = str(path)
    try:
        evolve = _Evolve.model_validate(data)
    except ValidationError as error:
        models: dict[str, type[FrozenModel]] = {"": _Evolve, "genome": _Genome, "tasks": _Scored}
        known = {key: tuple(model.model_fields) for key, model in models.items()}
        raise RecipeError(describe(error, where, known)) from None
    genome = evolve.genome
    method = genome.merge_method
    if method == "slerp" and (genome.smooth or genome.filters or len(genome.models) != 2):
        msg = f"{where} `genome`: slerp takes exactly two `models` here, without `smooth` and `filters`; mergekit-evolve chooses two of several for each group of layers"
        raise RecipeError(msg)
    if method not in ("linear", "slerp") and genome.base_model is None:
        raise RecipeError(f"{where} `genome.base_model` is missing: {method} needs it")
    normalize = method in ("ties", "dare_ties", "linear") if genome.normalize is None else genome.normalize
    reader = Reader([_example(genome, normalize)], where, path.parent, exact=exact)
    example = reader.imported()
    notes = list(example.notes)
    axis = _axis(genome, reader, where)
    merge: Any = example.recipe.data
    merge = dict(merge["merge"])
    if "stages" in merge:
        raise RecipeError(f"{where} `genome.normalize`: false is no search of weights of linear here; remove it")
    if genome.filters:
        axis = ["kind", *axis]
        notes.append(
            Note(
                "filters",
                "weights are searched for each kind of tensor (attention, mlp, norm, embedding, head), not for each filter",
            )
        )
    parameters = dict(merge.get("parameters", {}))
    if method == "slerp":
        parameters["t"] = {"float": [0, 1], "init": 0.5, **({"per": axis} if axis else {})}
        notes.append(
            Note("slerp", "`t` is searched between the two models; mergekit-evolve takes a softmax of two weights")
        )
    else:
        low = -1 if genome.allow_negative_weights else 0
        share = round(1 / len(genome.models), 6)
        parameters["weight"] = {"float": [low, 1], "init": share, "per": ["expert", *axis]}
        if method == "ties":
            parameters["density"] = {"float": [0.01, 1], "init": 1, "per": ["expert", *axis]}
        if method == "dare_ties":
            parameters["drop"] = {"float": [0, 0.99], "init": 0, "per": ["expert", *axis]}
        notes.append(Note("range", f"weights are searched in [{low}, 1]; in mergekit-evolve they have no bounds"))
    notes += [
        Note(key, f"`{key}` is left out: it belongs to lm-eval's tasks or to mergekit-evolve's own search")
        for key in sorted(evolve.model_fields_set - {"genome", "tasks"})
    ]
    notes.append(
        Note(
            "tasks",
            f"evomerge scores examples in files of yours: fill in what is marked {FILL_IN} (`evomerge tasks` lists the kinds)",
        )
    )
    study = {
        "name": "".join(c if c.isalnum() or c in "-_." else "-" for c in path.stem) or "study",
        "pool": dict(example.pool),
        "space": {"recipe": {"merge": {**merge, "parameters": parameters}}},
        "tasks": {task.name: _task(task) for task in evolve.tasks},
        "driver": {"kind": "cma", "weights": {f"{task.name}/accuracy": task.weight for task in evolve.tasks}},
        "evaluations": 100,
    }
    return ImportedStudy(study, notes)


def _example(genome: _Genome, normalize: bool) -> Document:
    """Return one merge of the search: its pool, its inputs and its definitions are those of all."""
    first = genome.base_model or genome.models[0]
    if genome.merge_method == "slerp":
        first = genome.models[0]
    values: dict[str, Any] = {"slerp": {"t": 0.5}, "linear": {"weight": 1.0}}.get(
        genome.merge_method, {"weight": 1.0, **({"density": 0.5} if "ties" in genome.merge_method else {})}
    )
    own = [
        WholeModel.model_construct(model=model, parameters={} if genome.merge_method == "slerp" else values)
        for model in genome.models
        if model != first or genome.merge_method in ("slerp", "linear")
    ]
    shared = {"t": 0.5} if genome.merge_method == "slerp" else {"normalize": normalize}
    return Document.model_construct(
        merge_method=genome.merge_method,
        models=tuple(own),
        slices=None,
        name=None,
        base_model=None if genome.merge_method == "linear" else first,
        parameters=shared,
        dtype="bfloat16",
        out_dtype=None,
        tokenizer_source=genome.tokenizer_source,
        tokenizer=None,
    )


def _axis(genome: _Genome, reader: Reader, where: str) -> list[str]:
    """Return the axis of groups of layers. Raises `RecipeError` where the number of layers is not known, or not a multiple."""
    if genome.layer_granularity < 1:
        return []
    if not reader.outline.known:
        msg = f"{where} `genome.layer_granularity`: `{reader.base}` is not on this machine, so that its number of layers is not known; download it"
        raise RecipeError(msg)
    blocks = reader.outline.blocks
    if blocks % genome.layer_granularity:
        msg = f"{where} `genome.layer_granularity` is {genome.layer_granularity}; expected a divisor of {blocks}, the layers of `{reader.base}`"
        raise RecipeError(msg)
    groups = blocks // genome.layer_granularity
    return [] if groups == 1 else [f"{'depth' if genome.smooth else 'block'}/{groups}"]


def _task(task: _Scored) -> dict[str, Any]:
    """Return the place where a task of lm-eval is to be filled in."""
    files = {split: f"{FILL_IN}/{task.name}.{split}.jsonl" for split in ("search", "report")}
    if task.metric.startswith("acc"):
        keys = {"kind": "multiple_choice", **files, "prompt": "question", "choices": "choices", "answer": "right"}
    else:
        keys = {"kind": "generation", **files, "prompt": "question", "answer": "answer"}
    return {**keys, "search_metric": "accuracy"}
