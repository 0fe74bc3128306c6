"""EngineModel: a model in vLLM, whose weights each candidate replaces inside the engine's own workers.

Not to be confused with `LiveModel`, a module of transformers in this process. No tensor travels to an engine: what its workers are
given is a text, of which they build the candidate themselves. The only module that imports vllm, and that only where it is asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evomerge.errors import EvaluatorError, ModelError
from evomerge.models.pretrained import end_tokens, load_config, load_padding_tokenizer
from evomerge.placement import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_EXTRA = "pip install 'evomerge[vllm]'"


def library() -> Any:
    """Return the package vllm. Raises `ModelError` where it cannot be imported."""
    try:
        import vllm
    except ImportError as error:
        msg = (
            f"`engine: vllm` needs vLLM, which cannot be imported here ({error}); type: {_EXTRA}, or leave out `engine`"
        )
        raise ModelError(msg) from None
    return vllm


def version() -> str:
    """Return the version of vLLM."""
    return str(library().__version__)


def check_class(config: Mapping[str, Any], where: Path, device: torch.device) -> None:
    """Raise `ModelError` unless vLLM is installed, for the kind of `device`, and has a class of its own for the model in `where`, by its `config`."""
    package = library()
    known = package.ModelRegistry.get_supported_archs()
    named = config.get("architectures") or ["nothing"]
    if not any(name in known for name in named):
        raise ModelError(
            f"{where}: `architectures` in config.json is {', '.join(map(str, named))}, and vLLM {version()} has no such class; "
            "expected a model that it has, or leave out `engine`"
        )
    kind = package.platforms.current_platform.device_type
    if kind != device.type:
        raise ModelError(
            f"`device` is `{device}`, and the vLLM that is installed here computes on {kind}; type `device: {kind}`, or leave out `engine`"
        )


class EngineModel:
    """A causal language model in vLLM, with the weights of the candidate that it was refitted with last."""

    causal = True

    def __init__(
        self,
        folder: Path,
        options: Mapping[str, Any],
        precision: Precision,
        tokenizer: Path | None,
        extension: str,
        source: str,
    ) -> None:
        """Start the engine with the model in `folder`, and the `options` of `vllm.LLM`, to compute in `precision`.

        `tokenizer` is the folder of another model whose tokenizer and end tokens this one has. `extension` names the class that
        adds two methods to the engine's workers: `evomerge_open`, which takes `source`, and `evomerge_refit`, which takes what `refit`
        does, and returns the error of a candidate. Raises `ModelError` where the engine does not start.
        """
        self.folder, self.text = folder, tokenizer or folder
        self._config = load_config(folder)
        try:
            self.llm: Any = library().LLM(
                model=str(folder),
                tokenizer=str(self.text),
                dtype=precision,
                runner="generate",
                seed=0,
                worker_extension_cls=extension,
                **options,
            )
            """The engine, `vllm.LLM`."""
            self.llm.collective_rpc("evomerge_open", args=(source,))
        except (ValueError, RuntimeError, OSError) as error:
            raise ModelError(f"vLLM does not start with {folder}: {error}; change `engine`, or leave it out") from error

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer, by default that of the base's folder; without a padding token, it pads with its end token."""
        return load_padding_tokenizer(self.text)

    @cached_property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end a generated text."""
        return end_tokens(self.tokenizer, self._config, self.folder, self.text)

    @property
    def positions(self) -> int:
        """The most tokens of a sequence, to which the engine adds at least one."""
        return int(self.llm.llm_engine.model_config.max_model_len) - 1

    @property
    def embedded(self) -> int | None:
        """The number of rows of the embedding of tokens."""
        rows = getattr(self._config, "vocab_size", None)
        return rows if isinstance(rows, int) else None

    def refit(self, candidate: str) -> None:
        """Replace the weights by those that the engine's workers build of `candidate`, and forget what older weights have read.

        Raises `ModelError` with the error of the candidate, after which the weights are those of no candidate.
        """
        with _alive():
            errors = self.llm.collective_rpc("evomerge_refit", args=(candidate,))
            reset = self.llm.reset_prefix_cache()
        # Keys and values of other weights would be continued without a word.
        if not reset:
            raise ModelError("vLLM did not reset its prefix cache; scores would be those of several candidates")
        for error in filter(None, errors):
            raise ModelError(error)

    def generate(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], stop: Sequence[str] = ()
    ) -> list[list[int]]:
        """Return the next tokens of each prompt by greedy decoding, up to an end token, which is the last, or its limit.

        They may end sooner, after one of the texts of `stop`.
        """
        new, ends = library().SamplingParams, list(self.end_tokens)
        ways = [
            new(temperature=0.0, max_tokens=limit, stop=list(stop), stop_token_ids=ends, detokenize=bool(stop))
            for limit in limits
        ]
        return [list(output.outputs[0].token_ids) for output in self._run(prompts, ways)]

    def log_likelihoods(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[float]:
        """Return the log-likelihood in nats of each sequence's tokens from its start, at least 1, on."""
        way = library().SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        outputs = self._run(sequences, [way] * len(sequences))
        return [
            sum(output.prompt_logprobs[place][tokens[place]].logprob for place in range(start, len(tokens)))
            for tokens, start, output in zip(sequences, starts, outputs, strict=True)
        ]

    def close(self) -> None:
        """End the engine."""
        self.llm.llm_engine.engine_core.shutdown()

    def _run(self, prompts: Sequence[Sequence[int]], ways: Sequence[Any]) -> list[Any]:
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        with _alive():
            outputs: list[Any] = self.llm.generate(given, list(ways), use_tqdm=False)
        return outputs


@contextmanager
def _alive() -> Iterator[None]:
    """Raise `EvaluatorError` where the engine dies in the block: no later candidate could be evaluated."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ == "EngineDeadError":
            raise EvaluatorError(
                f"the engine died ({error}); its own messages are above; type: evomerge resume DIR"
            ) from error
        raise
