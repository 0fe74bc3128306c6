import numpy as np
import pytest

from evomerge.errors import StudyError
from evomerge.report import bootstrap


def normal(seed: int, examples: int, mean: float = 0.0, deviation: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, deviation, examples).astype(np.float32)


def width(interval: bootstrap.Interval) -> float:
    return interval[2] - interval[1]


def test_interval_of_a_mean_has_the_width_of_the_normal_approximation():
    scores = {"a": normal(0, 400, mean=5, deviation=2)}
    value, low, high = bootstrap.intervals(scores, bootstrap.resamples({"a": 400}))["a"]
    assert value == pytest.approx(float(scores["a"].mean(dtype=np.float64)))
    error = scores["a"].std() / np.sqrt(400)
    assert (value - low) / error == pytest.approx(1.96, abs=0.15)
    assert (high - value) / error == pytest.approx(1.96, abs=0.15)


def test_95_percent_of_intervals_contain_the_truth():
    draws = bootstrap.resamples({"a": 200}, n=400)
    covered = 0
    for seed in range(300):
        _, low, high = bootstrap.mean_interval({"a": normal(seed, 200)}, draws)
        covered += low <= 0 <= high
    assert 0.91 <= covered / 300 <= 0.985


def test_objectives_have_equal_weights_in_the_mean_for_any_number_of_examples():
    scores = {"a": np.full(10, 2, np.float32), "b": np.full(90, 3, np.float32)}
    assert bootstrap.mean_interval(scores, bootstrap.resamples({"a": 10, "b": 90}, n=50)) == (2.5, 2.5, 2.5)


def test_mean_of_two_objectives_has_the_variance_of_independent_draws():
    scores = {"a": normal(0, 500), "b": normal(1, 500)}
    draws = bootstrap.resamples({"a": 500, "b": 500})
    each = bootstrap.intervals(scores, draws)
    together = width(bootstrap.mean_interval(scores, draws))
    assert together == pytest.approx(np.hypot(width(each["a"]), width(each["b"])) / 2, rel=0.08)


def test_paired_difference_is_narrower_than_the_intervals_of_the_models():
    hard = normal(0, 500)
    a, b = {"t": hard + 0.1 * normal(1, 500) + 0.05}, {"t": hard + 0.1 * normal(2, 500)}
    draws = bootstrap.resamples({"t": 500})
    paired = bootstrap.difference(a, b, draws)
    unpaired = np.hypot(width(bootstrap.mean_interval(a, draws)), width(bootstrap.mean_interval(b, draws)))
    assert width(paired) < unpaired / 5
    assert paired[1] > 0, "a gain of a twentieth of the spread shows only in pairs"


def test_difference_changes_sign_with_its_arguments():
    a, b = {"t": normal(0, 100)}, {"t": normal(1, 100)}
    draws = bootstrap.resamples({"t": 100}, n=200)
    value, low, high = bootstrap.difference(a, b, draws)
    assert bootstrap.difference(b, a, draws) == pytest.approx((-value, -high, -low))


def test_equal_seeds_give_equal_resamples_and_other_seeds_others():
    first, again, other = (bootstrap.resamples({"t": 50}, n=20, seed=seed).counts["t"] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_resamples_of_a_task_do_not_depend_on_the_other_tasks():
    alone = bootstrap.resamples({"b": 30}, n=20).counts["b"]
    np.testing.assert_array_equal(bootstrap.resamples({"a": 30, "b": 30}, n=20).counts["b"], alone)


def coverage(truth: float, draw, interval, repeats: int = 300) -> float:
    """Return the share of seeded repeats in which the interval of drawn scores contains the truth."""
    generator = np.random.default_rng(0)
    ends = [interval(draw(generator)) for _ in range(repeats)]
    return sum(low <= truth <= high for _, low, high in ends) / repeats


@pytest.mark.parametrize("of", ["mean", "difference"])
def test_intervals_of_tasks_that_share_examples_contain_the_truth(of):
    """Four views of the same 60 examples: their mean varies as one task's, twice as much as that of four separate tasks."""
    tasks, keys = "abcd", [f"image {i}" for i in range(60)]
    shared, apart = (bootstrap.resamples(dict.fromkeys(tasks, examples), n=300) for examples in (keys, 60))

    def draw(generator):
        image = generator.normal(size=60)
        return {task: (image + 0.2 * generator.normal(size=60)).astype(np.float32) for task in tasks}

    def interval(draws):
        zero = dict.fromkeys(tasks, np.zeros(60, np.float32) + 0.5)
        return lambda scores: (
            bootstrap.mean_interval(scores, draws) if of == "mean" else bootstrap.difference(scores, zero, draws)
        )

    truth = 0.0 if of == "mean" else -0.5
    assert coverage(truth, draw, interval(shared)) >= 0.9
    assert coverage(truth, draw, interval(apart)) < 0.75


def test_tasks_connected_by_shared_examples_draw_them_together():
    keys = {"a": ["1", "2", "3"], "b": ["3", "4", "5", "5"], "c": ["5", "6"], "d": 2}
    counts = bootstrap.resamples(keys, n=40).counts
    np.testing.assert_array_equal(counts["a"][:, 2], counts["b"][:, 0])
    np.testing.assert_array_equal(counts["b"][:, 2], counts["b"][:, 3])
    np.testing.assert_array_equal(counts["b"][:, 2], counts["c"][:, 0])
    assert all(table.any(axis=1).all() for table in counts.values()), "every resample has an example of every task"
    np.testing.assert_array_equal(counts["d"], bootstrap.resamples({"d": 2}, n=40).counts["d"])


@pytest.mark.parametrize(("examples", "tasks"), [(20, 1), (50, 1), (20, 4), (50, 4)])
def test_intervals_of_nearly_perfect_shares_contain_the_truth(examples, tasks):
    """Percentile intervals contain p = 0.98 in 31% of cases for 20 examples of one task, and in 64% for 50."""
    draws = bootstrap.resamples(dict.fromkeys("abcd"[:tasks], examples), n=200)

    def draw(generator):
        return {task: (generator.random(examples) < 0.98).astype(np.float32) for task in draws.counts}

    assert coverage(0.98, draw, lambda scores: bootstrap.mean_interval(scores, draws)) >= 0.92
    assert coverage(0.98, draw, lambda scores: bootstrap.intervals(scores, draws)["a"]) >= 0.95


def test_intervals_of_differences_of_nearly_perfect_shares_contain_the_truth():
    draws = bootstrap.resamples({"a": 50, "b": 50}, n=200)

    def draw(generator):
        hard = {task: generator.random(50) for task in "ab"}
        return [{task: (hard[task] < p).astype(np.float32) for task in "ab"} for p in (0.99, 0.95)]

    assert coverage(0.04, draw, lambda pair: bootstrap.difference(*pair, draws)) >= 0.94


def test_interval_of_a_share_by_hand():
    # Clopper-Pearson ends solve P(X >= 19) = 0.025 and P(X <= 19) = 0.025 for X ~ Binomial(20, p); at 20 of 20 the low
    # end is 0.025^(1/20).
    value, low, high = bootstrap.share_interval(0.95, 20)
    assert value == 0.95
    assert 20 * low**19 * (1 - low) + low**20 == pytest.approx(0.025)
    assert 1 - high**20 == pytest.approx(0.025)
    assert bootstrap.share_interval(1.0, 20) == (1.0, pytest.approx(0.025 ** (1 / 20)), 1.0)


def test_metrics_of_one_task_share_their_resamples_and_tasks_do_not():
    counts = bootstrap.resamples({"a/accuracy": 30, "a/log_likelihood": 30, "b/accuracy": 30}, n=20).counts
    np.testing.assert_array_equal(counts["a/accuracy"], counts["a/log_likelihood"])
    assert (counts["a/accuracy"] != counts["b/accuracy"]).any()


def test_every_resample_draws_as_many_examples_as_there_are():
    counts = bootstrap.resamples({"t": 37}, n=25).counts["t"]
    assert counts.shape == (25, 37)
    assert (counts.sum(axis=1) == 37).all()


def test_resampled_means_keep_small_differences_of_large_scores():
    scores = {"t": (1000 + normal(0, 200, deviation=0.01)).astype(np.float32)}
    draws = bootstrap.resamples({"t": 200}, n=50)
    exact = draws.counts["t"].astype(np.float64) @ scores["t"].astype(np.float64) / 200
    np.testing.assert_allclose(draws.means(scores)[:, 0], exact, rtol=0, atol=1e-8)


def models(accuracies: list[tuple[float, float]], seed: int = 0, examples: int = 300) -> list[dict[str, np.ndarray]]:
    """Return 0/1 scores of models on the same examples, which are equally hard for all."""
    hard = np.random.default_rng(seed).random((2, examples))
    noise = np.random.default_rng(seed + 1).normal(0, 0.05, (len(accuracies), 2, examples))
    return [
        {task: (hard[i] + noise[k, i] < pair[i]).astype(np.float32) for i, task in enumerate("ab")}
        for k, pair in enumerate(accuracies)
    ]


def test_hypervolume_difference_has_the_sign_of_the_better_set():
    better, worse = models([(0.8, 0.4), (0.7, 0.7), (0.4, 0.8)]), models([(0.6, 0.3), (0.3, 0.6)], seed=0)
    draws = bootstrap.resamples({"a": 300, "b": 300}, n=200)
    point = {"a": 0.1, "b": 0.1}
    value, low, high = bootstrap.hypervolume_difference(better, worse, point, draws)
    assert 0 < low < value < high
    back = bootstrap.hypervolume_difference(worse, better, point, draws)
    assert back == pytest.approx((-value, -high, -low))


def test_set_has_no_hypervolume_difference_from_itself():
    some = models([(0.8, 0.4), (0.4, 0.8)])
    draws = bootstrap.resamples({"a": 300, "b": 300}, n=50)
    assert bootstrap.hypervolume_difference(some, some, {"a": 0, "b": 0}, draws) == (0, 0, 0)


def test_many_copies_of_one_noisy_model_are_rarely_called_a_better_front():
    point = {"a": 0.0, "b": 0.0}
    draws = bootstrap.resamples({"a": 300, "b": 300}, n=150)
    better = 0
    for seed in range(40):
        alike = models([(0.7, 0.7)] * 14, seed=100 * seed)
        better += bootstrap.hypervolume_difference(alike[:10], alike[10:], point, draws)[1] > 0
    assert better <= 8, "the chance gain of many points counts as a better front"


@pytest.mark.parametrize(
    ("references", "copied"),
    [
        pytest.param([(0.35, 0.35), (0.6, 0.3), (0.3, 0.6), (0.7, 0.7)], [3], id="the best"),
        pytest.param([(0.35, 0.35), (0.75, 0.25), (0.25, 0.75), (0.6, 0.6), (0.68, 0.5)], [1, 2, 3, 4], id="all"),
    ],
)
def test_front_of_copies_of_references_is_called_better_in_at_most_5_percent_of_cases(references, copied):
    """Sixteen models equal in truth to references, at the level of three comparisons; by resampling alone, at 95%: 18% and 25%."""
    front = np.resize(np.array(references)[copied], (16, 2)).tolist()
    draws = bootstrap.resamples({"a": 200, "b": 200}, n=200)
    better = 0
    for seed in range(60):
        alike = models([*front, *references], seed=1000 * seed, examples=200)
        gap = bootstrap.hypervolume_difference(alike[:16], alike[16:], {"a": 0.2, "b": 0.2}, draws, level=1 - 0.05 / 3)
        better += gap[1] > 0
    assert better / 60 <= 0.05


def test_hypervolume_difference_follows_the_objectives_by_name():
    draws = bootstrap.resamples({"a": 300, "b": 300}, n=20)
    front, references = models([(0.8, 0.4)]), models([(0.5, 0.3)])
    swapped = [[{"b": m["b"], "a": m["a"]} for m in group] for group in (front, references)]
    point = {"a": 0.3, "b": 0.1}
    turned = dict(reversed(point.items()))
    assert bootstrap.hypervolume_difference(front, references, point, draws) == bootstrap.hypervolume_difference(
        *swapped, turned, draws
    )


@pytest.mark.parametrize(
    ("scores", "message"),
    [({"b": np.zeros(5)}, "`a` has no scores; there are b"), ({"a": np.zeros(4)}, r"expected scores of shape \(5,\)")],
)
def test_scores_that_do_not_fit_are_named(scores, message):
    with pytest.raises(StudyError, match=message):
        bootstrap.intervals(scores, bootstrap.resamples({"a": 5}, n=3))


def test_task_without_examples_is_refused():
    with pytest.raises(StudyError, match="task `a`: expected at least one example"):
        bootstrap.resamples({"a": 0})


def test_hypervolume_difference_needs_models_and_a_complete_point():
    draws = bootstrap.resamples({"a": 300, "b": 300}, n=3)
    some = models([(0.5, 0.5)])
    with pytest.raises(StudyError, match="the references hold no model"):
        bootstrap.hypervolume_difference(some, [], {"a": 0, "b": 0}, draws)
    with pytest.raises(StudyError, match="objective `b` is missing"):
        bootstrap.hypervolume_difference(some, some, {"a": 0}, draws)
