import base64
import re
import shlex
from html.parser import HTMLParser

import pytest

from evomerge import strict_yaml
from evomerge.report import html, tables
from evomerge.report.results import Fitted

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
    return html.page(build(2, merges=8, rename=lambda name: f"{EVIL}{name}"), tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("my study; rm -rf x")
    html.write(results, folder)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_page_is_well_formed(page):
    assert not page.open
    assert page.tags.count("img") == 2
    assert page.tags.count("h1") == 1


def test_page_loads_nothing_from_anywhere(evil):
    page = Page(evil)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            assert value.startswith("data:image/png;base64,")
    assert "@import" not in evil
    assert "url(" not in evil


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
    assert line in Page(html.page(sloped, tmp_path)).text
