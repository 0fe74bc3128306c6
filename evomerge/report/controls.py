"""controls: what a study's pick gives beyond that of the same search over shuffled experts, from what both have scored."""

from pydantic import ValidationError

from evomerge import control
from evomerge.history import History
from evomerge.report import bootstrap
from evomerge.report.results import Candidate, Control, Results
from evomerge.report.scorer import RECORD, Scorer
from evomerge.study import Study


def read(study: Study, spent: float, scorer: Scorer, picked: Candidate, base: Candidate | None) -> Control | None:
    """Return the comparison of the `picked` model with the control's pick. Nothing is scored.

    `spent` is the study's used budget. None without a control that has ended with the study's budget, and for another split than
    the report's.
    """
    folder = study.folder / control.FOLDER
    try:
        results = Results.model_validate_json((folder / "report.json").read_bytes())
    except (OSError, ValidationError):  # none yet, or of another version
        return None
    if results.study["evaluations"] != study.settings.evaluations or scorer.split != "report":
        return None
    if not control.ended(folder, study.settings, results.spent):
        return None
    recorded = History.read(folder / RECORD, retried=True).population
    known = {(p.recipe.id, p.split): e.scores for p, e in recorded if e.error is None}
    scores = known.get((results.picked, "report"))
    if scores is None:
        return None
    draws, units = scorer.reported, scorer.units.tolist()
    value, low, high = bootstrap.mean_interval(scores, draws, units)
    origin = float((scorer.origins / scorer.units).mean())
    return Control(
        picked=results.pick.name,
        evaluations=results.evaluations,
        spent=(results.spent, spent),
        base=None if base is None else base.mean,
        mean=(value - origin, low - origin, high - origin),
        difference=bootstrap.difference(scorer.scores(picked.recipe_id), scores, draws, units=units),
    )
