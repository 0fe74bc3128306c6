"""Synthetic results with a known truth: each of K tasks has an expert, and merges trade one task for another."""

import hashlib
from collections.abc import Callable

import numpy as np
import pytest

from evomerge import pareto, recipe
from evomerge.recipe import Recipe
from evomerge.report import bootstrap
from evomerge.report.results import Candidate, Choice, Comparison, Hypervolume, Objective, Results

TASKS = ("news", "reuters", "tweets", "books", "code")
EXAMPLES = (400, 500)


def truth(weights: np.ndarray) -> np.ndarray:
    """Return the true accuracy on each task of a merge with these weights, one for each expert."""
    return 0.35 + 0.42 * (1 - np.exp(-3 * weights)) - 0.10 * (weights.sum() - weights)


def scored(accuracy: np.ndarray, name: str, examples: int, split: str) -> dict[str, np.ndarray]:
    """Return 0/1 scores by task; difficulty is shared by all models, so that pairs of models are correlated."""
    scores = {}
    for i, (task, p) in enumerate(zip(TASKS, accuracy, strict=False)):
        hard = np.random.default_rng([i, examples, len(split)]).random(examples)
        noise = np.random.default_rng(list(hashlib.sha256(f"{name}{task}{split}".encode()).digest()[:8])).normal(
            0, 0.05, examples
        )
        scores[task] = (hard + noise < p).astype(np.float32)
    return scores


def build_results(objectives: int = 3, *, merges: int = 60, rename: Callable[[str], str] = str) -> Results:
    """Return results over `objectives` tasks; `rename` changes every expert's and reference's name."""
    names = [rename(task) for task in TASKS[:objectives]]
    generator = np.random.default_rng(objectives)
    draws = bootstrap.resamples(dict.fromkeys(TASKS[:objectives], EXAMPLES[1]), n=300)
    scores_of: dict[str, dict[str, np.ndarray]] = {}

    def candidate(name: str, built: Recipe, accuracy: np.ndarray) -> Candidate:
        report = scored(accuracy, name, EXAMPLES[1], "report")
        scores_of[built.id] = report
        searched = scored(accuracy, name, EXAMPLES[0], "search")
        return Candidate(
            name=name,
            recipe_id=built.id,
            recipe=built.data,
            search={task: float(np.log(vector.mean()) - 0.2) for task, vector in searched.items()},
            report=bootstrap.intervals(report, draws),
            mean=bootstrap.mean_interval(report, draws),
        )

    def merged(name: str, weights: np.ndarray) -> Candidate:
        table = {"per": ["expert"], "values": {n: round(float(w), 3) for n, w in zip(names, weights, strict=True)}}
        return candidate(name, recipe.merge("task_arithmetic", names, {"weight": table}), truth(weights))

    def scale(weight: float) -> Recipe:
        return recipe.merge("task_arithmetic", names, {"weight": weight})

    eye = np.eye(objectives)
    references = {rename("base"): candidate(rename("base"), recipe.base(), truth(eye[0] * 0))}
    for i, name in enumerate(names):
        references[f"expert {name}"] = candidate(f"expert {name}", recipe.expert(name), truth(eye[i]))
    references[rename("average")] = candidate(
        rename("average"), recipe.merge("linear", names), truth(eye.sum(0) / objectives)
    )
    best = rename("best scale 0.45")
    references[best] = candidate(best, scale(0.45), truth(eye.sum(0) * 0.45))
    population = [
        merged(f"#{i + 10}", generator.dirichlet(np.ones(objectives)) * generator.uniform(0.5, 2))
        for i in range(merges)
    ]

    def points(of: list[Candidate]) -> np.ndarray:
        return np.array([list(point.search.values()) for point in of])

    front = [point for point, on in zip(population, pareto.nondominated(points(population)), strict=True) if on]
    picked = max(front, key=lambda point: sum(point.search.values()))
    corner = points([*references.values(), *population]).min(axis=0) - 0.01
    history = pareto.hypervolume_history(points([*references.values(), *population]), corner)
    below = dict.fromkeys(TASKS[:objectives], 0.3)
    gain = bootstrap.hypervolume_difference(
        [scores_of[point.recipe_id] for point in front],
        [scores_of[point.recipe_id] for point in references.values()],
        below,
        draws,
        100,
    )

    def volume(of: list[Candidate]) -> float:
        return pareto.hypervolume([[v for v, _, _ in point.report.values()] for point in of], list(below.values()))

    return Results(
        name=rename("text demo"),
        digest=hashlib.sha256(b"journal").hexdigest(),
        evaluations=len(history),
        failed=2,
        spent=len(history),
        objectives=tuple(
            Objective(name=task, search="log_likelihood", report="accuracy", examples=EXAMPLES)
            for task in TASKS[:objectives]
        ),
        genes=18,
        hypervolume=Hypervolume(
            search=float(history[-1]),
            report=volume(front),
            references=volume(list(references.values())),
            search_references=pareto.hypervolume(points(list(references.values())), corner),
            search_point=dict(zip(TASKS, corner.tolist(), strict=False)),
            report_point=below,
            history=tuple(history.tolist()),
        ),
        front=tuple(front),
        picked=picked.recipe_id,
        choice=Choice(
            candidate=picked.recipe_id,
            reference=rename("average"),
            gain=(0.02, -0.01, 0.05),
            probability=0.9,
            needed=0.7,
            metrics=dict.fromkeys(TASKS[:objectives], "accuracy"),
            noise=0.25,
        ),
        references=references,
        comparisons=(
            *(
                Comparison(
                    better="picked model",
                    worse=f"{what}{name}",
                    values=(picked.mean[0], references[name].mean[0]),
                    what="mean",
                    difference=bootstrap.difference(
                        scores_of[picked.recipe_id], scores_of[references[name].recipe_id], draws
                    ),
                )
                for what, name in (("plain ", rename("average")), ("", best))
            ),
            Comparison(
                better="searched front",
                worse="best references together",
                values=(volume(front), volume(list(references.values()))),
                what="hypervolume",
                difference=gain,
            ),
        ),
        costs={"merge": 41.2, "score": 183.9, "journal": 0.04},
        study={
            "name": rename("text demo"),
            "seed": 0,
            "budget": 80,
            "driver": {"nsga2": {"population": 16}},
            "space": {"merge": {"method": "task_arithmetic", "inputs": "experts", "parameters": {"weight": "free"}}},
        },
    )


@pytest.fixture(scope="session")
def build() -> Callable[..., Results]:
    """`build_results`, for tests that want results of their own."""
    return build_results


@pytest.fixture(scope="session", params=[2, 3, 4], ids=lambda k: f"{k} objectives")
def results(request: pytest.FixtureRequest) -> Results:
    """Results with 2, 3 and 4 objectives."""
    return build_results(request.param)
