"""Statistics in the cache: in parts, resumed, and refused where they are missing."""

from dataclasses import replace

import pytest
import torch

from evomerge.errors import RecipeError
from evomerge.merging import unwatched
from evomerge.statistics import STATISTICS, Collected, store

GRAM = STATISTICS["gram"]
ABOUT = {"kind": "gram", "expert": "maths", "task": "maths", "number": 5}


def collected(folder, name="statistic"):
    return Collected({"gram": {"maths": str(folder / name)}})


def assert_same(found, subject):
    expected = GRAM.collect(subject, unwatched)
    for name in subject.matrices:
        tables = found.tables("gram", "maths", name)
        assert tables.keys() == expected.get(name, {}).keys()
        assert all(torch.equal(table, expected[name][field]) for field, table in tables.items())


@pytest.mark.parametrize("memory", [1, 4000, 1 << 30])
def test_passes_do_not_change_a_bit(tiny, tmp_path, memory):
    """With little memory the examples run once for each few matrices."""
    subject, seen = tiny("bert"), []
    store.collect(GRAM, subject, tmp_path / "statistic", ABOUT, memory, lambda *progress: seen.append(progress))
    assert_same(collected(tmp_path), subject)
    parts = len(list((tmp_path / "statistic").glob("*.safetensors")))
    assert seen[-1][2] == parts * len(subject.examples)
    assert (parts == 1) == (memory == 1 << 30)
    silent = store.read_index(tmp_path / "statistic")["silent"]
    assert "bert.embeddings.word_embeddings.weight" in silent
    assert "classifier.weight" not in silent


def test_a_stopped_collection_goes_on_where_it_was(tiny, tmp_path):
    subject, calls = tiny("bert"), []

    def stop(chosen, watch):
        calls.append(len(chosen.matrices))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return GRAM.collect(chosen, watch)

    with pytest.raises(KeyboardInterrupt):
        store.collect(replace(GRAM, collect=stop), subject, tmp_path / "statistic", ABOUT, 4000, unwatched)
    assert not store.is_complete(tmp_path / "statistic")
    first = (tmp_path / "statistic" / "00000.safetensors").stat().st_mtime_ns
    store.collect(GRAM, subject, tmp_path / "statistic", ABOUT, 4000, unwatched)
    assert (tmp_path / "statistic" / "00000.safetensors").stat().st_mtime_ns == first
    assert_same(collected(tmp_path), subject)


def test_a_part_broken_by_a_crash_is_made_again(tiny, tmp_path):
    (tmp_path / "statistic").mkdir()
    (tmp_path / "statistic" / "00000.safetensors").write_bytes(b"half")
    store.collect(GRAM, tiny("bert"), tmp_path / "statistic", ABOUT, 1 << 30, unwatched)
    assert_same(collected(tmp_path), tiny("bert"))


@pytest.mark.parametrize("broken", [None, b"no tensors"])
def test_a_part_that_is_gone_or_broken_is_named(tiny, tmp_path, broken):
    subject = tiny("bert")
    store.collect(GRAM, subject, tmp_path / "statistic", ABOUT, 1 << 30, lambda *_: None)
    part = next((tmp_path / "statistic").glob("*.safetensors"))
    part.unlink() if broken is None else part.write_bytes(broken)
    with pytest.raises(RecipeError, match=rf"{part.name}: expected a part of a statistic.*remove the folder"):
        assert_same(collected(tmp_path), subject)


def test_what_is_not_collected_says_what_to_type(tmp_path):
    with pytest.raises(RecipeError, match=r"is not in the cache of this machine .* type `evomerge statistics STUDY`"):
        collected(tmp_path).tables("gram", "maths", "x")
    with pytest.raises(
        RecipeError, match=r"needs the statistic `gram` of `code`.*`evidence: \{code: \{task: TASK\}\}`"
    ):
        collected(tmp_path).digest("gram", "code")


@pytest.mark.parametrize("kind", STATISTICS)
def test_every_kind_repeats_bit_for_bit_and_is_as_its_samples(tiny, kind):
    statistic, subject = STATISTICS[kind], tiny("mixtral" if kind == "router" else "bert")
    first, again = statistic.collect(subject, unwatched), statistic.collect(subject, unwatched)
    assert statistic.about
    assert first.keys() == again.keys() != set()
    for name, tables in first.items():
        sample = statistic.sample(subject.shape(name), torch.Generator().manual_seed(0))
        if statistic.of_mask:  # what it collects are slopes, of which a mask is learnt
            assert tables["slope"].shape == sample["logits"].shape
            continue
        assert tables.keys() == sample.keys()
        for field, table in tables.items():
            assert torch.equal(table, again[name][field])
            assert table.isfinite().all()
            if kind == "hidden":  # tokens, and the width of the model, not of a matrix
                assert table.ndim == sample[field].ndim
                continue
            by_data = kind == "inputs" and field != "axis"  # as many rows as the examples have
            assert table.shape[by_data:] == sample[field].shape[by_data:]
            assert table.dtype == sample[field].dtype
