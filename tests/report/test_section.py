import base64
import re
import shlex
from html.parser import HTMLParser

import pytest

from evomerge import strict_yaml
from evomerge.report import tables
from evomerge.report.drawn import draw
from evomerge.report.results import Fitted
from evomerge.report.section import section

EVIL = '<script src="https://evil.example/x.js">alert(1)</script>&"\'$[red]'
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def evil(build, tmp_path_factory):
    results = build(2, merges=8, rename=lambda name: f"{EVIL}{name}")
    return section(results, tmp_path_factory.mktemp("study"), draw(results))


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("my study; rm -rf x")
    return Page(section(results, folder, draw(results)))


def test_page_is_well_formed(page):
    assert not page.open
    assert page.tags.count("img") == 2
    assert "h1" not in page.tags, "the page around it has one"


def test_tables_have_heads_and_rows_that_a_screen_reader_can_name(results, evil):
    tags = re.findall(r"<th ([^>]*)>", evil)
    assert all(re.search(r"scope=.(col|row|rowgroup).", attributes) for attributes in tags)
    assert evil.count("<table") == evil.count("<thead>") + 1, "where the time went has no head"
    assert all('alt="' in image for image in re.findall(r"<img [^>]*>", evil))


def test_verdicts_come_before_the_first_table(page, results):
    first = page.text.index("Scores on unseen examples")
    assert page.text.index(tables.choice(results).split("`")[0]) < first
    for comparison, sentence in zip(results.comparisons, tables.sentences(results), strict=False):
        assert comparison.verdict in sentence
        assert page.text.index(sentence) < first


def test_nothing_needs_a_style_of_its_own(evil):
    """The page's policy forbids style attributes."""
    assert not re.search(r"<[^>]*\sstyle=", evil)


def test_page_loads_nothing_from_anywhere(evil):
    page = Page(evil)
    assert not {"script", "style", "link", "iframe", "object"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            assert value.startswith("data:image/png;base64,")


def test_malicious_names_are_text(evil):
    assert "<script" not in evil
    assert f"{EVIL}base" in Page(evil).text


def test_figures_are_png(evil):
    for data in re.findall(r'src="data:image/png;base64,([^"]+)"', evil):
        assert base64.b64decode(data).startswith(b"\x89PNG")


def test_page_has_verdicts_models_recipes_settings_costs_and_digest(results, page):
    for sentence in tables.sentences(results):
        assert sentence in page.text
    for model in [*results.front, *results.references.values()]:
        assert model.recipe_id[:12] in page.text
        assert model.name in page.text
    assert page.tags.count("details") == len(results.front) + len(results.references) + 1
    assert "3 min 4 s" in page.text, "the time to score"
    assert results.digest in page.text
    assert strict_yaml.text(dict(results.study)) in page.text
    assert page.text.count("(picked)") == 2, "once in the table, once among the recipes"


def test_commands_can_be_typed_for_any_folder_name(results, page):
    commands = [shlex.split(line) for line in page.text.splitlines() if line.endswith("-o OUT")]
    assert len(commands) == 2
    for command in commands:
        assert "my study; rm -rf x" in command[2]
        assert command[-2:] == ["-o", "OUT"]
    weights = ",".join(f"{o.name}={1 if i else 2}" for i, o in enumerate(results.objectives))
    assert commands[1][3:5] == ["--weights", weights]


def test_a_search_along_slopes_says_how_the_pick_holds_in_tables_and_on_the_page(results, tmp_path):
    fitted = Fitted(metric="log_likelihood", slopes=-0.5, others=None, unseen=-0.75)
    sloped = results.model_copy(update={"fitted": fitted})
    line = "The picked model has mean log likelihood -0.500 on the search examples that gave slopes, -0.750 on unseen examples."
    assert line in tables.sentences(sloped)
    assert line in Page(section(sloped, tmp_path, draw(sloped))).text
