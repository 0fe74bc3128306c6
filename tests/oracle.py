"""Merge methods a second time, as the papers' formulas read: whole models at once, numpy, float64.

Written from the formulas and not from the code under test; only the random bits of DARE and DELLA are taken from there.
A model is a dictionary of float64 arrays; τ_k stands for the task vectors, dictionaries too.
"""

import re

import numpy as np
import torch

from evomerge.merging.randomness import bits, keys, own_key
from evomerge.testing import random_statistics


def as_float64(tensors):
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


def merge(method, base, experts, labels, parameters, seed=0):
    """Return the merged model; `parameters` are all that the formula reads, lists `(K,)` where they are per input."""
    p = {"labels": labels, "seed": seed, **parameters}
    if method == "svd_mutate":
        return svd_mutate(base, experts, p)
    if method in ON_WEIGHTS:
        return ON_WEIGHTS[method](experts, p)
    taus = [{name: expert[name] - base[name] for name in base} for expert in experts]
    delta = ON_TASK_VECTORS[method](taus, p)
    return {name: base[name] + delta[name] for name in base}


def each(rule, *models):
    """Apply a rule tensor by tensor."""
    return {name: rule(*(model[name] for model in models)) for name in models[0]}


def flat(model):
    """Return all numbers of a model, `(n,)`."""
    return np.concatenate([tensor.ravel() for tensor in model.values()])


def unflat(numbers, like):
    made, start = {}, 0
    for name, tensor in like.items():
        made[name] = numbers[start : start + tensor.size].reshape(tensor.shape)
        start += tensor.size
    return made


def combine(taus, weights):
    return each(lambda *rows: sum(w * row for w, row in zip(weights, rows, strict=True)), *taus)


def quotient(above, below):
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=below != 0)


def depth(name):
    """Return the block of a tensor of `tiny_tensors`, of 4, or None outside of them."""
    found = re.match(r"layers\.(\d)\.", name)
    return int(found[1]) if found else None


def kind(name):
    """Return the kind of a tensor of `tiny_tensors`."""
    words = {"attn": "attention", "mlp": "mlp", "norm": "norm", "embed": "embedding", "head": "head"}
    return next(found for word, found in words.items() if word in name)


# -- edits: one task vector, or all, at a time --


def kth_largest(values, k):
    return np.sort(values, axis=None)[::-1][k - 1] if k and values.size else np.inf


def by_scope(rule, tau, scope):
    """Apply a rule on numbers to the whole model's, or to each tensor's."""
    return unflat(rule(flat(tau)), tau) if scope == "model" else each(rule, tau)


def trim(tau, density, scope="model"):
    """TIES, arXiv 2306.01708, step 1."""

    def rule(d):
        return np.where(np.abs(d) >= kth_largest(np.abs(d), max(round(density * d.size), 1)), d, 0.0)

    return by_scope(rule, tau, scope)


def breadcrumbs(tau, density, gamma, scope="tensor"):
    """arXiv 2312.06795: from the largest, leave out the first gamma·n and their equals; keep the next density·n, and theirs."""

    def rule(d):
        keep = max(round(density * d.size), 1)
        top = min(int(gamma * d.size), max(d.size - keep, 0))
        large, small = kth_largest(np.abs(d), top), kth_largest(np.abs(d), top + keep)
        return np.where((np.abs(d) < large) & (np.abs(d) >= small), d, 0.0)

    return by_scope(rule, tau, scope)


def noise(p, i, name, size):
    """Return the random numbers of one input's tensor, in [0, 1)."""
    return drawn(keys(p["seed"], p["labels"], name)[i], size)


def drawn(key, size):
    """Return the random numbers of elements or of singular directions under a key, in [0, 1)."""
    index = torch.arange(size, dtype=torch.int64).sub_(2**31).to(torch.int32)
    return (bits(index, key).numpy().astype(np.int64) + 2**31) / 2**32


def rescaled(d, kept, q, how):
    if how == "inverse":
        return np.where(kept, d / q, 0.0)
    left = np.abs(d[kept]).sum()
    return np.where(kept, d, 0.0) * (1.0 if how == "none" else np.abs(d).sum() / left if left else 0.0)


def dare(taus, p):
    """arXiv 2311.03099: drop with probability p, rescale the rest."""
    made = []
    for i, tau in enumerate(taus):
        q = 1 - p["drop"]
        made.append(
            {
                name: rescaled(d, noise(p, i, name, d.size).reshape(d.shape) < q, q, p.get("rescale", "inverse"))
                for name, d in tau.items()
            }
        )
    return made


def della(taus, p):
    """arXiv 2406.11617, MagPrune: q = (d - ε) + 2ε·rank / (m - 1) in each row; the noise has 14 bits."""
    made = []
    for i, tau in enumerate(taus):
        made.append({})
        for name, d in tau.items():
            table = d.reshape(d.shape[0], -1) if d.ndim > 1 and d.size else d.reshape(1, -1)
            width = table.shape[1]
            ranks = np.argsort(np.argsort(np.abs(table), axis=1, kind="stable"), axis=1)
            epsilon = min(p["epsilon"], p["density"], 1 - p["density"])
            q = p["density"] - epsilon + 2 * epsilon * ranks / (width - 1) if width > 1 else p["density"] + 0.0 * table
            kept = np.floor(noise(p, i, name, d.size).reshape(table.shape) * 2**14) + 0.5 < q * 2**14
            made[-1][name] = rescaled(table, kept, q, p.get("rescale", "inverse")).reshape(d.shape)
    return made


def select(taus, fraction):
    """SCE, arXiv 2408.07990: keep where the population's variance over inputs is largest."""
    if fraction >= 1:
        return taus

    def mask(*rows):
        variance = np.var(np.stack(rows), axis=0)
        varying = int((variance > 0).sum())
        return variance >= kth_largest(variance, max(round(fraction * varying), 1) if varying else 0)

    masks = each(mask, *taus)
    return [each(lambda d, m: np.where(m, d, 0.0), tau, masks) for tau in taus]


# -- elections --


def disjoint(taus, p, weights=None):
    """TIES, steps 2 and 3, on weighted task vectors."""
    weights = p["weight"] if weights is None else weights  # numbers, or for each input a number by tensor
    undecided = {"none": 0.0, "positive": 1.0}.get(p.get("undecided", "none"))

    def mass(*rows):
        votes = [w * row for w, row in zip(p["weight"], rows, strict=True)]
        return sum(np.sign(v) if p.get("elect") == "count" else v for v in votes)

    signs = each(lambda m: np.where(np.abs(m) < 1e-14, 0.0, np.sign(m)), each(mass, *taus))  # less is rounding
    if undecided is None:
        undecided = np.sign(flat(signs).sum())
    signs = each(lambda s: np.where(s == 0, undecided, s), signs)
    made = {}
    for name, sign in signs.items():
        shares = [w[name] if isinstance(w, dict) else w for w in weights]
        parts = [
            (s * tau[name], s * ((np.sign(s * tau[name]) == sign) & (sign != 0)))
            for s, tau in zip(shares, taus, strict=True)
        ]
        terms = np.stack([part * (chosen != 0) for part, chosen in parts])
        how = p.get("reduce", "solve")
        if how == "max":
            made[name] = np.take_along_axis(terms, np.abs(terms).argmax(axis=0)[None], axis=0)[0]
        else:
            made[name] = terms.sum(axis=0)
            if how == "solve":
                made[name] = quotient(made[name], sum(chosen for _, chosen in parts))
    return made


def energy(taus):
    """Return each input's share of each tensor's sum of squares."""
    sums = [each(lambda d: (d**2).sum(), tau) for tau in taus]
    whole = each(lambda *parts: sum(parts), *sums)
    return [each(lambda part, total: part / total if total else 1 / len(taus), part, whole) for part in sums]


def pcb(taus, p):
    """PCB-Merging, arXiv 2410.02396, and its three released files by name."""
    raw = np.stack([flat(tau) for tau in taus])
    count, size = raw.shape
    cut = int(p["clip"] * size)
    ordered = np.sort(np.abs(raw), axis=1)
    rows = np.sign(raw) * np.clip(np.abs(raw), ordered[:, cut, None], ordered[:, size - 1 - cut, None])

    def norm(row):
        return (row - row.min()) / (row.max() - row.min()) if row.max() > row.min() else np.zeros(size)

    def softmax(row):
        return np.exp(row) / np.exp(row).sum()

    sizes = np.stack([norm(np.abs(row)) for row in rows])
    signed = np.sign(rows) * sizes
    betas = []
    for i, row in enumerate(rows):
        intra = np.exp(count * sizes[i] ** 2)
        match p["variant"]:
            case "paper":
                score = softmax(count * norm(row * row)) * sum(softmax(norm(row * other)) for other in rows)
            case "merging":
                score = intra * np.tanh(raw[i] * raw.sum(axis=0))
            case "pcb":
                score = intra * np.tanh(raw[i] * signed.sum(axis=0))
            case "es":
                score = intra * sum(np.tanh(signed[i] * other) for other in signed)
        bar = kth_largest(score, max(round(p["ratio"] * size), 1))
        if p["variant"] == "paper":
            betas.append(np.where(score >= bar, score, 0.0))
        else:
            betas.append(np.maximum(score - bar, 0) / (score.max() - bar) if score.max() > bar else np.zeros(size))
    betas = np.stack(betas)
    factors = np.reshape(p.get("factor", [1.0] * count), (-1, 1))
    return unflat(p["lambda"] * quotient((betas * factors * rows).sum(axis=0), betas.sum(axis=0)), taus[0])


def consensus(taus, merged, p):
    """TALL masks, arXiv 2405.07813: keep what at least `agree` inputs call their own."""
    masks = [each(lambda d, m: np.abs(d) > p["threshold"] * np.abs(m - d), tau, merged) for tau in taus]
    counts = each(lambda *parts: sum(part.astype(int) for part in parts), *masks)
    return each(lambda m, c: p["lambda"] * np.where(c >= p["agree"], m, 0.0), merged, counts)


def lines(taus, p, merged=None):
    """LiNeS, arXiv 2410.17146."""
    merged = combine(taus, p["weight"]) if merged is None else merged
    alpha = p["alpha"]
    if alpha == "auto":
        alpha = np.abs(sum(flat(tau) for tau in taus)).sum() / np.abs(flat(merged)).sum() / len(taus)
    return {name: d * (alpha + p["beta"] * (depth(name) or 0) / 3) for name, d in merged.items()}


# -- on the sphere --


def angle(a, b):
    return np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))


def arc(a, b, t):
    """Shoemake 1985, on each tensor as one vector."""
    u, v = a.ravel(), b.ravel()
    if u.size < 2 or not u.any() or not v.any() or angle(u, v) < 1e-6:
        return (1 - t) * a + t * b
    omega = angle(u, v)
    return (np.sin((1 - t) * omega) * a + np.sin(t * omega) * b) / np.sin(omega)


def split_arc(models, p):
    """M2N2, arXiv 2508.16204: t before the split point of the flattened parameters and 1 - t from there on."""
    groups = {}
    for name in models[0]:
        key = {"model": "", "kind": kind(name), "tensor": name}[p.get("over", "model")]
        groups.setdefault(key, []).append(name)
    made = {}
    for names in groups.values():
        like = {name: models[0][name] for name in names}
        a, b = (flat({name: model[name] for name in names}) for model in models)
        split = int(p["split"] * a.size)
        parts = [(slice(0, split), p["t"]), (slice(split, None), 1 - p["t"])]
        child = np.empty_like(a)
        for part, t in parts:
            ends = (a[part], b[part]) if p.get("angle") == "part" else (a, b)
            omega = angle(*ends) if all(end.any() for end in ends) else 0.0
            if np.sin(omega) > 1e-6:
                child[part] = (np.sin((1 - t) * omega) * a[part] + np.sin(t * omega) * b[part]) / np.sin(omega)
            else:
                child[part] = (1 - t) * a[part] + t * b[part]
        made |= unflat(child, like)
    return {name: made[name] for name in models[0]}


def spherical(rule):
    """Make a merge of a rule: (unit vectors, weights) → a unit vector; what has no direction is averaged."""

    def merge(models, p):
        shares = np.array(p["weight"]) / sum(p["weight"])

        def one(*tensors):
            rows = [tensor.ravel() for tensor in tensors]
            lengths = np.array([np.linalg.norm(row) for row in rows])
            if rows[0].size < 2 or not lengths.any():
                return sum(s * tensor for s, tensor in zip(shares, tensors, strict=True))
            units = [row / length for row, length in zip(rows, lengths, strict=True) if length]
            return (rule(units, shares[lengths > 0]) * (shares @ lengths)).reshape(tensors[0].shape)

        return each(one, *models)

    return merge


def unit(vector):
    return vector / np.linalg.norm(vector)


def one_step(units, shares):
    """Multi-SLERP: from the mean direction m along the mean of the inputs, projected onto the tangent space at m."""
    mean = unit(sum(s * u for s, u in zip(shares, units, strict=True)))
    tangent = sum(s * (u - (u @ mean) * mean) for s, u in zip(shares, units, strict=True))
    step = np.linalg.norm(tangent)
    return mean * np.cos(step) + (tangent * np.sin(step) / step if step else 0.0)


def karcher(units, shares):
    mean, shares = unit(sum(units)), shares / shares.sum()
    for _ in range(200):
        tangent = np.zeros_like(mean)
        for s, u in zip(shares, units, strict=True):
            theta = np.arccos(np.clip(u @ mean, -1, 1))
            tangent += s * (theta / np.sin(theta) if theta > 1e-9 else 1.0) * (u - (u @ mean) * mean)
        step = np.linalg.norm(tangent)
        if step < 1e-13:
            break
        mean = unit(np.cos(step) * mean + np.sin(step) / step * tangent)
    return mean


def model_stock(taus, p):
    """arXiv 2403.19522: t = K c / (1 + (K-1) c), within [0, 1]; where a task vector is zero, the base stays."""
    count = len(taus)

    def one(*tensors):
        rows = [tensor.ravel() for tensor in tensors]
        if not all(row.any() for row in rows):
            return np.zeros(tensors[0].shape)
        c = np.mean([np.cos(angle(rows[i], rows[j])) for i in range(count) for j in range(i)])
        t = np.clip(count * c / (1 + (count - 1) * c), 0, 1) if c > 0 else 0.0
        return t * sum(tensors) / count

    return each(one, *taus)


# -- by singular vectors --


def matrices(rule, otherwise):
    """Make a merge that treats matrices by a rule, and all else by another."""
    return lambda taus, p: each(
        lambda *tensors: rule(tensors, p) if tensors[0].ndim == 2 and tensors[0].size else otherwise(tensors, p), *taus
    )


def mean(tensors, p):
    return sum(w * tensor for w, tensor in zip(p["weight"], tensors, strict=True)) / len(tensors)


def singular(matrix):
    """Return the two bases and the singular values between them, without null directions."""
    u, sigma, vh = np.linalg.svd(matrix, full_matrices=False)
    rank = int((sigma > 1e-6 * sigma[0]).sum())
    return u[:, :rank], sigma[:rank], vh[:rank].T


def polar(matrix):
    """Return X (XᵀX)^(-1/2), by the eigenvectors of XᵀX; its null directions are left out."""
    values, vectors = np.linalg.eigh(matrix.T @ matrix)
    inverse = np.where(values > 1e-12 * values.max(), 1 / np.sqrt(np.maximum(values, 1e-300)), 0.0)
    return matrix @ (vectors * inverse) @ vectors.T


def tsv(tensors, p):
    """TSV-Merge, arXiv 2412.00081."""
    rank = max(min(tensors[0].shape) // len(tensors), 1)
    parts = [tuple(part[..., :rank] for part in singular(tensor)) for tensor in tensors]
    left, right = (polar(np.hstack([part[side] for part in parts])) for side in (0, 2))
    sigma = np.concatenate([w * part[1] for w, part in zip(p["weight"], parts, strict=True)])
    return left @ np.diag(sigma) @ right.T


def iso(tensors, p):
    """ISO-C and, for `common` below 1, ISO-CTS, arXiv 2502.04959."""
    count, rank = len(tensors), min(tensors[0].shape)
    own = round((rank - int(p["common"] * rank)) / count)
    u, sigma, v = (part[..., : rank - own * count] for part in singular(sum(tensors)))
    us, sigmas, vs = [u], [sigma], [v]
    for tensor in tensors if own else ():
        for held, part in zip((us, sigmas, vs), singular(tensor - u @ (u.T @ tensor)), strict=True):
            held.append(part[..., :own])
    return np.concatenate(sigmas).mean() * polar(np.hstack(us)) @ polar(np.hstack(vs)).T


def cart(tensors, p):
    """CART, arXiv 2412.12153: the average A, and A's low-rank distances to each input."""
    average = sum(tensors) / len(tensors)
    rank = max(round(p["rank"] * min(average.shape)), 1)
    away = [tuple(part[..., :rank] for part in singular(tensor - average)) for tensor in tensors]
    return average + p["strength"] * sum(u @ np.diag(sigma) @ v.T for u, sigma, v in away)


def wudi(tensors, p):
    """WUDI-Merging, arXiv 2503.08099, eq. 12, by Adam as its paper has it (arXiv 1412.6980), or by the pseudo-inverse."""
    grams = [tau.T @ tau / np.sum(tau**2) for tau in tensors]
    if p.get("solver") == "exact":
        return sum(tau @ gram for tau, gram in zip(tensors, grams, strict=True)) @ np.linalg.pinv(sum(grams), 1e-12)
    delta = sum(tensors)
    m, v = np.zeros(delta.shape), np.zeros(delta.shape)
    for t in range(1, p["steps"] + 1):
        gradient = sum(2 * (delta - tau) @ gram for tau, gram in zip(tensors, grams, strict=True))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        delta = delta - p["rate"] * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return delta


def ace(tensors, p):
    """ACE-Merging, arXiv 2603.02945, as in its authors' strategy.py: one column of the identity, and of s, at a time."""
    size = np.array([np.sum(tau**2) for tau in tensors])
    logs = np.log(size + 1e-12)
    apart = logs.var(ddof=1) / (logs.mean() ** 2 + 1e-12) > p["heterogeneity"]
    away = [tau - tau.mean(axis=0) for tau in tensors]
    traces = [np.trace(c.T @ c) + 1e-12 if apart else 1.0 for c in away]
    sigmas = [c.T @ c / trace for c, trace in zip(away, traces, strict=True)]
    noisy = [s + p["epsilon"] / t * np.eye(len(s)) for s, t in zip(sigmas, traces, strict=True)]
    prior = sum(sigmas).mean(axis=0) / (size.mean() + 1e-12 if apart else 1.0)
    left = sum(noisy) + np.outer(np.ones(len(prior)), prior)
    delta = sum(c @ s for c, s in zip(away, noisy, strict=True)) @ np.linalg.inv(left)
    if not apart:
        return delta
    rest = sum(tau @ (s - sum(noisy) / len(tensors)) for tau, s in zip(tensors, sigmas, strict=True))
    u, sigma, v = singular(rest + delta)
    rank = max(int(p["rank"] * min(delta.shape)), 1)
    return delta + sigma[:rank].mean() * u[:, :rank] @ v[:, :rank].T


def doge(taus, p):
    """DOGE, arXiv 2501.01230: gradients of the loss as it is written, τ by τ, each without its part in the shared subspace."""
    merged = each(np.zeros_like, taus[0])
    inside = [name for name, tau in taus[0].items() if tau.ndim == 2 and tau.size and name != "embed.weight"]
    kept = [trim({name: tau[name] for name in inside}, p["density"]) for tau in taus]
    for name in inside:
        rows = [tau[name] for tau in taus]
        lambdas = [p["eta"] / np.linalg.norm(tau) for tau in rows]
        rank = min(rows[0].shape)
        tops = np.hstack([singular(tau)[0][:, : rank // len(rows)] for tau in rows])
        u = singular(tops)[0][:, : rank // p["divisor"]]
        complement = np.eye(len(u)) - u @ u.T
        delta, m, v = np.zeros((3, *rows[0].shape))
        for t in range(1, p["steps"] + 1):
            merge_so_far = sum(scale * (tau + delta) for scale, tau in zip(lambdas, rows, strict=True))
            gradient = np.zeros(delta.shape)
            for tau in rows:
                for i, row in enumerate(tau):
                    gradient[i] += 2 * (row @ (row - merge_so_far[i])) * -sum(lambdas) * row
            g = complement @ gradient if p["project"] == "gradient" else gradient
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            delta = delta - p["rate"] * (step if p["project"] == "gradient" else complement @ step)
        masks = [tau[name] != 0 for tau in kept]
        merged[name] = sum(scale * (tau + delta) * mask for scale, tau, mask in zip(lambdas, rows, masks, strict=True))
    return merged


def opcm(taus, p):
    """arXiv 2501.09522, with its states Δ_t and λ_t as written; the norms are the whole model's."""
    merged, scale, norms = taus[0], 1.0, [np.linalg.norm(flat(taus[0]))]
    for tau in taus[1:]:

        def project(so_far, d):
            if d.ndim != 2 or not d.size or not so_far.any():
                return d
            u, sigma, v = singular(so_far)
            along = u.T @ d @ v
            kept = along - np.diag(np.diag(along))
            above = np.flatnonzero(np.cumsum(sigma) / sigma.sum() > p["alpha"])
            kept[: above[0], : above[0]] = 0.0
            return d + u @ (kept - along) @ v.T

        total = each(lambda so_far, d, s=scale: s * so_far + project(so_far, d), merged, tau)
        norms.append(np.linalg.norm(flat(tau)))
        scale = np.linalg.norm(flat(total)) / np.mean(norms)
        merged = each(lambda d, s=scale: d / s, total)
    return merged


def svd_mutate(base, experts, p):
    """CycleQD, arXiv 2410.14735, as released: child + U diag(u∘Σ) Vᵀ of the expert's task vector, norms left alone."""
    child, expert = experts

    def one(name):
        tau = expert[name] - base[name]
        if tau.ndim != 2 or not tau.size or kind(name) == "norm":
            return child[name]
        left, sigma, right = singular(tau)
        u = p["rate"] * drawn(own_key(p["seed"], "svd_mutate", name), sigma.size)
        return child[name] + left @ np.diag(u * sigma) @ right.T

    return {name: one(name) for name in base}


# -- the table --


def scaled(rule):
    return lambda taus, p: each(lambda d: p["lambda"] * d, rule(taus, p))


def trimmed(taus, p):
    return [trim(tau, p["density"], p.get("scope", "model")) for tau in taus]


def crumbs(taus, p):
    return [breadcrumbs(tau, p["density"], p["gamma"]) for tau in taus]


def sce(taus, p):
    chosen = select(taus, p["select"])
    return disjoint(chosen, {"weight": [1.0] * len(taus), "undecided": "positive"}, energy(chosen))


def weighed(models, p):
    return combine(models, np.array(p["weight"]) / sum(p["weight"]))


def mwa(models, p):
    powers = np.array(p["metric"]) ** ((-1 if p["better"] == "lower" else 1) * p["power"])
    return combine(models, powers / powers.sum())


def layer_swap(models, p):
    """arXiv 2410.01335."""
    made = {}
    for name in models[0]:
        block = depth(name)
        if block is None:
            second = float(p["outside"] == "second")
        elif block < p["bottom"] or block >= 4 - p["top"]:
            second = 1.0
        elif (p["bottom"] and block < p["bottom"] + p["transition"]) or (
            p["top"] and block >= 4 - p["top"] - p["transition"]
        ):
            second = 0.5
        else:
            second = 0.0
        made[name] = (1 - second) * models[0][name] + second * models[1][name]
    return made


ON_WEIGHTS = {
    "linear": weighed,
    "mwa": mwa,
    "slerp": lambda models, p: each(lambda a, b: arc(a, b, p["t"]), *models),
    "split_slerp": split_arc,
    "karcher": spherical(karcher),
    "layer_swap": layer_swap,
}


def tables(kind, taus, p):
    """Return the random statistics of each input, by tensor."""
    like = {name: torch.empty(tau.shape) for name, tau in taus[0].items()}
    found = random_statistics(p["labels"], like)
    return {name: found.tables(kind, name) for name in like}


def fisher(taus, p):
    squares = tables(f"fisher_{p['estimate']}", taus, p)
    squares = [{name: rows[k]["square"].double().numpy() for name, rows in squares.items()} for k in range(len(taus))]
    norms = [np.sqrt(np.square(flat(square)).sum()) if p["normalise"] == "model" else 1.0 for square in squares]
    weights = [
        {name: w * (np.maximum(table, p["floor"]) / norm) ** p["power"] for name, table in square.items()}
        for w, square, norm in zip(p["weight"], squares, norms, strict=True)
    ]
    above = combine(
        [each(np.multiply, tau, weight) for tau, weight in zip(taus, weights, strict=True)], [1] * len(taus)
    )
    return each(quotient, above, combine(weights, [1] * len(taus)))


def regmean(taus, p):
    found, result = tables("gram_merged" if p.get("grams") == "merged" else "gram", taus, p), {}
    for name in taus[0]:
        rows, w = [tau[name] for tau in taus], p["weight"]
        mean = sum(wk * row for wk, row in zip(w, rows, strict=True)) / sum(w)
        if not all(found[name]):
            result[name] = mean
            continue
        grams = [table["gram"].double().numpy() for table in found[name]]
        scaled = [np.where(np.eye(len(gram), dtype=bool), gram, p["alpha"] * gram) for gram in grams]
        ridge = p["ridge"] * np.trace(sum(wk * gram for wk, gram in zip(w, grams, strict=True))) / len(grams[0])
        left = sum(wk * gram for wk, gram in zip(w, scaled, strict=True)) + ridge * np.eye(len(grams[0]))
        right = sum(wk * row @ gram for wk, row, gram in zip(w, rows, scaled, strict=True)) + ridge * mean
        result[name] = right @ np.linalg.inv(left)
    return result


def stitched(taus, p):
    """Localize-and-Stitch, arXiv 2408.13656, with masks of the largest elements."""
    chosen = [trim(tau, p["density"]) for tau in taus]
    masks = [each(lambda d, w=w: w * (d != 0), tau) for w, tau in zip(p["weight"], chosen, strict=True)]
    return each(quotient, combine(chosen, p["weight"]), combine(masks, [1] * len(taus)))


def concrete(taus, p):
    """Concrete task arithmetic, arXiv 2312.06173: the sigmoid of each mask's logits over its mean."""
    merged = {}
    for name, rows in tables("mask", taus, p).items():
        masks = [1 / (1 + np.exp(-row["logits"].double().numpy())) for row in rows]
        masks = [mask / mask.mean() if mask.size else mask for mask in masks]
        merged[name] = p["lambda"] * sum(w * m * tau[name] for w, m, tau in zip(p["weight"], masks, taus, strict=True))
    return merged


def aim(taus, p):
    """AIM, arXiv 2502.02421: 1 - (1 - ω)A, A relative to the largest channel."""
    found, merged = tables("base_activation", taus, p), scaled(lambda t, q: combine(t, q["weight"]))(taus, p)
    for name, rows in found.items():
        if all(rows):
            tokens = np.array([int(table["tokens"]) for table in rows])
            size = tokens @ np.stack([table["size"].double().numpy() for table in rows]) / tokens.sum()
            merged[name] = merged[name] * (1 - (1 - p["omega"]) * size / size.max())
    return merged


ON_TASK_VECTORS = {
    "cart": matrices(cart, lambda tensors, p: sum(tensors) / len(tensors)),
    "wudi": scaled(matrices(wudi, lambda tensors, p: sum(tensors) / len(tensors))),
    "ace": scaled(matrices(ace, lambda tensors, p: sum(tensors) / len(tensors))),
    "doge": scaled(doge),
    "concrete": concrete,
    "localize_stitch": stitched,
    "aim": aim,
    "fisher": fisher,
    "regmean": regmean,
    "regmean_plus": regmean,
    "task_arithmetic": scaled(lambda taus, p: combine(taus, p["weight"])),
    "lines": lines,
    "nuslerp": lambda taus, p: each(lambda a, b: arc(a, b, p["weight"][1] / sum(p["weight"])), *taus),
    "multislerp": spherical(one_step),
    "model_stock": model_stock,
    "ties": scaled(lambda taus, p: disjoint(trimmed(taus, p), p)),
    "dare_linear": scaled(lambda taus, p: combine(dare(taus, p), p["weight"])),
    "dare_ties": scaled(lambda taus, p: disjoint(trimmed(dare(taus, p), p), p)),
    "della": scaled(lambda taus, p: disjoint(della(taus, p), p)),
    "della_linear": scaled(lambda taus, p: combine(della(taus, p), p["weight"])),
    "breadcrumbs": scaled(lambda taus, p: combine(crumbs(taus, p), p["weight"])),
    "breadcrumbs_ties": scaled(lambda taus, p: disjoint(crumbs(taus, p), p)),
    "sce": sce,
    "pcb": pcb,
    "consensus": lambda taus, p: consensus(taus, combine(taus, p["weight"]), p),
    "consensus_ties": lambda taus, p: consensus(taus, disjoint(trimmed(taus, p), {"reduce": "sum", **p}), p),
    "tsv": scaled(matrices(tsv, mean)),
    "iso_c": scaled(lambda taus, p: matrices(iso, mean)(taus, {"common": 1.0, "weight": [1] * len(taus)})),
    "iso_cts": scaled(lambda taus, p: matrices(iso, mean)(taus, {"weight": [1] * len(taus), **p})),
    "opcm": opcm,
    "nearswap": lambda taus, p: each(lambda *rows: sum(np.clip(row, -p["t"], p["t"]) for row in rows), *taus),
}
