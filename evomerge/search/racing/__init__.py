"""Racing: score every candidate on few examples, and only the competitive ones on more.

The candidates that another driver proposes at a time form a round. At each rung all that remain are scored on the same
examples, and their means over all examples are estimated. Those that are most probably not competitive are stopped. The idea is
that of Hoeffding races (Maron & Moore 1994) and F-Race (Birattari et al. 2002), for means over a finite set of examples and any
number of objectives. Not to be confused with successive halving, which stops a fixed share of the candidates.

**Surrogates.** If all genes are numeric and there are at most 40, surrogates of the complete (fully evaluated) candidates
(`evomerge.surrogate`) predict means as well: before the first rung, where candidates may be stopped without any score, and at
each rung, where both estimates are combined by inverse variance. The tolerance then starts four times as large and is halved
after five consecutive rounds without a new complete candidate: a coarse front early, a finer one if the budget allows.

**Stopping rule.** The rivals are the complete candidates on the front at the start of the round; their means are exact. Candidate
c is *competitive* unless some rival w has y_wj >= y_cj - tolerance·s_wj in every objective j (means y, standard errors s). c is
stopped if the probability that it is competitive is at most (1 - confidence) / decisions, where y_cj are independent normal with
the estimated means and deviations; the probability is the share of 2048 fixed draws. With one objective, or where the front
dominates a convex region, a competitive candidate is stopped with probability at most 1 - confidence over all rungs (it lies
beyond a hyperplane); in a concave part the probability can be larger for a barely competitive candidate.

**Assumptions.** Errors are about normal and as large as on the complete candidates, by which deviations are calibrated
(cross-validation). Means of candidates far better than all before are underestimated, more so with fewer examples. For two
objectives of one task, whose errors are correlated, the probability is approximate.

**Order of examples.** With `regression`: prefixes of one permutation per task. With `item_response`: half of each rung's new
examples follow the permutation, the other half are the most informative under the model of the task's first objective
(`Model.anchors`), chosen once per round. A long search adapts somewhat to the first examples.
"""

from evomerge.search.racing.driver import Racing
from evomerge.search.racing.estimators import Regression
from evomerge.search.racing.race import RACED, RacingSettings

__all__ = ["RACED", "Racing", "RacingSettings", "Regression"]
