"""mirror: the candidates of a search as an Optuna study, for optuna-dashboard and Optuna's own plots."""

import json
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from evomerge.errors import StudyError
from evomerge.search.optuna_sampler import distribution, quiet
from evomerge.space import Gene
from evomerge.study import Study
from evomerge.trial import Evaluation, Proposal

_NUMBER, _RECIPE = "number", "recipe"


def mirror(study: Study, storage: str) -> tuple[str, int]:
    """Add the full evaluations of a search to the Optuna study of its name in `storage`, such as `sqlite:///optuna.db`.

    Values are mean search scores, all maximised; parameters are the genes. Those that are there already stay, so that a search
    that runs can be mirrored again and again. Return the name, and how many were added. Raises `StudyError` where the storage
    cannot be opened, or has another study of this name.
    """
    name, objectives = study.settings.name, [*study.parts.searched]
    with quiet():
        copy = _open(name, storage, len(objectives))
        known = {trial.user_attrs.get(_NUMBER): trial.user_attrs for trial in copy.get_trials(deepcopy=False)}
        ours = {proposal.number: (proposal, evaluation) for proposal, evaluation in study.population()}
        same = all(
            number in ours and ours[number][0].recipe.id == attributes[_RECIPE] for number, attributes in known.items()
        )
        if not same or len(copy.directions) != len(objectives):
            msg = f"{storage} has another study of the name `{name}`; expected none, or a mirror of {study.folder}: give another storage"
            raise StudyError(msg)
        copy.set_metric_names(objectives)
        trials = [_trial(study, *pair) for number, pair in ours.items() if number not in known]
        copy.add_trials(trials)
    return name, len(trials)


def _open(name: str, storage: str, objectives: int) -> optuna.Study:
    maximise: list[optuna.study.StudyDirection] = [optuna.study.StudyDirection.MAXIMIZE] * objectives
    try:
        return optuna.create_study(study_name=name, storage=storage, directions=maximise, load_if_exists=True)
    except (ValueError, OSError, ImportError, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        msg = f"{storage}: {str(error).splitlines()[0]}; expected a storage of Optuna, such as sqlite:///optuna.db"
        raise StudyError(msg) from None


def _trial(study: Study, proposal: Proposal, evaluation: Evaluation) -> FrozenTrial:
    genes = list(zip(study.parts.space.genes, study.parts.space.genome_of(proposal).tolist(), strict=True))
    about: dict[str, Any] = {_NUMBER: proposal.number, _RECIPE: proposal.recipe.id}
    failed = evaluation.error is not None
    return optuna.trial.create_trial(
        state=TrialState.FAIL if failed else TrialState.COMPLETE,
        params={gene.name: _value(gene, number) for gene, number in genes},
        distributions={gene.name: _distribution(gene) for gene, _ in genes},
        values=None if failed else evaluation.means(study.parts.searched).tolist(),
        user_attrs={**about, "error": evaluation.error} if failed else about,
    )


def _value(gene: Gene, number: float) -> Any:
    value = gene.value(number)
    return json.dumps(value) if gene.kind == "choice" else value


def _distribution(gene: Gene) -> BaseDistribution:
    """Return a gene's distribution, with the words of its options."""
    if gene.kind == "choice":
        return CategoricalDistribution([json.dumps(choice) for choice in gene.choices])
    return CategoricalDistribution([False, True]) if gene.kind == "bit" else distribution(gene)
