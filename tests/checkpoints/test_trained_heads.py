"""Adapters that were trained with a head: the head comes from the adapter, and only the backbone is merged."""

import copy
import json
import subprocess
import sys

import peft
import pytest
import torch
import transformers
from commands import evomerge
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model

from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.errors import CheckpointError, PoolError
from evomerge.evaluate import Setup, Worker
from evomerge.models import LiveModel
from evomerge.models.pretrained import load_model
from evomerge.recipe import expert, merge
from evomerge.report.export import export

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # which PEFT asks transformers for
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but"),
    pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied"),  # as the test says
    pytest.mark.filterwarnings(
        "ignore:Model has `tie_word_embeddings=True` and a tied layer"
    ),  # GPT-2 has weights of both orders
]
IDS = torch.arange(3, 19)[None]  # one text: classifiers on decoders need a padding token for more
MEAN = merge("linear", ["two", "five"])
CLASSES = {"SEQ_CLS": "SequenceClassification", "TOKEN_CLS": "TokenClassification", "QUESTION_ANS": "QuestionAnswering"}


def train(
    base, folder, targets, seed, task="SEQ_CLS", named=None, kind=peft.LoraConfig, dtype=None, labels=None, **more
):
    """Save an adapter of a classifier on `base`, all of its tensors random; return PEFT's own merged model."""
    auto = getattr(transformers, named or f"AutoModelFor{CLASSES[task]}")
    changed = {} if labels is None else {"num_labels": labels, "ignore_mismatched_sizes": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_pretrained(base, dtype=dtype or "auto", **changed)
        rank = {"r": 2} if kind is peft.LoraConfig else {}
        config = kind(**rank, target_modules=targets, task_type=None if named else task, **more)
        tuned = peft.get_peft_model(model, config)
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.data += 0.2 * torch.randn_like(parameter)
    tuned.save_pretrained(folder)
    return tuned.merge_and_unload().eval()


@torch.no_grad()
def outputs(model, **inputs):
    result = model(**(inputs or {"input_ids": IDS}))
    return torch.cat([result.start_logits, result.end_logits]) if "start_logits" in result else result.logits


def mean_of(merged, name):
    """The model `name` of PEFT's `merged` ones, on the mean of their backbones."""
    prefix = f"{merged[name].base_model_prefix}."
    states = [model.state_dict() for model in merged.values()]
    mean = {key: sum(state[key] for state in states) / len(states) for key in states[0] if key.startswith(prefix)}
    model = copy.deepcopy(merged[name])
    model.load_state_dict({**model.state_dict(), **mean})
    return model


@pytest.mark.parametrize(
    ("architecture", "base_class", "targets", "task"),
    [
        ("llama_tied", "AutoModelForCausalLM", ["q_proj", "down_proj"], "SEQ_CLS"),
        ("llama", "AutoModel", ["q_proj"], "TOKEN_CLS"),
        ("gpt2", "AutoModelForCausalLM", ["c_attn", "c_proj"], "SEQ_CLS"),
        ("qwen2", "AutoModel", ["q_proj"], "QUESTION_ANS"),
        ("bert", "AutoModel", ["query", "dense"], "SEQ_CLS"),
        ("bert", "AutoModelForMaskedLM", ["query"], "TOKEN_CLS"),
        ("bert", "AutoModelForMaskedLM", ["query"], "QUESTION_ANS"),
        ("bert", None, ["query", "value"], "SEQ_CLS"),
    ],
)
def test_scored_and_exported_classifiers_are_the_mean_of_pefts_backbones_with_each_head(
    architecture, base_class, targets, task, tmp_path
):
    base = tiny_model(tmp_path / "base", architecture, auto=base_class)
    counts = {"two": 2, "five": 2} if task == "QUESTION_ANS" else {"two": 2, "five": 5}
    merged = {
        name: train(base, tmp_path / name, targets, seed, task, labels=count)
        for seed, (name, count) in enumerate(counts.items(), 1)
    }
    pool = Pool(base, {name: tmp_path / name for name in merged}, heads="own" if task == "QUESTION_ANS" else None)
    assert set(pool.heads) == {"base", *merged}
    live = LiveModel(base, heads=pool.heads)
    live.refit(Builder(pool).build(MEAN))
    export(MEAN, pool, tmp_path / "out")
    expected = {name: outputs(mean_of(merged, name)) for name in merged}
    assert not torch.equal(expected["two"].flatten()[:2], expected["five"].flatten()[:2])
    for name, model in merged.items():
        live.use_head(name)
        torch.testing.assert_close(outputs(live.module), expected[name], rtol=1e-5, atol=1e-5)
        exported = load_model(tmp_path / "out" / name, f"AutoModelFor{CLASSES[task]}")
        assert type(exported) is type(model)
        torch.testing.assert_close(outputs(exported), expected[name], rtol=1e-5, atol=1e-5)


def test_heads_of_adapters_and_full_models_stand_side_by_side(tmp_path):
    base = tiny_model(tmp_path / "base", "bert", auto="AutoModel")
    two = train(base, tmp_path / "two", ["query"], 1, labels=2)
    tiny_model(tmp_path / "five", "bert", 2, num_labels=5)
    five = load_model(tmp_path / "five", "AutoModelForSequenceClassification")
    pool = Pool(base, {"five": tmp_path / "five", "two": tmp_path / "two"})
    assert list(pool.heads) == ["base", "five", "two"]
    export(MEAN, pool, tmp_path / "out")
    merged = {"two": two, "five": five}
    for name in merged:
        exported = load_model(tmp_path / "out" / name, "AutoModelForSequenceClassification")
        torch.testing.assert_close(outputs(exported), outputs(mean_of(merged, name)), rtol=1e-5, atol=1e-5)


def test_equal_heads_are_merged_unless_they_are_said_to_stay(tmp_path):
    base = tiny_model(tmp_path / "base", "bert")
    merged = {name: train(base, tmp_path / name, ["query"], seed) for seed, name in enumerate(("two", "five"))}
    paths = {name: tmp_path / name for name in merged}
    assert not Pool(base, paths).heads
    pool = Pool(base, paths, heads="own")
    assert "classifier.weight" not in pool.merged
    export(MEAN, pool, tmp_path / "out", head="five")
    written = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(written["classifier.weight"], merged["five"].state_dict()["classifier.weight"])
    rest = merged["two"].state_dict()["bert.pooler.dense.weight"]
    assert torch.equal(written["bert.pooler.dense.weight"], rest)


def test_export_reloads_in_a_new_process_by_its_own_configuration(tmp_path):
    base = tiny_model(tmp_path / "base", "llama_tied")
    merged = {name: train(base, tmp_path / name, ["v_proj"], n, labels=n) for n, name in ((2, "two"), (5, "five"))}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("merge: {method: linear, inputs: [{expert: five}]}")
    named = [word for name in merged for word in ("--expert", f"{name}={tmp_path / name}")]
    evomerge("merge", recipe, "--base", base, *named, "-o", tmp_path / "out", "--head", "five")
    program = (
        "import sys, torch, transformers; from safetensors.torch import save_file; folder = sys.argv[1]\n"
        "name = transformers.AutoConfig.from_pretrained(folder).architectures[0]\n"
        "model, report = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)\n"
        "assert not report['missing_keys'] and not report['unexpected_keys'], report\n"
        "with torch.no_grad(): logits = model.eval()(torch.arange(3, 19)[None]).logits\n"
        "save_file({'logits': logits, 'name': torch.tensor([ord(c) for c in name])}, sys.argv[2])"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program, tmp_path / "out", tmp_path / "logits"], check=True)
    seen = load_file(tmp_path / "logits")
    assert "".join(map(chr, seen["name"])) == "LlamaForSequenceClassification"
    torch.testing.assert_close(seen["logits"], outputs(merged["five"]), rtol=1e-5, atol=1e-5)
    evomerge("merge", tmp_path / "out/recipe.yaml", "-o", tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()


def test_class_that_the_adapter_names_and_heads_of_several_modules(tmp_path):
    base = tiny_model(tmp_path / "base", "vit", auto="AutoModel")
    two = train(
        base,
        tmp_path / "two",
        ["q_proj"],
        1,
        named="ViTForImageClassification",
        labels=2,
        modules_to_save=["classifier"],
    )
    pool = Pool(base, {"two": tmp_path / "two"})
    assert {name: sorted(head.own) for name, head in pool.heads.items()}["two"] == [
        "classifier.bias",
        "classifier.weight",
    ]
    export(expert("two"), pool, tmp_path / "out", head="two")
    exported = load_model(tmp_path / "out", "AutoModelForImageClassification")
    pixels = torch.linspace(-1, 1, 16).view(1, 1, 4, 4)
    torch.testing.assert_close(outputs(exported, pixel_values=pixels), outputs(two, pixel_values=pixels))
    # A pooler that the base lacks is saved with the classifier.
    text = tiny_model(tmp_path / "text", "bert", auto="AutoModelForMaskedLM")
    five = train(text, tmp_path / "five", ["query"], 2, labels=5, modules_to_save=["pooler", "classifier"])
    export(expert("five"), Pool(text, {"five": tmp_path / "five"}), tmp_path / "with", head="five")
    exported = load_model(tmp_path / "with", "AutoModelForSequenceClassification")
    torch.testing.assert_close(outputs(exported), outputs(five), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (peft.IA3Config, {"feedforward_modules": []}),
        (peft.LoHaConfig, {}),
        (peft.LoraConfig, {"use_dora": True, "bias": "all"}),
    ],
)
def test_other_kinds_of_adapters_bring_heads_too(kind, more, tmp_path):
    base = tiny_model(tmp_path / "base", "bert", auto="AutoModel")
    five = train(base, tmp_path / "five", ["query"], 3, kind=kind, labels=5, **more)
    export(expert("five"), Pool(base, {"five": tmp_path / "five"}), tmp_path / "out", head="five")
    exported = load_model(tmp_path / "out", "AutoModelForSequenceClassification")
    torch.testing.assert_close(outputs(exported), outputs(five), rtol=1e-5, atol=1e-5)


def test_untied_head_of_a_tied_language_model_stays_with_its_adapter(tmp_path):
    base = tiny_model(tmp_path / "base", "llama_tied")
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        tuned = peft.get_peft_model(
            model, peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
        )
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.data += 0.2 * torch.randn_like(parameter)
    tuned.save_pretrained(tmp_path / "own")
    export(expert("own"), Pool(base, {"own": tmp_path / "own"}, heads="own"), tmp_path / "out", head="own")
    exported = load_model(tmp_path / "out", "AutoModelForCausalLM")
    torch.testing.assert_close(outputs(exported), outputs(tuned.merge_and_unload().eval()), rtol=1e-5, atol=1e-5)


def test_head_in_fp32_on_a_base_in_bf16_is_kept_as_it_is(tmp_path):
    base = tiny_model(tmp_path / "base", "llama")
    tensors = load_file(base / "model.safetensors")
    save_file(
        {name: tensor.bfloat16() for name, tensor in tensors.items()}, base / "model.safetensors", {"format": "pt"}
    )
    five = train(base, tmp_path / "five", ["q_proj"], 1, dtype=torch.float32, labels=5)
    export(
        merge("linear", ["five"]),
        Pool(base, {"five": tmp_path / "five"}),
        tmp_path / "out",
        head="five",
    )
    written = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(written["score.weight"], five.state_dict()["score.weight"])
    assert written["model.layers.0.self_attn.q_proj.weight"].dtype == torch.bfloat16


def test_heads_that_make_no_complete_model_are_refused(tmp_path):
    base = tiny_model(tmp_path / "base", "bert", auto="AutoModelForMaskedLM")
    train(base, tmp_path / "two", ["query"], 1, labels=2)
    with pytest.raises(
        PoolError,
        match=r"BertForSequenceClassification needs `bert\.pooler\.dense\.weight` and 1 more, .* neither in the base nor",
    ):
        Pool(base, {"two": tmp_path / "two"})
    train(base, tmp_path / "token", ["query"], 1, "TOKEN_CLS", labels=2)
    file = tmp_path / "token/adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "task_type": None}))
    with pytest.raises(PoolError, match=r"trained the head `classifier\.bias` \[2\].*`task_type` None"):
        Pool(base, {"token": tmp_path / "token"})
    file.write_text(json.dumps(config))
    weights = tmp_path / "token/adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "base_model.model.classifier.bias": torch.tensor([0.0, torch.nan])}, weights)
    with pytest.raises(CheckpointError, match=r"token: tensor `classifier\.bias` of its head holds NaN"):
        Pool(base, {"token": tmp_path / "token"})


def test_each_task_is_scored_with_the_head_of_its_adapter(tmp_path):
    base = tiny_model(tmp_path / "base", "llama_tied")
    merged = {name: train(base, tmp_path / name, ["q_proj"], n, labels=n) for n, name in ((2, "two"), (5, "five"))}
    tasks = {}
    for n, name in ((2, "two"), (5, "five")):
        rows = [{"text": f"text {i}", "label": i % n} for i in range(6)]
        for split in ("search", "report"):
            (tmp_path / f"{name}.{split}.jsonl").write_text(
                "".join(json.dumps({**row, "text": split + row["text"]}) + "\n" for row in rows)
            )
        files = {split: f"{name}.{split}.jsonl" for split in ("search", "report")}
        tasks[name] = {"kind": "classification", **files, "input": "text", "label": "label"}
    tasks["again"] = {**tasks["two"], "head_of": "two"}
    worker = Worker(Setup(str(base), {name: str(tmp_path / name) for name in merged}, tasks, folder=str(tmp_path)))
    evaluation = worker.evaluate(expert("five"))
    assert evaluation.error is None
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    with torch.no_grad():
        logits = [merged["five"](**tokenizer(f"searchtext {i}", return_tensors="pt")).logits[0] for i in range(6)]
    expected = torch.stack(logits).log_softmax(-1)[torch.arange(6), torch.arange(6) % 5]
    torch.testing.assert_close(
        torch.tensor(evaluation.scores["five/log_likelihood"]).float(), expected, rtol=1e-4, atol=1e-4
    )
    assert (evaluation.scores["again/log_likelihood"] == evaluation.scores["two/log_likelihood"]).all()
