"""Engines: the contract with a fake vllm, and with the real one where it is installed."""

import importlib.util

import pytest
from engines import engine_and_modules, install_fake

from evomerge.errors import EvaluatorError, ModelError
from evomerge.evaluate import refitting
from evomerge.recipe import expert
from evomerge.testing import EngineSuite, FakeLLM, candidate


class TestFakeEngine(EngineSuite):
    architecture = "llama"

    @pytest.fixture(autouse=True)
    def _fake(self, monkeypatch):
        install_fake(monkeypatch)

    def make(self, folder):
        return engine_and_modules(folder, self.architecture)


class TestFakeEngineWithTiedHead(TestFakeEngine):
    architecture = "llama_tied"


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")
@pytest.mark.filterwarnings("ignore")
class TestVllm(EngineSuite):
    architecture = "llama"

    def make(self, folder):
        self.engine, modules = engine_and_modules(folder, self.architecture)
        return self.engine, modules

    @pytest.fixture(autouse=True)
    def _close(self):
        yield
        self.engine.close()


class TestVllmWithTiedHead(TestVllm):
    architecture = "llama_tied"


class Stale(FakeLLM):
    def reset_prefix_cache(self):
        return True


def test_contract_sees_a_prefix_cache_that_is_not_reset(monkeypatch, tmp_path):
    install_fake(monkeypatch, Stale)
    suite = TestFakeEngine()
    with pytest.raises(AssertionError):
        suite.test_weights_come_and_go(tmp_path)


def test_contract_sees_a_tied_head_that_stays_packed(monkeypatch, tmp_path):
    install_fake(monkeypatch)
    monkeypatch.setattr(refitting, "repack_tied", lambda model: None)
    with pytest.raises(AssertionError):
        TestFakeEngineWithTiedHead().test_weights_come_and_go(tmp_path)


def test_tensors_come_in_the_order_of_layers(monkeypatch, tmp_path):
    install_fake(monkeypatch)
    engine, _ = engine_and_modules(tmp_path)
    engine.refit(candidate(expert("a")))
    [names] = engine.llm.worker.loaded
    blocks = [int(name.split(".")[2]) for name in names if ".layers." in name]
    assert blocks == sorted(blocks)
    assert names[0] == "model.embed_tokens.weight"


def test_an_engine_that_keeps_its_cache_or_dies_is_an_error(monkeypatch, tmp_path):
    install_fake(monkeypatch)
    engine, _ = engine_and_modules(tmp_path)
    monkeypatch.setattr(engine.llm, "reset_prefix_cache", lambda: False)
    with pytest.raises(ModelError, match="did not reset its prefix cache"):
        engine.refit(candidate(expert("a")))

    class EngineDeadError(Exception):
        pass

    def dead(*_, **__):
        raise EngineDeadError("killed")

    monkeypatch.setattr(engine.llm, "generate", dead)
    with pytest.raises(EvaluatorError, match="the engine died"):
        engine.generate([[5, 6]], [3])


def test_generation_ends_at_a_stop_and_at_an_end_token(monkeypatch, tmp_path):
    install_fake(monkeypatch)
    engine, _ = engine_and_modules(tmp_path)
    [whole] = engine.generate([[5, 6, 7]], [8])
    text = engine.tokenizer.decode(whole[:3])
    [stopped] = engine.generate([[5, 6, 7]], [8], [text[-1]])
    assert stopped == whole[: next(i for i in range(1, 9) if text[-1] in engine.tokenizer.decode(whole[:i]))]
    assert engine.end_tokens == (2,)
