"""Random files, merged by mergekit 0.1.5 and by evomerge: equal, or the importer has named the difference.

`experiments/benchmarks/against_mergekit.py` does the same with 119 files.
"""

import pytest
import torch
from shared.mergekit_files import METHODS, compare, merge_documents, random_file, write_models

pytest.importorskip("mergekit")
pytestmark = pytest.mark.filterwarnings("ignore")  # mergekit's own


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {dtype: write_models(folder / str(dtype), dtype) for dtype in (torch.float32, torch.bfloat16)}


@pytest.fixture(scope="module")
def pools():
    return {}


def merged(documents, folder, pools, *, exact):
    return compare(documents, merge_documents(documents, folder), folder, pools, exact=exact)


@pytest.mark.parametrize("number", range(len(METHODS)))
def test_a_file_of_each_method_merges_alike_but_for_what_is_named(number, folders, pools, tmp_path):
    compared = merged(random_file(number, folders[torch.float32]), tmp_path, pools, exact=number % 2 == 0)
    assert compared.equal or compared.explained, compared


@pytest.mark.parametrize("number", [0, 1, 8, 17, 25])
def test_what_both_compute_in_fp32_is_equal_to_a_last_place_of_bf16(number, folders, pools, tmp_path):
    assert METHODS[number % len(METHODS)] in ("linear", "slerp", "passthrough")
    compared = merged(random_file(number, folders[torch.bfloat16]), tmp_path, pools, exact=True)
    assert compared.equal or compared.notes == ["nested"], compared


@pytest.mark.parametrize("method", ["ties", "breadcrumbs_ties", "sce", "slerp", "model_stock"])
def test_by_mergekit_s_definitions_nothing_is_left_to_name(method, folders, pools, tmp_path):
    compared = merged(random_file(METHODS.index(method), folders[torch.float32]), tmp_path, pools, exact=True)
    assert compared.equal
    assert not compared.explained
