"""The page as one file: whole, small, and without any request."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from commands import evomerge

from evomerge.journal import Journal
from evomerge.study import Study
from evomerge.trial import Evaluation, Proposal
from evomerge.view import frozen, page
from evomerge.view.source import Source

EVIL = '<img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def saved(finished, tmp_path_factory):
    file = tmp_path_factory.mktemp("saved") / "page.html"
    evomerge("view", finished, "--save", file)
    return file.read_text(encoding="utf-8")


def held(text):
    return json.loads(re.search(r'<script type="application/json" id="frozen">(.*?)</script>', text, re.DOTALL)[1])


def test_it_holds_what_the_server_would_answer(saved, finished):
    source, data = Source(finished), held(saved)
    live = json.loads(json.dumps(page.finite(page.search(source))))
    for key in ("rows", "front", "intervals", "objectives", "report"):
        assert data["search"][key] == live[key]
    picked = live["report"]["picked"]
    assert data["genes"]["importance"]
    assert data[f"model {picked}"]["yaml"] == page.model(source, picked, "")["yaml"]


def test_it_loads_nothing_and_its_policy_allows_nothing_else(saved):
    found = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.append((tag, dict(attrs)))

    Tags().feed(saved)
    for tag, attributes in found:
        assert tag != "img"
        assert not attributes.keys() & {"src", "onerror", "onclick", "style"}
        assert attributes.get("href", "data:,").startswith(("data:", "#"))
    [policy] = [a["content"] for t, a in found if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "The MIT License" in saved


def test_names_of_an_attacker_end_no_element(saved):
    assert EVIL not in saved
    assert any(EVIL in name for name in held(saved))


def test_the_modules_are_joined_without_imports_and_exports():
    script = frozen._joined("app.js", [])
    assert not re.search(r"^(import|export)\b", script, re.MULTILINE)
    names = re.findall(r"^(?:async )?(?:function|class|const|let) (\w+)", script, re.MULTILINE)
    assert len(names) == len(set(names))


def test_a_thousand_candidates_fit_in_a_megabyte(finished, tmp_path):
    folder = tmp_path / "large"
    shutil.copytree(finished, folder, ignore=lambda _, names: [n for n in names if n.startswith("journal")])
    study, drawn = Study.open(finished), np.random.default_rng(0)
    space, sizes = study.parts.space, study.parts.sizes["search"].values()
    with Journal(folder / "journal.jl") as journal:
        for i in range(1000):
            genome = space.from_unit(drawn.random(len(space.genes)))
            journal.ask(Proposal(i, space.decode(genome), genome))
            scores = {
                name: (drawn.random(size) < drawn.random()).astype(np.float32)
                for name, size in zip(study.parts.searched, sizes, strict=True)
            }
            journal.tell(i, Evaluation(scores))
    assert len(held(text := frozen.save(folder))["search"]["rows"]) == 1000
    assert len(text.encode()) < 1_000_000


def test_one_study_is_saved(finished, tmp_path):
    done = evomerge("view", finished, finished, "--save", tmp_path / "x.html", code=2)
    assert "one study, got 2" in done.stderr
