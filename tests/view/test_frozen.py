"""The page as one file: whole, small, and without any request."""

import json
import re
import shutil
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest
from commands import evomerge

from evomerge.cli import searches
from evomerge.journal import Journal
from evomerge.report.drawn import Drawn
from evomerge.settings import StudySettings
from evomerge.study import Study
from evomerge.trial import Evaluation, Proposal
from evomerge.view import frozen, page
from evomerge.view.source import Source

KINDS = {".html", ".png", ".svg", ".csv"}
EVIL = '<img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def saved(finished, tmp_path_factory):
    file = tmp_path_factory.mktemp("saved") / "page.html"
    evomerge("view", finished, "--save", file)
    return file.read_text(encoding="utf-8")


def held(text):
    return json.loads(re.search(r'<script type="application/json" id="frozen">(.*?)</script>', text, re.DOTALL)[1])


def unmarked(text):
    return re.sub(r'(name="drawn-from" content=")[0-9a-f]{64}', r"\1", text)


def rounded(data):
    if isinstance(data, float):
        return float(f"{data:.6g}")
    if isinstance(data, dict):
        return {key: rounded(value) for key, value in data.items()}
    return [rounded(value) for value in data] if isinstance(data, list) else data


def test_it_holds_what_the_server_would_answer(saved, finished):
    source, data = Source(finished), held(saved)
    live = json.loads(json.dumps(page.finite(page.search(source))))
    for key in ("rows", "front", "intervals", "objectives", "report"):
        assert data["search"][key] == rounded(live[key])
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
        assert not attributes.keys() & {"onerror", "onclick", "style"}
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert (tag == "img") == ("src" in attributes)
        assert attributes.get("href", "data:,").startswith(("data:", "#"))
    [policy] = [a["content"] for t, a in found if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "The MIT License" in saved


def test_names_of_an_attacker_end_no_element(saved):
    assert EVIL not in saved
    assert any(EVIL in name for name in held(saved))
    report = saved[saved.index('<section id="report"') : saved.index("</section>")]
    assert escape(f"expert {EVIL}") in report
    assert saved.count("</section>") == 1


def test_names_that_look_like_the_places_of_data_stay_names(finished, tmp_path):
    folder = tmp_path / "@data@"
    shutil.copytree(finished, folder)
    saved = frozen.save(folder)
    assert held(saved)["search"]["folder"] == str(folder)
    assert f"evomerge pick {tmp_path}/@data@" in saved


def test_a_report_is_the_same_page_and_is_written_twice_with_the_same_bytes(finished, tmp_path):
    shutil.copytree(finished, folder := tmp_path / "run")
    written = []
    for _ in range(2):
        (folder / "report.html").unlink()
        evomerge("show", folder)
        written.append({file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in KINDS})
    assert written[0].keys() == {
        "report.html",
        "front.png",
        "front.svg",
        "front.csv",
        "hypervolume.png",
        "hypervolume.svg",
    }
    assert written[0] == written[1]
    assert written[0]["report.html"].decode() == frozen.save(folder)


def test_a_report_is_drawn_again_only_where_it_differs_or_a_file_is_missing(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, folder := tmp_path / "run")
    drawn = []
    figure = Drawn(b"png", b"svg", b"small", 1, 1)
    monkeypatch.setattr(searches.drawn, "draw", lambda *given: drawn.append(given) or {"front": figure})
    for change, times in [
        (lambda: None, 1),  # the page names the folder, which is another one
        (lambda: None, 0),
        ((folder / "front.svg").unlink, 1),
        (lambda: (folder / "report.html").write_bytes(b"\xff"), 1),
    ]:
        change()
        evomerge("show", folder)
        assert len(drawn) == times
        drawn.clear()
    evomerge("show", folder, "--pairs", "turned,inverted")
    assert len(drawn) == 1


def test_the_report_of_the_search_itself_is_that_of_a_later_show(finished, tmp_path):
    shutil.copytree(finished, folder := tmp_path / "run")
    evomerge("show", folder)
    for name in ("report.html", "front.csv"):
        first = (finished / name).read_text(encoding="utf-8").replace(str(finished), str(folder))
        assert unmarked(first) == unmarked((folder / name).read_text(encoding="utf-8"))


def test_a_report_says_when_the_search_went_on_after_it(finished, tmp_path, saved):
    shutil.copytree(finished, folder := tmp_path / "run")
    results = json.loads((folder / "report.json").read_text())
    results["evaluations"] -= 2
    (folder / "report.json").write_text(json.dumps(results))
    assert "2 candidates are not in it" in frozen.save(folder)
    assert "are not in it" not in saved


def test_the_modules_are_joined_without_imports_and_exports():
    script = frozen._joined("app.js", [])
    assert not re.search(r"^(import|export)\b", script, re.MULTILINE)
    names = re.findall(r"^(?:async )?(?:function|class|const|let) (\w+)", script, re.MULTILINE)
    assert len(names) == len(set(names))


@pytest.fixture(scope="module")
def large(small_digits, tmp_path_factory):
    """A study of three objectives with 1,000 candidates, of which few are on the front."""
    folder, drawn = tmp_path_factory.mktemp("large") / "run", np.random.default_rng(0)
    tasks = {name: {**task, "search_metric": "accuracy"} for name, task in list(small_digits.tasks.items())[:3]}
    data = {
        "name": "large",
        "pool": small_digits.pool,
        "tasks": tasks,
        "space": "task_arithmetic_per_block",
        "driver": {"kind": "random"},
        "evaluations": 1000,
        "report": {"scales": [0.4], "mixtures": 0, "resamples": 100},
    }
    study = Study.create(folder, StudySettings.parse(data, "test", folder.parent))
    space, sizes = study.parts.space, study.parts.sizes["search"].values()
    with Journal(folder / "journal.jl") as journal:
        for i in range(1000):
            genome = space.from_unit(drawn.random(len(space.genes)))
            journal.ask(Proposal(i, space.decode(genome), genome))
            good = drawn.dirichlet(np.ones(3))
            scores = {
                name: (drawn.random(size) < one).astype(np.float32)
                for name, size, one in zip(study.parts.searched, sizes, good, strict=True)
            }
            journal.tell(i, Evaluation(scores))
    evomerge("show", folder)
    return folder


def test_the_report_of_a_thousand_candidates_fits_in_a_megabyte(large):
    page = (large / "report.html").read_text(encoding="utf-8")
    assert len(held(page)["search"]["rows"]) == 1000
    assert "left_out" not in held(page)["search"]
    assert '<section id="report"' in page
    assert len(page.encode()) < 1_000_000


def test_what_does_not_fit_is_left_out_evenly_but_never_the_front(large, monkeypatch):
    whole = held((large / "report.html").read_text(encoding="utf-8"))
    without = len(frozen._json({key: value for key, value in whole.items() if key.startswith("model ")}))
    monkeypatch.setattr(frozen, "LARGEST", len((large / "report.html").read_bytes()) - without - 5_000)
    data = held(frozen.save(large))
    rows, left = data["search"]["rows"], data["search"]["left_out"]
    assert not [key for key in data if key.startswith("model ")]
    assert 0 < left == 1000 - len(rows)
    numbers = [row[0] for row in rows]
    assert {*whole["search"]["front"]} <= {*numbers}
    assert numbers == sorted(numbers)
    others = [number for number in numbers if number not in whole["search"]["front"]]
    assert np.diff(others).max() < 30


def test_one_study_is_saved(finished, tmp_path):
    done = evomerge("view", finished, finished, "--save", tmp_path / "x.html", code=2)
    assert "one study, got 2" in done.stderr
