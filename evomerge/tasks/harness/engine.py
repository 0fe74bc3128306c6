"""The harness's own class for vLLM, around an engine that is already started."""

import importlib.metadata
from typing import Any
from unittest import mock

from evomerge.models import EngineModel
from evomerge.models.engine import version as vllm_version

_ALL = 1 << 30
"""Requests of a batch: the engine itself chooses which run together."""
_installed = importlib.metadata.version


def wrap(engine: EngineModel, max_length: int | None) -> Any:
    """Return `lm_eval.models.vllm_causallms.VLLM` around `engine`, which uses up to `max_length` tokens of a request."""

    def version(name: str) -> str:
        return vllm_version() if name == "vllm" else _installed(name)

    # The class asks for the version of the distribution vllm, which has other names for some devices, and starts an engine of its
    # own: there is no other way to give it one.
    with mock.patch("importlib.metadata.version", version):
        from lm_eval.models import vllm_causallms
    with mock.patch.object(vllm_causallms, "LLM", return_value=engine.llm):
        return vllm_causallms.VLLM(
            pretrained=str(engine.folder), tokenizer=str(engine.text), batch_size=_ALL, max_length=max_length
        )
