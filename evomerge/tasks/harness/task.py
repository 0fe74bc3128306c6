"""`kind: lm_eval`: a task of lm-evaluation-harness."""

import hashlib
import inspect
import itertools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from evomerge.errors import TaskError, nearest
from evomerge.models import EngineModel, LiveModel, TextModel
from evomerge.tasks.causal import check_tokens, require_causal
from evomerge.tasks.data import digests, task_error
from evomerge.tasks.harness import metrics, sandbox
from evomerge.tasks.harness.documents import Example, Source, draw
from evomerge.tasks.harness.engine import wrap
from evomerge.tasks.harness.loading import Found, load_inline, load_named
from evomerge.tasks.served import ServedTask
from evomerge.tasks.task import Scores, TaskSettings, Vector, vector
from evomerge.trial import Split


class LmEvalSettings(TaskSettings):
    """`kind: lm_eval`. Keys are those of the harness, and `search`, `report` and `final` in place of `limit`.

    Example: `maths: {kind: lm_eval, task: gsm8k, filter: strict-match, num_fewshot: 5, search: 200, report: 500}`

    Example: `mine: {kind: lm_eval, config: {dataset_path: json, dataset_kwargs: {data_files: {test: mine.jsonl}}, test_split: test,
    output_type: multiple_choice, doc_to_text: "{{question}}", doc_to_choice: choices, doc_to_target: answer}, search: 100, report: 300}`
    """

    kind: Literal["lm_eval"]
    task: str | None = None
    """A task or group of the harness, as in `lm_eval --tasks`."""
    config: dict[str, Any] | None = None
    """A task of your own instead: the keys of the harness's YAML, with relative `data_files`. It holds no code."""
    include_path: Path | None = None
    """A folder of YAML files of the harness, and of their Python files, where `task` is looked for first."""
    search: int = Field(ge=1)
    """Number of documents to search on."""
    report: int = Field(ge=1)
    """Number of documents to report on, none of them in `search`."""
    final: int | None = Field(default=None, ge=1)
    """Number of documents for one last measurement, `evomerge show --final`: none of them in `search` or `report`."""
    search_split: str | None = None
    """The split of the data set to search on, such as `train`; by default the one that the harness evaluates."""
    seed: int = 0
    """Another number draws other documents."""
    metric: str | None = None
    """The harness's metric, such as `acc_norm`; by default the task's first. Those of which less is better are negated."""
    filter: str | None = None
    """The harness's filter of answers, such as `strict-match`; by default the task's first."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Number of solved examples in a prompt; by default the task's own."""
    apply_chat_template: bool = False
    """Whether prompts have the tokenizer's chat template."""
    fewshot_as_multiturn: bool = True
    """With `apply_chat_template`: whether solved examples are turns of their own."""
    system_instruction: str | None = None
    """A text before all prompts."""
    gen_kwargs: dict[str, Any] = Field(default={})
    """Changes to the task's generation, such as `{max_gen_toks: 64}`. Decoding is greedy: `do_sample: true` is refused."""
    batch_size: int = Field(default=8, ge=1)
    """Number of requests that run together; another number changes the last bits of scores."""
    max_length: int | None = Field(default=None, ge=2)
    """The last this many tokens of a request are used; by default as many as the model has positions."""
    keep_margins: bool = False
    """For multiple choice: also record the right choice's log-likelihood minus that of each other, for driver `front`."""


class LmEval(ServedTask):
    """Tasks of EleutherAI's lm-evaluation-harness: its documents, prompts, filters and metrics. Needs `evomerge[lm-eval]`.

    Scores are those of `lm_eval.simple_evaluate` for the same documents. Multiple choice also has `log_likelihood`: the
    log-softmax of the right choice's log-likelihood over all choices, in nats, each divided by its length where the metric
    is `acc_norm` or `acc_bytes`. Tasks that score targets have it too: that of the target, in nats. It is then searched by
    default, and `metric` reported. A group is one objective, its documents drawn so that their mean is the group's score.
    """

    def __init__(self, name: str, settings: LmEvalSettings, folder: Path) -> None:
        """Load the harness's task and its data, and draw the documents. Raises `TaskError`."""
        found = _found(name, settings, folder)
        for leaf in found.tasks:
            _configure(name, leaf, settings)
        with sandbox.loading():
            sources = [Source(leaf) for leaf in found.tasks]
            sizes: dict[Split, int] = {"search": settings.search, "report": settings.report}
            if settings.final is not None:
                sizes["final"] = settings.final
            self.examples = draw(name, sources, sizes, settings.seed, settings.search_split, by_size=found.by_size)
        asked = (settings.search_metric, settings.report_metric)
        declared = metrics.declare(name, found.tasks, settings.metric, asked, settings.keep_margins)
        super().__init__(
            name,
            settings,
            declared,
            inputs={split: [example.document for example in examples] for split, examples in self.examples.items()},
        )
        if settings.keep_margins and not any(metric.margins for metric in declared):
            raise task_error(
                name, "`keep_margins` needs a task of multiple choice that is scored by accuracy; leave it out"
            )
        self._settings = settings
        self._filter = _filter(name, found.tasks, settings.filter)
        self._decides = metrics.decided(declared[0].name, list(self.metrics))
        include = None if settings.include_path is None else folder / settings.include_path
        self._digest = _digest(found.tasks, self.examples, include)
        self._wrappers: dict[int, Any] = {}
        self._requests: dict[Path, dict[Source, dict[int, list[Any]]]] = {}

    def digest(self) -> str | None:
        """Return a digest of the harness's version, the task's configuration and code, and the documents."""
        return self._digest

    def check(self, model: TextModel) -> None:
        """Raise `TaskError` for requests that the model cannot read, and where the harness cannot score a document of each split."""
        require_causal(self.name, model)
        if model.tokenizer.eos_token_id is None:
            raise task_error(
                self.name, "the harness needs an end token, and the tokenizer has none; set its `eos_token`"
            )
        try:
            wrapped, built = self._wrapped(model), self._built(model)
            requests = [request for found in built.values() for made in found.values() for request in made]
            texts = ["".join(part for part in request.args if isinstance(part, str)) for request in requests]
            check_tokens(self.name, model, [wrapped.tok_encode(text) for text in texts])
            for split, examples in self.examples.items():
                with sandbox.contained():
                    for leaf, document in ((example.source.leaf, example.document) for example in examples):
                        if "log_likelihood" in self.metrics and leaf.OUTPUT_TYPE == "multiple_choice":
                            metrics.right_choices(self.name, leaf, document)
                self._scored(model, split, [0])
        except TaskError:
            raise
        except Exception as error:  # the harness, and code of its tasks, raise anything
            raise task_error(self.name, f"the harness cannot score it: {type(error).__name__}: {error}") from error

    def score(self, model: LiveModel, split: Split, examples: Sequence[int] | None = None) -> Scores:
        """Return the metrics of each document, and `margins` if they are kept.

        `margins` are `(examples, most wrong choices)`, the last one repeated for documents with fewer choices.
        """
        return self._scored(model, split, examples)

    def serve(self, engine: EngineModel, split: Split, examples: Sequence[int] | None = None) -> Scores:
        """Return what `score` does, by the harness's own class for the engine."""
        return self._scored(engine, split, examples)

    @torch.inference_mode()
    def _scored(self, model: TextModel, split: Split, examples: Sequence[int] | None) -> Scores:
        indices = self.indices(split, examples)
        chosen = [self.examples[split][index] for index in indices]
        built = self._built(model)
        by_source: dict[Source, dict[int, list[Any]]] = defaultdict(dict)
        for example in chosen:
            by_source[example.source][example.number] = built[example.source][example.number]
        with sandbox.contained():
            self._answer(model, by_source)
            rows = [self._measured(example, built[example.source][example.number]) for example in chosen]
            outputs = {}
            if self._settings.keep_margins:
                outputs[metrics.MARGINS] = self._margins(split, [choices for _, choices in rows])
        return Scores({metric: vector([row[metric] for row, _ in rows]) for metric in self.metrics}, outputs)

    def _measured(self, example: Example, requests: Sequence[Any]) -> tuple[dict[str, float], metrics.Choices | None]:
        """Return a document's scores by metric, and its choices, if it has any, from the filtered responses."""
        leaf, document = example.source.leaf, example.document
        responses = [request.filtered_resps[self._filter] for request in requests]
        names = [name for name in self.metrics if name != "log_likelihood"]
        row = metrics.numbers(self.name, leaf, leaf.process_results(document, responses), names)
        if "log_likelihood" not in self.metrics:
            return row, None
        if leaf.OUTPUT_TYPE == "loglikelihood":
            return {**row, "log_likelihood": float(responses[0][0])}, None
        choices = metrics.choices(self.name, leaf, document, responses, self._decides)
        return {**row, "log_likelihood": choices.log_likelihood}, choices

    def _margins(self, split: Split, choices: Sequence[metrics.Choices | None]) -> Vector:
        documents = [(example.source.leaf, example.document) for example in self.examples[split]]
        width = max(len(leaf.doc_to_choice(document)) for leaf, document in documents) - 1
        table = np.empty((len(choices), width), np.float32)
        for row, found in zip(table, choices, strict=True):
            assert found is not None  # only multiple choice has margins
            row[:] = np.pad(found.margins, (0, width - len(found.margins)), mode="edge")
        return table

    def _answer(self, model: TextModel, sources: Mapping[Source, Mapping[int, Sequence[Any]]]) -> None:
        """Let the model answer the requests, and filter the responses, as `lm_eval.evaluate` does."""
        wrapped = self._wrapped(model)
        by_type: dict[str, list[Any]] = defaultdict(list)
        for found in sources.values():
            for request in itertools.chain(*found.values()):
                request.resps, request.filtered_resps = [], {}
                by_type[request.request_type] += [request] * (request.repeats or 1)
        for kind, requests in by_type.items():
            for request, response in zip(requests, getattr(wrapped, kind)(requests, disable_tqdm=True), strict=True):
                request.resps.append(response)
        for source, found in sources.items():
            [ensemble] = [one for one in source.leaf._filters if one.name == self._filter]  # noqa: SLF001  # as `evaluate` does
            ensemble.apply(list(itertools.chain(*found.values())))

    def _built(self, model: TextModel) -> dict[Source, dict[int, list[Any]]]:
        """Return the requests of all examples, made once for all candidates of a base."""
        if model.folder not in self._requests:
            wanted: dict[Source, set[int]] = defaultdict(set)
            for example in itertools.chain(*self.examples.values()):
                wanted[example.source].add(example.number)
            options = {
                "system_instruction": self._settings.system_instruction,
                "fewshot_as_multiturn": self._settings.fewshot_as_multiturn,
            }
            template = None
            if self._settings.apply_chat_template:
                if model.tokenizer.chat_template is None:
                    raise task_error(
                        self.name, "`apply_chat_template`: the tokenizer has no chat template; leave it out"
                    )
                template = self._wrapped(model).apply_chat_template
            with sandbox.loading():
                built = {source: source.requests(numbers, template, options) for source, numbers in wanted.items()}
            for request in itertools.chain(*(made for found in built.values() for made in found.values())):
                if request.request_type == "generate_until":
                    for key, value in _generation(model).items():
                        request.args[1].setdefault(key, value)
            self._requests[model.folder] = built
        return self._requests[model.folder]

    def _wrapped(self, model: TextModel) -> Any:
        """Return the harness's wrapper of the module or engine, which sees each candidate's weights; one for each module."""
        key = id(getattr(model, "module", model))
        if key not in self._wrappers:
            with sandbox.contained():
                self._wrappers[key] = self._new_wrapper(model)
        return self._wrappers[key]

    def _new_wrapper(self, model: TextModel) -> Any:
        if isinstance(model, EngineModel):
            return wrap(model, self._settings.max_length)
        assert isinstance(model, LiveModel)
        from lm_eval.models.huggingface import HFLM

        return HFLM(
            pretrained=model.module,
            tokenizer=model.tokenizer,
            batch_size=self._settings.batch_size,
            max_length=self._settings.max_length,
        )


def _generation(model: TextModel) -> dict[str, Any]:
    """Return how a model generates where a request does not say: until its end tokens, and without sampling, vLLM's default."""
    ends = list(model.end_tokens)
    if isinstance(model, EngineModel):
        return {"temperature": 0.0, "stop_token_ids": ends}
    return {"eos_token_id": ends} if ends else {}


def _found(name: str, settings: LmEvalSettings, folder: Path) -> Found:
    if (settings.task is None) == (settings.config is None):
        msg = "expected one of `task: NAME` (of the harness) and `config: {…}` (a task of your own)"
        raise task_error(name, msg)
    if settings.config is None:
        include = None if settings.include_path is None else folder / settings.include_path
        return load_named(name, str(settings.task), include)
    if settings.include_path is not None:
        raise task_error(name, "`include_path` is for a `task` by name; leave it out beside `config`")
    return load_inline(name, settings.config, folder)


def _configure(name: str, leaf: Any, settings: LmEvalSettings) -> None:
    """Give the harness's task the settings that `lm_eval.simple_evaluate` gives it."""
    if settings.num_fewshot is not None:
        if leaf.get_config("num_fewshot") == 0 and settings.num_fewshot:
            raise task_error(name, f"`{leaf.task_name}` has no solved examples in its prompts; leave out `num_fewshot`")
        leaf.set_config(key="num_fewshot", value=settings.num_fewshot)
    if leaf.OUTPUT_TYPE != "generate_until":
        if settings.gen_kwargs:
            raise task_error(name, f"`{leaf.task_name}` generates nothing; leave out `gen_kwargs`")
        return
    if settings.gen_kwargs:
        leaf.set_config(key="generation_kwargs", value=dict(settings.gen_kwargs), update=True)
    options = leaf.get_config("generation_kwargs") or {}
    if options.get("do_sample") or (options.get("temperature", 0) > 0 and options.get("do_sample") is None):
        msg = f"`{leaf.task_name}` samples its answers, and scores must repeat; add `gen_kwargs: {{do_sample: false, temperature: 0.0}}`"
        raise task_error(name, msg)


def _filter(name: str, leaves: Sequence[Any], wanted: str | None) -> str:
    """Return the name of the filter: `wanted`, or the first. Raises `TaskError` unless each of the harness's tasks has it."""
    chosen = wanted or str(leaves[0]._filters[0].name)  # noqa: SLF001  # as `lm_eval.evaluate` does
    for leaf in leaves:
        names = [ensemble.name for ensemble in leaf._filters]  # noqa: SLF001  # as above
        if chosen not in names:
            raise task_error(name, f"`{leaf.task_name}` has no filter `{chosen}`; {nearest(chosen, names)}")
    return chosen


def _digest(leaves: Sequence[Any], examples: Mapping[Split, Sequence[Example]], include: Path | None) -> str:
    described = []
    for leaf in leaves:
        config = {key: value for key, value in leaf.dump_config().items() if key not in {"dataset_kwargs", "metadata"}}
        shots = digests(leaf.sampler.df) if leaf.config.num_fewshot and hasattr(leaf, "sampler") else []
        described.append({"config": config, "few_shot": shots})
    keys = {split: [example.source.keys[example.number] for example in found] for split, found in examples.items()}
    code = (
        []
        if include is None
        else [file for file in sorted(include.rglob("*")) if file.suffix in {".py", ".yaml", ".yml"}]
    )
    whole = {
        "version": metadata.version("lm-eval"),
        "tasks": described,
        "documents": keys,
        "code": [hashlib.sha256(file.read_bytes()).hexdigest() for file in code],
    }
    return hashlib.sha256(json.dumps(whole, default=_source, sort_keys=True).encode()).hexdigest()


def _source(value: Any) -> str:
    """Return the source of a function of a task, without addresses."""
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        return f"{type(value).__module__}.{type(value).__qualname__}"
