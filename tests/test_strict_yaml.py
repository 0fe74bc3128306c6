"""Strict YAML."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import plain

from evomerge import strict_yaml
from evomerge.strict_yaml import YamlError, parse, text


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3.", -3.0),
        ("+7", 7),
        ("010", 10),
        ("08", 8),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("0x1f", "0x1f"),
        ("2026-01-02", "2026-01-02"),
        ("truely", "truely"),
        ("1.2.3", "1.2.3"),
        ("block/4", "block/4"),
        ("true", True),
        ("~", None),
        ("", None),
        ("-.inf", float("-inf")),
        ("<<", "<<"),
        ("'1'", "1"),
        ("!!str 1", "1"),
    ],
)
def test_scalars_follow_yaml_1_2(written, meant):
    found = parse(f"key: {written}", "f")["key"]
    assert found == meant
    assert type(found) is type(meant)


def test_keys_are_words():
    assert parse("{1: a, no: b, 1e3: c, ~: d}", "f") == {"1": "a", "no": "b", "1e3": "c", "~": "d"}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("a: 1\nb: 2\na: 3", "study.yaml: line 3: key `a` is written twice; keep one"),
        ("a: {b: 1, b: 2}", "key `b` is written twice"),
        ("a: 1\nb: &a {c: [*a]}", r"line 2: `\*a` stands inside of what it names; write the value out"),
        ("a: *x", "not valid YAML: .*undefined alias"),
        ("? [1]\n: 2", "line 1: expected a word as the key"),
        ("? {a: 1}\n: 2", "expected a word as the key"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML.*tag"),
        ("a: !!timestamp 2026-01-02", "not valid YAML.*tag"),
        ("a: !!set {b}", "not valid YAML.*tag"),
        ("a: !!int word", "not valid YAML"),
        ("a: !!bool 7", "not valid YAML"),
        ("a: !!float [1]", "not valid YAML"),
        ("a: !!map 7", "line 1: expected a mapping"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("a: [1", "not valid YAML"),
        ("a: 1\n b: 2", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: \x07", "not valid YAML"),
        ("[" * 10_000, "nested too deep"),
        ("#" * 4_000_001, "4000001 characters; expected at most 4000000"),
    ],
)
def test_ambiguous_or_dangerous_text_is_refused(written, message):
    with pytest.raises(YamlError, match=message):
        parse(written, "study.yaml")


def test_an_alias_is_a_copy_of_what_its_anchor_marks():
    data = parse("a: &x {b: [1, two]}\nc: *x\nd: {e: *x, f: &y no, g: *y}", "f")
    assert data == {"a": {"b": [1, "two"]}, "c": {"b": [1, "two"]}, "d": {"e": {"b": [1, "two"]}, "f": "no", "g": "no"}}
    data["c"]["b"].append(3)
    assert data["a"] == data["d"]["e"] == {"b": [1, "two"]}


def test_aliases_of_aliases_are_refused_before_they_fill_the_memory():
    """Thirty aliases of aliases would expand to 2^30 numbers."""
    lines = ["a0: &a0 [1, 1]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 30)]
    with pytest.raises(YamlError, match=r"f: line 15: `\*a13`: aliases stand for more than 100000 values"):
        parse("\n".join(lines), "f")


@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!?|>'\"%@`#,~ \n\t019.e+<=é\0") | st.characters(), max_size=60))
def test_any_text_is_read_or_refused(written):
    with contextlib.suppress(YamlError):
        json.dumps(parse(written, "f"))


@given(plain)
def test_written_data_reads_back(data):
    found = parse(text(data), "f")
    assert found == data
    assert json.dumps(found) == json.dumps(data)  # True is not 1


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(YamlError, match=r"none.yaml: cannot be read \(No such file"):
        strict_yaml.read(tmp_path / "none.yaml")
    with pytest.raises(YamlError, match="Is a directory"):
        strict_yaml.read(tmp_path)
    (tmp_path / "image.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(YamlError, match=r"not a text file \(byte 3 is not UTF-8\)"):
        strict_yaml.read(tmp_path / "image.yaml")
    (tmp_path / "good.yaml").write_text("a: é", encoding="utf-8")
    assert strict_yaml.read(tmp_path / "good.yaml") == {"a": "é"}
