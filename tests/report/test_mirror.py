"""A search as an Optuna study: options in words, failures as failures, each candidate once."""

from types import SimpleNamespace

import numpy as np
import optuna
import pytest

from evomerge.errors import StudyError
from evomerge.report.mirror import mirror
from evomerge.space import SearchSpace
from evomerge.trial import Evaluation, Proposal

TEMPLATE = {
    "merge": {
        "method": {"choice": ["ties", "task_arithmetic"]},
        "inputs": "experts",
        "parameters": {"weight": {"float": [0, 1], "per": ["expert"]}},
    }
}


@pytest.fixture
def search(tmp_path):
    """Return a function from genomes to a search that has evaluated them; a weight above 0.9 fails."""
    space = SearchSpace(TEMPLATE, experts=("maths", "code"))

    def make(*genomes, name="night"):
        pairs = []
        for number, genome in enumerate(np.array(genomes, dtype=float)):
            done = Evaluation(
                {"maths/accuracy": np.float32([genome[1], 0]), "code/accuracy": np.float32([genome[2], 1])}
            )
            if genome[1] > 0.9:
                done = Evaluation(error="ValueError: too much")
            pairs.append((Proposal(number, space.decode(genome), genome), done))
        parts = SimpleNamespace(space=space, searched=["maths/accuracy", "code/accuracy"])
        return SimpleNamespace(
            settings=SimpleNamespace(name=name), parts=parts, folder=tmp_path, population=lambda: pairs
        )

    return make, f"sqlite:///{tmp_path / 'optuna.db'}"


def test_candidates_are_trials_with_genes_scores_and_failures(search):
    make, storage = search
    assert mirror(make([0, 0.5, 0.25], [1, 0.25, 1], [1, 0.95, 0]), storage) == ("night", 3)
    trials = optuna.load_study(study_name="night", storage=storage).get_trials()
    names = list(trials[0].params)
    assert [list(trial.params.values()) for trial in trials] == [
        ['"ties"', 0.5, 0.25],
        ['"task_arithmetic"', 0.25, 1.0],
        ['"task_arithmetic"', 0.95, 0.0],
    ]
    assert names[1:] == ["weight[maths]", "weight[code]"]
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert [trial.values for trial in trials] == [[0.25, 0.625], [0.125, 1.0], None]
    assert trials[2].user_attrs["error"] == "ValueError: too much"


def test_a_search_that_goes_on_adds_what_is_new(search):
    make, storage = search
    mirror(make([0, 0.5, 0.25]), storage)
    assert mirror(make([0, 0.5, 0.25], [1, 0.25, 1]), storage) == ("night", 1)
    assert len(optuna.load_study(study_name="night", storage=storage).trials) == 2


def test_another_study_of_the_name_and_no_storage_are_errors(search):
    make, storage = search
    mirror(make([0, 0.5, 0.25]), storage)
    with pytest.raises(StudyError, match="has another study of the name `night`; expected none, or a mirror of"):
        mirror(make([0, 0.75, 0.25]), storage)
    with pytest.raises(StudyError, match="expected a storage of Optuna, such as sqlite:"):
        mirror(make([0, 0.5, 0.25]), "nothing")
