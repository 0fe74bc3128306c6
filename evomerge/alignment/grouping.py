"""Groups of the hidden units of two models that become one unit each, by the correlations of their activations.

Of models with d units each, unit i of the first is i, and unit j of the second is d + j. Returned is the number of each unit's group, int64
`(2d,)`.
"""

import torch
from torch import Tensor


def paired(correlations: Tensor, count: int) -> Tensor:
    """Return `count` groups, from d to 2d: first the most correlated of the best pairs, then what is left of the first and of the second (PLeaS).

    `correlations` `(d, d)` are of units of the first model with units of the second. The best pairs have the largest total, as in
    activation matching (Git Re-Basin, arXiv 2209.04836). Of equally correlated ones, the first.
    """
    from scipy.optimize import linear_sum_assignment  # a merge without it does not wait for scipy

    size = len(correlations)
    partners = torch.from_numpy(linear_sum_assignment(correlations.numpy(), maximize=True)[1])
    alike = correlations[torch.arange(size), partners]
    merged = alike.argsort(descending=True, stable=True)[: 2 * size - count].sort().values
    groups = torch.full((2 * size,), -1)
    groups[merged] = groups[size + partners[merged]] = torch.arange(len(merged))
    alone = groups == -1
    groups[alone] = torch.arange(len(merged), count)
    return groups


def zipped(correlations: Tensor, budget: float, damping: float) -> Tensor:
    """Return d groups, in the order of their first units: the two most correlated groups become one, again and again (ZipIt!).

    `correlations` `(2d, 2d)` are of all units. Of a new group they are the smaller of its parts', times `damping`. Of the d merges at most
    `budget` d / 2 may bring units of the first model together, and as many those of the second. Of equally correlated ones, the
    first.
    """
    size = len(correlations) // 2
    alike = correlations.double().clone()
    has = torch.zeros(2, 2 * size, dtype=torch.bool)  # which models a group has units of
    has[0, :size], has[1, size:] = True, True
    left = [int(budget * size / 2 + 1e-9)] * 2
    gone = torch.zeros(2 * size, dtype=torch.bool)
    groups = torch.arange(2 * size)

    def partners_of(group: int) -> Tensor:
        refused = gone.clone()
        refused[group] = True
        for model in (0, 1):
            if not left[model] and has[model, group]:
                refused |= has[model]
        return alike[group].masked_fill(refused, -torch.inf)

    best, partner = torch.stack([partners_of(group) for group in range(2 * size)]).max(1)
    for _ in range(size):
        one = int(best.argmax())
        one, other = sorted((one, int(partner[one])))
        shared = has[:, one] & has[:, other]
        left = [many - int(within) for many, within in zip(left, shared, strict=True)]
        groups[groups == other] = one
        gone[other], best[other], has[:, one] = True, -torch.inf, has[:, one] | has[:, other]
        alike[one] = alike[:, one] = torch.minimum(alike[one], alike[other]) * damping
        stale = (partner == one) | (partner == other)
        stale[one] = True
        for model in (0, 1):
            if shared[model] and not left[model]:
                stale |= has[model]
        row = partners_of(one)
        nearer = row > best
        best[nearer], partner[nearer] = row[nearer], one
        for group in torch.nonzero(stale & ~gone).flatten().tolist():
            best[group], partner[group] = partners_of(group).max(0)
    first = torch.arange(2 * size)[groups == torch.arange(2 * size)]
    return torch.searchsorted(first, groups)
