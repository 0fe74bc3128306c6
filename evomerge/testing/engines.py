"""A fake of the package vllm, and the contract of engines: refitted, they answer as a new engine with those weights would.

The fake runs a module of transformers, one sequence at a time. Like the real one it keeps the keys and values of prompts, and goes on
using them after its weights have changed, until its prefix cache is reset; and its head reads a packed copy of its weight.
"""

import copy
import importlib
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import TestCase

import torch

from evomerge.checkpoints.members import HeldCheckpoint
from evomerge.models import EngineModel, LiveModel
from evomerge.recipe import Recipe, base, expert


@dataclass(frozen=True, kw_only=True)
class _SamplingParams:
    max_tokens: int
    temperature: float = 1.0
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True


@dataclass
class _Worker:
    """What runs the model; `vllm.LLM` gives it the methods of `worker_extension_cls`."""

    live: LiveModel
    loaded: list[list[str]] = field(default_factory=list)
    """The names of the tensors of each `reload_weights`, in their order."""

    def __post_init__(self) -> None:
        module: Any = self.live.module
        head = module.get_output_embeddings()
        head.quant_method = SimpleNamespace(process_weights_after_loading=_pack)
        _pack(head)

    def get_model(self) -> torch.nn.Module:
        return self.live.module

    def reload_weights(self, weights_iterator: Any) -> None:
        tensors = dict(weights_iterator)
        self.loaded.append([*tensors])
        self.live.refit(HeldCheckpoint(tensors))
        module: Any = self.live.module
        head = module.get_output_embeddings()
        if (
            head.weight is not module.get_input_embeddings().weight
        ):  # as the real one, which loads nothing into a tied head
            _pack(head)


def _pack(head: Any) -> None:
    """Let a head compute with a copy of its weight, as kernels do that read it in another form."""
    packed = head.weight.detach().clone()
    head.forward = lambda hidden: torch.nn.functional.linear(hidden, packed)


class FakeLLM:
    """As much of `vllm.LLM` as `EngineModel`, and lm-eval's class for vLLM, use."""

    architectures = ("LlamaForCausalLM", "Qwen2ForCausalLM")

    def __init__(
        self,
        *,
        model: str,
        tokenizer: str,
        dtype: Any,
        worker_extension_cls: str,
        max_model_len: int | None = None,
        **options: Any,
    ) -> None:
        self.options = options
        live = LiveModel(model, "AutoModelForCausalLM", dtype, tokenizer=Path(tokenizer))
        module, _, name = worker_extension_cls.rpartition(".")
        extension = getattr(importlib.import_module(module), name)
        self.worker: Any = type("Worker", (_Worker, extension), {})(live)
        length = max_model_len or live.positions
        self.llm_engine = SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=length), engine_core=SimpleNamespace(shutdown=self._shut_down)
        )
        self.running = True
        self._cache: dict[tuple[int, ...], Any] = {}

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        """Call a method of the worker, as if it were in another process."""
        assert self.running
        sent = pickle.loads(pickle.dumps(args))  # noqa: S301  # made here
        if not all(isinstance(arg, str) for arg in sent):
            raise TypeError("only text travels to an engine")
        return [getattr(self.worker, method)(*sent)]

    def reset_prefix_cache(self) -> bool:
        """Forget what prompts have left."""
        self._cache.clear()
        return True

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Mapping[str, Any]], sampling_params: Sequence[_SamplingParams], **_: Any
    ) -> list[Any]:
        """Return what each prompt is continued by, and its own log-probabilities where they are asked for."""
        assert self.running
        return [
            self._answer(list(prompt["prompt_token_ids"]), way)
            for prompt, way in zip(prompts, sampling_params, strict=True)
        ]

    def _answer(self, prompt: list[int], way: _SamplingParams) -> Any:
        assert way.temperature == 0
        if len(prompt) + way.max_tokens > self.llm_engine.model_config.max_model_len:
            raise ValueError("longer than max_model_len")
        tokens, module, tokenizer = list(prompt), self.worker.live.module, self.worker.live.tokenizer
        cache = copy.deepcopy(self._cache.get(tuple(prompt[:-1])))
        text = ""
        for _ in range(way.max_tokens):
            given = tokens if cache is None else tokens[-1:]
            outputs = module(torch.tensor([given]), past_key_values=cache, use_cache=True)
            cache = outputs.past_key_values
            if len(tokens) == len(prompt) > 1 and tuple(prompt[:-1]) not in self._cache:
                self._cache[tuple(prompt[:-1])] = module(torch.tensor([prompt[:-1]]), use_cache=True).past_key_values
            tokens.append(int(outputs.logits[0, -1].argmax()))
            text = tokenizer.decode(tokens[len(prompt) :], skip_special_tokens=way.skip_special_tokens)
            stopped = any(stop in text for stop in way.stop)
            if tokens[-1] in way.stop_token_ids or tokens[-1] == tokenizer.eos_token_id or stopped:
                break
        for stop in way.stop:
            text = text.partition(stop)[0]
        scores = None if way.prompt_logprobs is None else self._scores(prompt, way.prompt_logprobs)
        return SimpleNamespace(
            outputs=[SimpleNamespace(token_ids=tokens[len(prompt) :], text=text)], prompt_logprobs=scores
        )

    def _scores(self, prompt: Sequence[int], count: int) -> list[Any]:
        """Return the log-probability of each token but the first, and of the `count` best ones in its place."""
        logs = self.worker.live.module(torch.tensor([prompt]), use_cache=False).logits[0].float().log_softmax(-1)
        places = [
            {token: SimpleNamespace(logprob=float(row[token])) for token in {*row.topk(count).indices.tolist(), right}}
            for row, right in zip(logs[:-1], prompt[1:], strict=True)
        ]
        return [None, *places]

    def _shut_down(self) -> None:
        self.running = False


def fake_vllm(llm: Callable[..., Any] = FakeLLM) -> ModuleType:
    """Return a module to put at `sys.modules["vllm"]`, whose `LLM` is `llm`."""
    module: Any = ModuleType("vllm")
    module.__version__ = "0.32.0"
    module.LLM, module.SamplingParams = llm, _SamplingParams
    module.TokensPrompt = dict
    module.ModelRegistry = SimpleNamespace(get_supported_archs=lambda: FakeLLM.architectures)
    module.platforms = SimpleNamespace(current_platform=SimpleNamespace(device_type="cpu"))
    made: ModuleType = module
    return made


class EngineSuite:
    """Tests of `EngineModel` with any `vllm.LLM` for pytest. Subclass it and write `make`."""

    close = 1e-4
    """By how much nats of a sequence may differ from those of transformers."""

    def make(self, folder: Path) -> tuple[EngineModel, Mapping[str, LiveModel]]:
        """Return an engine with a pool of the experts `a` and `b`, and by name modules with the weights of `base`, `a` and `b`."""
        raise NotImplementedError

    def test_weights_come_and_go(self, tmp_path: Path) -> None:
        """Refitted with the same weights an engine writes the same, whatever it had between; log-likelihoods are those of transformers."""
        engine, modules = self.make(tmp_path)
        recipes = {"a": expert("a"), "b": expert("b"), "base": base()}
        prompts = [[*range(5, 45)], [40, 41, 42], [*range(5, 14)]]  # engines keep keys and values in blocks of 16 or 32
        written: dict[str, list[list[int]]] = {}
        for name in ("a", "b", "a", "base", "b"):
            engine.refit(candidate(recipes[name]))
            tokens, scores = engine.generate(prompts, [6, 4, 5]), engine.log_likelihoods(prompts, [2, 1, 8])
            assert written.setdefault(name, tokens) == tokens
            assert [*map(len, tokens)] <= [6, 4, 5]
            for prompt, start, new, score in zip(prompts, (2, 1, 8), tokens, scores, strict=True):
                ids = torch.tensor([prompt])
                alone = modules[name].generate(ids, torch.ones_like(ids), len(new))
                assert alone[0].tolist() == new
                with torch.inference_mode():
                    logs = modules[name].module(ids).logits[0].double().log_softmax(-1)
                expected = sum(float(logs[place - 1, prompt[place]]) for place in range(start, len(prompt)))
                TestCase().assertAlmostEqual(score, expected, delta=self.close)  # noqa: PT009  # this module does not need pytest
        assert written["a"] != written["b"]  # else the test would see nothing


def candidate(recipe: Recipe) -> str:
    """Return what `EngineModel.refit` takes, of a recipe that no earlier candidate is part of."""
    return json.dumps({"recipe": recipe.data, "lineage": {}})
