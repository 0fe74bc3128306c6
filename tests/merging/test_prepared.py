"""The store: tables are prepared once, reused in the next session, and prepared again if a file is damaged."""

import threading
import time

import pytest
import torch

from evomerge.merging import Pipeline, Store, pipeline, prepared
from evomerge.recipe import Recipe, merge
from evomerge.testing import InMemory, merge_tensors, tiny_tensors

BASE = {name: tensor for name, tensor in tiny_tensors(0).items() if "embed" not in name}
INPUTS = [
    {name: tensor for name, tensor in tiny_tensors(1 + i, tiny_tensors(0)).items() if name in BASE} for i in range(2)
]
LABELS = ["a", "b"]
PREPARING = {
    "ties": {},
    "della": {},
    "slerp": {},
    "split_slerp": {},
    "tsv": {},
    "opcm": {},
    "svd_mutate": {},
    "sce": {"select": 0.5},
}
"""A method for each kind of thing that is prepared: ranks, noise, Gram matrices, singular vectors, folds, variances."""


@pytest.fixture
def passes(monkeypatch):
    """Which tensors were passed over, to prepare or to measure, in order."""
    seen = []
    plain = Pipeline.chunks

    def chunks(self, step, tensor, within=None):
        seen.append(tensor)
        return plain(self, step, tensor, within)

    monkeypatch.setattr(Pipeline, "chunks", chunks)
    return seen


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder where tensors of any size are worth a file."""
    monkeypatch.setattr(prepared, "_MIN_ELEMENTS", 1)
    return tmp_path / "prepared"


def content(tensors):
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def run(method, parameters, store):
    return content(merge_tensors(merge(method, LABELS, parameters), BASE, INPUTS, store=store))


@pytest.mark.parametrize("method", PREPARING)
def test_a_new_store_on_the_same_folder_finds_everything(folder, passes, method):
    expected = run(method, PREPARING[method], Store())
    assert run(method, PREPARING[method], Store(folder)) == expected
    passes.clear()
    assert run(method, PREPARING[method], Store(folder)) == expected
    measured = len(BASE) if method in ("sce", "opcm") else 0  # energies, and the last length: one pass, after the edit
    assert len([name for name in passes if BASE[name].numel()]) <= measured
    assert not list(folder.rglob(".*"))  # no temporary file is left


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\xff" * 99])
def test_a_broken_file_is_made_again(folder, damage):
    expected = run("ties", {}, Store(folder))
    files = {file: file.read_bytes() for file in folder.rglob("*.safetensors")}
    assert files
    for file, data in files.items():
        file.chmod(0o644)
        file.write_bytes(damage(data))
    assert run("ties", {}, Store(folder)) == expected
    assert {file: file.read_bytes() for file in folder.rglob("*.safetensors")} == files


def test_workers_of_one_machine_prepare_a_table_once_and_cannot_change_it(folder):
    made = []

    def make():
        made.append(threading.get_ident())
        time.sleep(0.05)
        return {"table": torch.arange(4.0)}

    def prepare(key):
        results.append(Store(folder).prepared((key,), 4, make)["table"].tolist())

    results = []
    threads = [threading.Thread(target=prepare, args=(key,)) for key in ("one", "two", "one", "two", "one")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[0.0, 1.0, 2.0, 3.0]] * 5
    assert len(made) == 2
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert [file.stat().st_mode & 0o777 for file in files] == [0o444] * 2


def test_a_folder_that_cannot_be_written_to_costs_nothing_but_time(folder):
    folder.write_text("a file, where a folder should be")
    assert run("ties", {}, Store(folder)) == run("ties", {}, Store())


def test_small_tensors_are_not_worth_a_file(tmp_path):
    run("ties", {}, Store(tmp_path))
    assert not list(tmp_path.rglob("*"))


def test_other_models_of_the_same_names_are_not_mistaken(folder):
    """Files are named by the models' content."""
    store = Store(folder)
    run("ties", {}, store)
    other = [{name: 2 * tensor for name, tensor in model.items()} for model in INPUTS]
    for used in (store, Store(folder)):
        found = content(merge_tensors(merge("ties", LABELS), BASE, other, store=used))
        assert found == content(merge_tensors(merge("ties", LABELS), BASE, other))


def test_other_orders_seeds_and_labels_are_not_mistaken(folder):
    store = Store(folder)
    for method in ("della", "opcm", "dare_linear"):
        for labels, seed in ((LABELS, 0), (LABELS[::-1], 0), (LABELS, 1), (["a", "x"], 0)):
            models = [INPUTS[0], INPUTS[1]] if labels[0] == "a" else INPUTS[::-1]
            recipe = merge(method, labels, seed=seed)
            expected = content(merge_tensors(recipe, BASE, models))
            assert content(merge_tensors(recipe, BASE, models, store=store)) == expected


def test_nothing_is_kept_for_nested_merges(folder):
    """Their inputs change with every candidate: what is prepared for them must end with it."""
    store = Store(folder)
    nested = {"merge": {"method": "linear", "inputs": ["a", "b"]}}
    recipe = Recipe.parse({"merge": {"method": "ties", "inputs": [nested, "b"]}})
    inputs = InMemory(BASE, INPUTS)
    inputs.nested = frozenset({1})
    Pipeline(recipe.root.merge, inputs, store).write("head.weight", torch.empty_like(BASE["head.weight"]))
    assert not list(folder.rglob("*"))
    assert store._prepared == store._measures == {}


def test_old_measures_are_forgotten(monkeypatch):
    monkeypatch.setattr(prepared, "_MAX_MEASURES", 2)
    store, made = Store(), []
    for key in ("one", "two", "one", "three", "one"):
        store.measure(key, lambda key=key: made.append(key))
    assert made == ["one", "two", "three", "one"]


CHEAP = [
    ("ties", {}, {"density": 0.5}),
    ("ties", {}, {"lambda": 0.5, "weight": 0.4}),
    ("ties", {"scope": "tensor"}, {"scope": "tensor", "density": 0.5}),
    ("dare_ties", {}, {"drop": 0.3, "lambda": 0.5}),
    ("della", {}, {"density": 0.3, "epsilon": 0.02, "lambda": 0.5}),
    ("breadcrumbs", {}, {"density": 0.5, "gamma": 0.1, "lambda": 0.5}),
    ("slerp", {}, {"t": 0.3}),
    ("split_slerp", {}, {"t": 0.3, "split": 0.7}),
    ("split_slerp", {"over": "kind"}, {"over": "kind", "t": 0.3, "split": 0.7}),
    ("svd_mutate", {}, {"rate": 0.7}),
    ("karcher", {}, {"weight": {"per": ["expert"], "values": {"a": 0.2, "b": 0.9}}}),
    ("sce", {"select": 0.7}, {"select": 0.7, "elect": "count"}),
    ("tsv", {}, {"lambda": 0.5, "weight": 0.4}),
    ("iso_c", {}, {"lambda": 0.5}),
    ("pcb", {}, {"lambda": 0.5, "factor": {"per": ["expert"], "values": {"a": 0.8, "b": 1.2}}}),
    ("lines", {}, {"beta": 0.9}),
    ("consensus", {}, {"threshold": 0.2, "agree": 1, "lambda": 0.5}),
    ("consensus_ties", {}, {"threshold": 0.2, "density": 0.4}),
]


def test_a_split_part_s_angle_reads_one_block_again(monkeypatch):
    """That in which the split point is; the others' inner products are known."""
    monkeypatch.setattr(pipeline, "CHUNK", 10)
    store, read = Store(), []
    run("split_slerp", {"angle": "part"}, store)
    expected = run("split_slerp", {"angle": "part", "split": 0.9}, Store())
    plain = Pipeline.chunks

    def chunks(self, step, tensor, within=None):
        read.append((tensor, within))
        return plain(self, step, tensor, within)

    monkeypatch.setattr(Pipeline, "chunks", chunks)
    assert run("split_slerp", {"angle": "part", "split": 0.9}, store) == expected
    (tensor, before), (same, after) = read
    assert tensor == same
    assert (before.stop, after.stop - before.start) == (after.start, 10)


@pytest.mark.parametrize("inner", [{"method": "linear", "inputs": ["a", "b"]}, {"method": "ties", "inputs": ["b"]}])
def test_an_expert_s_singular_vectors_serve_every_child(passes, folder, inner):
    """Children are nested merges, of which nothing is kept; what is prepared of the expert alone is."""
    recipe = Recipe.parse({"merge": {"method": "svd_mutate", "inputs": [{"merge": inner}, "b"]}})
    for shift in (0, 0.1):
        child = {name: tensor + shift for name, tensor in INPUTS[0].items()}
        expected = content(merge_tensors(recipe, BASE, [child, INPUTS[1]]))
        passes.clear()
        assert content(merge_tensors(recipe, BASE, [child, INPUTS[1]], store=Store(folder))) == expected
        assert len(passes) == (0 if shift else len([t for t in BASE.values() if t.dim() == 2 and t.numel()]))


@pytest.mark.parametrize(("method", "first", "second"), CHEAP)
def test_a_cheap_parameter_never_repeats_a_pass(passes, method, first, second):
    store = Store()
    run(method, first, store)
    expected = run(method, second, Store())
    passes.clear()
    assert run(method, second, store) == expected
    assert passes == []
