"""The conformance suite on every kind of task."""

from typing import ClassVar

import pytest
import torch
from rows import write_jsonl
from safetensors.torch import save_file

from evomerge.tasks import make
from evomerge.testing import TaskSuite

WORDS = ["a", "some", "longer text", "the longest text of all of them", "b c", "d"]


class Suite(TaskSuite):
    architecture = "llama"
    auto = None
    settings: ClassVar = {}

    @pytest.fixture(autouse=True)
    def _model(self, live):
        self.model = live(self.architecture, self.auto)

    def rows(self, split):
        raise NotImplementedError

    def make(self, folder):
        files = {split: f"{split}.jsonl" for split in ("search", "report")}
        for split, file in files.items():
            write_jsonl(folder / file, self.rows(split))
        return make("some", {**files, **self.settings}, folder), self.model


class TestClassificationOfTexts(Suite):
    architecture = "bert"
    settings: ClassVar = {"kind": "classification", "input": "text", "label": "label", "batch": 4, "keep_margins": True}

    def rows(self, split):
        return [{"text": f"{split[0]} {word}", "label": i % 3} for i, word in enumerate(WORDS)]


class TestClassificationOfOneFileWithWordsAsLabels(TestClassificationOfTexts):
    settings: ClassVar = {
        "kind": "classification",
        "input": "text",
        "label": "label",
        "examples": "all.csv",
        "split": 0.5,
        "labels": ["low", "mid", "high"],
    }

    def make(self, folder):
        rows = [f"{word} {i},{('mid', 'low', 'high')[i % 3]}" for i, word in enumerate(WORDS * 2)]
        (folder / "all.csv").write_text("\n".join(["text,label", *rows]) + "\n")
        return make("some", self.settings, folder), self.model


class TestEntropyOfClasses(TestClassificationOfTexts):
    settings: ClassVar = {**TestClassificationOfTexts.settings, "search_metric": "entropy"}


class TestClassificationOnADecoder(TestClassificationOfTexts):
    architecture = "gpt2"
    auto = "AutoModelForSequenceClassification"

    def rows(self, split):
        return [{**row, "label": row["label"] % 2} for row in super().rows(split)]


class TestClassificationWithAHead(TestClassificationOfTexts):
    settings: ClassVar = {**TestClassificationOfTexts.settings, "head": "head.safetensors"}
    auto = "AutoModel"

    def make(self, folder):
        torch.manual_seed(1)
        head = {"weight": torch.randn(3, 16), "mean": torch.randn(16), "scale": torch.tensor(5.0)}
        save_file(head, folder / "head.safetensors")
        return super().make(folder)


class TestClassificationOfImages(Suite):
    architecture = "vit"
    settings: ClassVar = {"kind": "classification", "input": "pixels", "label": "label", "batch": 4}

    def rows(self, split):
        images = torch.rand(7, 1, 4, 4, generator=torch.Generator().manual_seed(len(split) + ord(split[0])))
        return [{"pixels": image.tolist(), "label": i % 3} for i, image in enumerate(images)]


class TestLanguageModelling(Suite):
    settings: ClassVar = {"kind": "language_modelling", "batch": 2}

    def rows(self, split):
        return [{"text": f"{split} {word}"} for word in WORDS]


class TestLanguageModellingPerByte(TestLanguageModelling):
    settings: ClassVar = {"kind": "language_modelling", "batch": 2, "per": "byte", "max_length": 12}


class TestEntropyOfTokens(TestLanguageModelling):
    settings: ClassVar = {"kind": "language_modelling", "batch": 2, "search_metric": "entropy"}


class TestMultipleChoice(Suite):
    settings: ClassVar = {"kind": "multiple_choice", "batch": 4, "max_length": 40}

    def rows(self, split):
        return [
            {"prompt": f"{split[0]} {word}", "choices": ["x", "yz", word][: 2 + i % 2], "answer": i % 2}
            for i, word in enumerate(WORDS)
        ]


class TestEntropyOfChoices(TestMultipleChoice):
    architecture = "gpt2"
    settings: ClassVar = {
        **TestMultipleChoice.settings,
        "search_metric": "entropy",
        "metrics": ["accuracy", "entropy"],
        "keep_margins": True,
    }


class TestGeneration(Suite):
    settings: ClassVar = {"kind": "generation", "batch": 4, "max_new_tokens": 3, "search_metric": "accuracy"}

    def rows(self, split):
        return [{"prompt": f"{split[0]} {word}=", "answer": word[:3].strip()} for word in WORDS]


class TestLengthOfAnswers(TestGeneration):
    settings: ClassVar = {**TestGeneration.settings, "search_metric": "length", "budget": "limit", "cut": "wrong"}

    def rows(self, split):
        return [{**row, "limit": 1 + i % 3} for i, row in enumerate(super().rows(split))]


class TestLikelihoodOfAnswers(TestGeneration):
    architecture = "llama_tied"
    settings: ClassVar = {**TestGeneration.settings, "search_metric": "log_likelihood"}


class TestEntropyOfAnswers(TestGeneration):
    settings: ClassVar = {**TestGeneration.settings, "search_metric": "entropy"}


@pytest.mark.usefixtures("own_data_cache")
class TestHarnessMultipleChoice(Suite):
    output: ClassVar = {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    settings: ClassVar = {"num_fewshot": 1, "keep_margins": True, "batch_size": 4}

    def make(self, folder):
        rows = [
            {"prompt": f"{i} {word}", "choices": ["x", "yz", word][: 2 + i % 2], "answer": i % 2, "text": word[0]}
            for i, word in enumerate([*WORDS, *WORDS])
        ]
        write_jsonl(folder / "all.jsonl", rows)
        config = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": "all.jsonl"}},
            "test_split": "test",
            "doc_to_text": "{{prompt}}=",
            **self.output,
        }
        return make(
            "some", {"kind": "lm_eval", "config": config, "search": 5, "report": 7, **self.settings}, folder
        ), self.model


class TestHarnessTargets(TestHarnessMultipleChoice):
    architecture = "llama_tied"
    output: ClassVar = {"output_type": "loglikelihood", "doc_to_target": "text"}
    settings: ClassVar = {"batch_size": 3}


class TestHarnessGeneration(TestHarnessMultipleChoice):
    architecture = "gpt2"
    output: ClassVar = {
        "output_type": "generate_until",
        "doc_to_target": "text",
        "generation_kwargs": {"until": ["="], "max_gen_toks": 3},
        "metric_list": [{"metric": "exact_match"}],
    }
    settings: ClassVar = {"batch_size": 3}


class TestCallable(Suite):
    settings: ClassVar = {
        "kind": "callable",
        "function": "evomerge_test_task:score",
        "search": 5,
        "report": 3,
        "metrics": ["size", "number"],
    }

    def make(self, folder):
        (folder / "evomerge_test_task.py").write_text(
            "def score(model, split, examples):\n"
            "    size = sum(p.numel() for p in model.module.parameters())\n"
            "    return {'size': [size] * len(examples), 'number': examples}\n"
        )
        return make("some", self.settings, folder), self.model


class TestCallableWithMargins(Suite):
    settings: ClassVar = {
        "kind": "callable",
        "function": "evomerge_test_margins:score",
        "search": 5,
        "report": 3,
        "metrics": ["accuracy"],
        "keep_margins": True,
    }

    def make(self, folder):
        (folder / "evomerge_test_margins.py").write_text(
            "import torch\n"
            "def score(model, split, examples):\n"
            "    logits = torch.stack([model.module(torch.tensor([[i]])).logits[0, -1, :3] for i in examples])\n"
            "    margins = logits[:, :1] - logits[:, 1:]\n"
            "    return {'accuracy': (margins > 0).all(1), 'margins': margins}\n"
        )
        return make("some", self.settings, folder), self.model


class TestCallableWithAGradient(Suite):
    settings: ClassVar = {
        "kind": "callable",
        "function": "evomerge_test_gradient:score",
        "gradient": "evomerge_test_gradient:differentiable",
        "search": 5,
        "report": 3,
        "batch": 2,
        "metrics": ["spread", "number"],
    }

    def make(self, folder):
        (folder / "evomerge_test_gradient.py").write_text(
            "import torch\n"
            "def differentiable(model, split, examples):\n"
            "    return torch.stack([model.module(torch.tensor([[i]])).logits.float().std() for i in examples])\n"
            "def score(model, split, examples):\n"
            "    return {'spread': differentiable(model, split, examples).numpy(), 'number': examples}\n"
        )
        return make("some", self.settings, folder), self.model
