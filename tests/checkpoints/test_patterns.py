"""Patterns: the same answers as `re`, without backtracking."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.checkpoints.patterns import matches

PARTS = st.recursive(
    st.sampled_from(["a", "b", ".", "[ab]", r"\w", "[^a]", "^", "$", r"\b", r"\."]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("({0[0]}|{0[1]})".format),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "{2}", "{1,3}", "{,2}", "{2,}"])).map(
            "({0[0]}){0[1]}".format
        ),
    ),
    max_leaves=6,
)


@given(PARTS, st.text("ab.", max_size=6))
def test_matches_agree_with_re(pattern, text):
    assert matches(pattern, text) == bool(re.fullmatch(pattern, text))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"((\w|\.)+)+!", False),
        ("(a|a)" * 40 + "!", False),
        ("a?" * 60 + "a" * 60, True),
        ("(((((a*)*)*)*)*)*!", False),
        ("(((a{1,99}){1,99}){1,99}){1,99}!", False),
        ("(a?){1000000000}!", False),
    ],
)
def test_patterns_with_exponential_backtracking_are_fast(pattern, expected):
    assert matches(pattern, "a" * 60) is expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "missing"),
        ("(" * 5000, "recursion|missing"),
        (r"(a)\1", "GROUPREF"),
        ("(?=a)a", "ASSERT"),
        ("(?i:a)", "SUBPATTERN"),
        ("b(?i)a", "global flags"),
        ("a{99999999999}", "too large"),
        ("(" + "|".join(["a*a*"] * 5000) + ")*!", "too many steps"),
    ],
)
def test_unsafe_patterns_are_errors(pattern, message):
    with pytest.raises(ValueError, match=message):
        matches(pattern, "a" * 60)
