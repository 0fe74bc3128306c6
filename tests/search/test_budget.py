import pytest

from evomerge import search
from evomerge.search import budget
from evomerge.testing.problems import family, two_spheres
from evomerge.trial import Metric

SMOOTH = {f"{task}/log_likelihood": Metric("log_likelihood", high=0.0, slopes=True) for task in "ab"}
SIZES = {"a": 100, "b": 100}


@pytest.mark.parametrize(
    ("genes", "settings", "expected"),
    [
        (4, {"kind": "random"}, 100),  # 20 * 5, and 100 at least
        (10, {"kind": "tpe"}, 220),  # 20 * 11
        (60, {"kind": "nsga2"}, 400),  # 20 * 61, and 400 at most
        (4, {"kind": "front"}, 54),  # 1.2 * 15 = 18 a design
        (10, {"kind": "front"}, 162),  # 5 * 11 = 55 a design, half of which is 27
        (4, {"kind": "map"}, 96),  # a quadratic in 4 genes has 15 unknowns: 16 candidates at least
        (60, {"kind": "front", "slopes": True}, 120),  # 3 * 40
        (60, {"kind": "gradient"}, 120),
        (60, {"kind": "gradient", "in_flight": 6}, 720),
        (10, {"kind": "nsga2", "polish": {"steps": 3}}, 220),
        (10, {"kind": "racing", "driver": {"kind": "nsga2"}}, 220),
    ],
)
def test_the_default_budget_depends_on_the_driver_and_the_genes(genes, settings, expected):
    space = two_spheres(genes).space
    number, why = budget(search.make(settings, space, SMOOTH, 0, SIZES), space)
    assert number == expected
    assert why


def test_populations_of_models_have_the_largest_budget():
    space = family().space
    names = ["a/accuracy", "b/accuracy"]
    assert budget(search.make({"kind": "niches"}, space, names, 0), space)[0] == 400
