"""Tiny models for engines, and a fake vllm in place of the real one."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

from tiny_models import tiny_model

from evomerge.evaluate import Setup
from evomerge.evaluate.loaded import open_engine
from evomerge.evaluate.setup import open_pool
from evomerge.models import LiveModel
from evomerge.models.pretrained import load_tokenizer
from evomerge.testing import fake_vllm

SIZES = {"hidden_size": 64, "head_dim": 32, "intermediate_size": 96}
"""Sizes of heads that the real engine has kernels for."""


def install_fake(monkeypatch, llm=None):
    """Let `import vllm` give the fake."""
    fake = fake_vllm() if llm is None else fake_vllm(llm)
    fake.__spec__ = ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", fake)


def install_what_the_harness_imports(monkeypatch):
    """Let lm-eval's class for vLLM find the other names that it imports."""
    named = {
        "vllm.lora.request": {"LoRARequest": None},
        "vllm.renderers.hf": {"resolve_chat_template": lambda tokenizer, **_: tokenizer.chat_template},
        "vllm.tokenizers": {"get_tokenizer": lambda folder, **_: load_tokenizer(folder)},
    }
    for name, content in named.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("vllm.lora", "vllm.renderers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.delitem(sys.modules, "lm_eval.models.vllm_causallms", raising=False)


def llama_setup(folder, tasks=None, architecture="llama", **changes):
    """Return a setup with an engine, of a base and two experts in `folder`."""
    paths = {
        name: str(tiny_model(folder / name, architecture, seed=seed, **SIZES))
        for seed, name in enumerate(("base", "a", "b"))
    }
    engine = {"kind": "vllm", "max_model_len": 64, "enforce_eager": True, "block_size": 32}
    return Setup(paths.pop("base"), paths, tasks or {}, folder=str(folder), **{"engine": engine, **changes})


def engine_and_modules(folder, architecture="llama"):
    """Return what `EngineSuite.make` does."""
    setup = llama_setup(folder, architecture=architecture)
    modules = {
        name: LiveModel(path, "AutoModelForCausalLM") for name, path in {"base": setup.base, **setup.experts}.items()
    }
    return open_engine(setup, open_pool(setup)), modules
