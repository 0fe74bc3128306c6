"""Merge methods a second time, as the papers' formulas read: whole models at once, numpy, float64.

Written from the formulas and not from the code under test; only the keyed noise of DARE is taken from there.
"""

import numpy as np

from evomerge.merging.pipeline import BLOCK
from evomerge.merging.randomness import uniform


def as_float64(tensors):
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


def linear(base, experts, weights):
    """Model soups, arXiv 2203.05482: Σ w θ / Σ w."""
    return {name: sum(w * e[name] for w, e in zip(weights, experts, strict=True)) / sum(weights) for name in base}


def task_arithmetic(base, experts, weights, scale):
    """arXiv 2212.04089: θ0 + λ Σ w τ."""
    return {
        name: base[name] + scale * sum(w * (e[name] - base[name]) for w, e in zip(weights, experts, strict=True))
        for name in base
    }


def slerp(one, other, t):
    """Shoemake 1985, on each tensor as one vector; the angle by arccos, whose cosine is exact enough in float64."""
    merged = {}
    for name in one:
        a, b = one[name].ravel(), other[name].ravel()
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        if a.size < 2 or lengths == 0:
            flat = (1 - t) * a + t * b
        else:
            angle = np.arccos(np.clip(a @ b / lengths, -1, 1))
            flat = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
        merged[name] = flat.reshape(one[name].shape)
    return merged


def ties(base, experts, weights, density, scale, reduce="mean", scope="model"):
    """arXiv 2306.01708, section 3: trim, elect, disjoint merge; a vote of zero contributes nothing."""
    deltas = [{name: e[name] - base[name] for name in base} for e in experts]
    return _elect_and_merge(base, [trim(delta, density, scope) for delta in deltas], weights, scale, reduce)


def dare_linear(base, experts, labels, weights, drop, scale, seed):
    """arXiv 2311.03099, then task arithmetic."""
    deltas = [_dare(base, e, label, drop, seed) for e, label in zip(experts, labels, strict=True)]
    return {name: base[name] + scale * sum(w * d[name] for w, d in zip(weights, deltas, strict=True)) for name in base}


def dare_ties(base, experts, labels, weights, drop, scale, seed):
    """arXiv 2311.03099, then TIES' election without trimming."""
    deltas = [_dare(base, e, label, drop, seed) for e, label in zip(experts, labels, strict=True)]
    return _elect_and_merge(base, deltas, weights, scale, "mean")


def _dare(base, expert, label, drop, seed):
    """Drop with probability p, rescale the rest by 1 / (1 - p)."""
    made = {}
    for name, origin in base.items():
        sizes = [min(BLOCK, origin.size - start) for start in range(0, origin.size, BLOCK)]
        noise = [uniform(seed, label, name, i, size).numpy() for i, size in enumerate(sizes)]
        kept = np.concatenate([np.zeros(0), *noise]).reshape(origin.shape) < 1 - drop
        made[name] = kept * (expert[name] - origin) / (1 - drop)
    return made


def trim(delta, density, scope):
    def threshold(values):
        if not values.size:
            return np.inf
        return np.sort(np.abs(values))[::-1][max(round(density * values.size), 1) - 1]

    whole = threshold(np.concatenate([tensor.ravel() for tensor in delta.values()]))
    return {
        name: np.where(np.abs(d) >= (whole if scope == "model" else threshold(d.ravel())), d, 0.0)
        for name, d in delta.items()
    }


def _elect_and_merge(base, deltas, weights, scale, reduce):
    merged = {}
    for name, origin in base.items():
        stack = np.stack([d[name] for d in deltas])
        w = np.asarray(weights, dtype=np.float64).reshape(-1, *[1] * origin.ndim)
        elected = np.sign((w * stack).sum(axis=0))
        agreeing = (np.sign(w * stack) == elected) & (stack != 0) & (elected != 0)
        total, count = (w * stack * agreeing).sum(axis=0), (w * agreeing).sum(axis=0)
        mean = np.divide(total, count, out=np.zeros_like(total), where=count != 0)
        merged[name] = origin + scale * (mean if reduce == "mean" else total)
    return merged
