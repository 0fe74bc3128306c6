"""ONE IDEA: a response surface predicts a task's mean score at candidates that were not evaluated, with an interval.

Points are in unit coordinates, `(points, genes)`. Higher is better. `fit` chooses among the models of `rungs`.
"""

from evomerge.surrogate.denoise import denoise
from evomerge.surrogate.design import check_rank, design, identifies, quadratic_terms, unknowns
from evomerge.surrogate.fitting import NORMAL_90, Surrogate, best_for_all, fit, judge, predict_all, varies
from evomerge.surrogate.slopes import Slopes

__all__ = [
    "NORMAL_90",
    "Slopes",
    "Surrogate",
    "best_for_all",
    "check_rank",
    "denoise",
    "design",
    "fit",
    "identifies",
    "judge",
    "predict_all",
    "quadratic_terms",
    "unknowns",
    "varies",
]
