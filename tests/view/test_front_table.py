"""The models of a report as CSV: the same numbers as the report, and intervals on search examples."""

import io

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from evomerge.view.front_table import front_csv
from evomerge.view.source import Source


@pytest.fixture(scope="module")
def source(finished):
    return Source(finished)


@pytest.fixture(scope="module")
def table(source):
    return pd.read_csv(io.StringIO(front_csv(source, source.results())), index_col="name")


def test_it_has_a_row_for_each_model_of_the_front_and_each_reference(source, table):
    results = source.results()
    assert list(table.index) == [one.name for one in (*results.front, *results.references.values())]
    numbers = table["number"].dropna()
    assert [f"#{number:.0f}" for number in numbers] == [one.name for one in results.front]
    assert list(table["recipe_id"]) == [one.recipe_id for one in (*results.front, *results.references.values())]
    assert list(table.index[table["picked"] == 1]) == [results.pick.name]


def test_unseen_means_and_intervals_are_those_of_the_report(source, table):
    results = source.results()
    for one in (*results.front, *results.references.values()):
        for task in source.study.parts.tasks:
            name = f"unseen {task}/accuracy"
            assert tuple(table.loc[one.name, [name, f"{name} low", f"{name} high"]]) == pytest.approx(one.report[task])
        mean = tuple(table.loc[one.name, ["unseen mean", "unseen mean low", "unseen mean high"]])
        assert mean == pytest.approx(one.mean)


def test_search_means_have_exact_intervals(source, table):
    """Of 0/1 scores, as scipy computes them (Clopper & Pearson)."""
    for task, size in source.study.parts.sizes["search"].items():
        column = f"search {task}/accuracy"
        for _, row in table.iterrows():
            hits = round(row[column] * size)
            assert hits == pytest.approx(row[column] * size)
            expected = binomtest(hits, size).proportion_ci(0.95)
            assert (row[f"{column} low"], row[f"{column} high"]) == pytest.approx((expected.low, expected.high))
    assert np.isfinite(table.filter(like="search").to_numpy()).all()
