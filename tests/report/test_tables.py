import io

import pytest
from rich.console import Console

from evomerge.report import tables
from evomerge.report.results import Comparison


def printed(*parts) -> str:
    console = Console(file=io.StringIO(), width=110, highlight=False)
    for part in parts:
        console.print(part)
    return console.file.getvalue()


def test_table_fits_a_log_file_and_has_no_colour_codes(results):
    text = printed(*tables.summary(results))
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 110


def test_table_holds_every_reference_and_merge_with_its_interval(results):
    lines = printed(*tables.summary(results)).splitlines()
    for model in [*results.references.values(), *results.front]:
        [line] = [line for line in lines if line.startswith(f"{model.name} ") and "[" in line]
        value, low, high = model.report[results.objectives[0].name]
        assert f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in line
        assert (" * " in line) == (model.recipe_id == results.picked)


def test_five_objectives_still_fit(build):
    results = build(5, merges=5)
    text = printed(*tables.summary(results))
    assert max(map(len, text.splitlines())) <= 110
    _, low, high = results.references["base"].mean
    assert f"[{100 * low:.1f}, {100 * high:.1f}]" in text, "an interval is never broken in two"


def test_sentences_give_both_values_the_gap_and_the_verdict(results):
    first = results.comparisons[0]
    sentences = tables.sentences(results)
    a, b = (f"{100 * value:.1f}" for value in first.values)
    gap = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * number for number in first.difference))
    assert sentences[0] == (
        f"The picked model has mean accuracy {a} on unseen examples, the plain average {b}: {gap}, {first.verdict}."
    )
    assert sentences[-1].startswith(f"{results.evaluations} candidates were evaluated, 2 failed.")
    assert len(sentences) == len(results.comparisons) + 2


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [((0.04, 0.03, 0.05), "better"), ((0.01, -0.01, 0.03), "no difference shown"), ((-0.04, -0.05, -0.03), "worse")],
)
def test_verdicts_are_plain_words(results, difference, verdict):
    for what in ("mean", "hypervolume"):
        one = Comparison(better="picked model", worse="average", values=(0.5, 0.4), what=what, difference=difference)
        sentences = tables.sentences(results.model_copy(update={"comparisons": (one,)}))
        assert sentences[0].endswith(f", {verdict}.")


def test_race_has_its_number_of_stopped_candidates_and_its_cost(results):
    raced = results.model_copy(update={"stopped": 7, "spent": 12.5})
    sentences = " ".join(tables.sentences(raced))
    assert "; 7 lost their race before; 12.5 evaluations' worth of examples in all" in sentences
    assert raced.public()["race"] == {"stopped": 7, "spent": 12.5}
    assert "race" not in results.public()
    assert "lost their race" not in " ".join(tables.sentences(results))


def test_likelihoods_are_not_shown_in_percent(build):
    results = build(2, merges=5)
    objectives = tuple(o.model_copy(update={"report": "log_likelihood"}) for o in results.objectives)
    text = printed(*tables.summary(results.model_copy(update={"objectives": objectives})))
    assert "log likelihood" in text
    assert f"{results.references['base'].mean[0]:.3f} [" in text


def test_point_is_shown_beside_references(results):
    picked = results.pick
    text = printed(tables.point(results, picked))
    assert "base" in text
    assert "average" in text
    assert f"{picked.name} *" in text


def test_brackets_in_names_are_not_markup(build):
    text = printed(*tables.summary(build(2, merges=5, rename=lambda name: f"[red]{name}")))
    assert "[red]base" in text


def test_levels_of_intervals_are_stated(results):
    one, *more = results.comparisons
    level = 1 - 0.05 / 3
    three = results.model_copy(
        update={"comparisons": tuple(c.model_copy(update={"level": level}) for c in (one, *more))}
    )
    assert "comparisons cover with 98.3% each, and so with 95% together (Bonferroni)" in tables.sentences(three)[-1]
    alone = results.model_copy(update={"comparisons": (one,)})
    assert tables.sentences(alone)[-1].endswith("Each interval of a score covers with 95% by itself.")


def test_choice_says_which_model_is_picked_and_why(results):
    text = tables.choice(results)
    assert text.startswith(f"Picked: {results.pick.name}. By the search examples, average is the best reference")
    assert "+2.0 [-1.0, +5.0] above average, and better with probability 0.90" in text
    kept = results.model_copy(
        update={
            "picked": results.references["average"].recipe_id,
            "choice": results.choice.model_copy(update={"probability": 0.6}),
        }
    )
    text = tables.choice(kept)
    assert text.startswith("Picked: average, a reference. No candidate of the search is likely enough to be better")
    assert "(0.70 is needed)" in text
    assert f"`evomerge pick … --anyway` exports {results.pick.name}." in text
    assert "average *" in printed(*tables.summary(kept))
    assert tables.reasons(kept, kept.front[0], default=False)[0].startswith("Warning: Picked: average")
    assert not tables.reasons(results, results.front[0], default=False)


def test_metrics_that_differ_are_said_to_be_scaled(build):
    results = build(2, merges=5)
    first, second = results.objectives
    mixed = results.model_copy(update={"objectives": (first, second.model_copy(update={"report": "log_likelihood"}))})
    assert any(line.startswith("The metrics differ, so each is scaled") for line in tables.sentences(mixed))
    assert "scaled score" in printed(*tables.summary(mixed))
    assert not any("scaled" in line for line in tables.sentences(results))


def test_noise_of_the_search_examples_is_stated(results):
    total = 400 * len(results.objectives)
    assert tables.noise(results).startswith(f"18 genes were searched with {total} examples. Of the variance")
    assert "models, 25% is the noise" in tables.noise(results)
    assert tables.noise(results) in tables.sentences(results)


def test_every_model_is_one_line_where_there_is_room_and_no_interval_is_broken_elsewhere(build):
    results = build(5, merges=5)
    wide = Console(file=io.StringIO(), width=10_000, highlight=False)
    wide.print(*tables.summary(results))
    lines = wide.file.getvalue().splitlines()
    for model in [*results.references.values(), *results.front]:
        [line] = [line for line in lines if line.startswith(f"{model.name} ")]
        assert line.count("[") == line.count("]") == 6
    narrow = printed(*tables.summary(results)).splitlines()
    assert max(map(len, narrow)) <= 110
    assert all(line.count("[") == line.count("]") for line in narrow)


def test_a_candidate_that_scores_as_a_reference_is_named_as_it(results):
    same = results.front[0].model_copy(update={"equals": "base"})
    text = printed(*tables.summary(results.model_copy(update={"front": (same, *results.front[1:])})))
    assert f"{same.name} = base" in text
    assert f"{len(results.front)} candidates, 1 of which score as a reference (=)" in text
    assert "(=)" not in printed(*tables.summary(results))
