"""The server: on loopback, for its own page, reading only; an export needs the token."""

import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest

from evomerge.study import Study

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "evomerge" / "view" / "static"
EVIL = '<img src=x onerror="document.title=1">'


def names(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_only_a_loopback_address_is_served(client):
    assert client.server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example:8040", "0.0.0.0:8040", ""])
def test_a_request_to_another_name_is_refused_so_that_rebinding_gains_nothing(client, host):
    for path in ("/", "/data?what=studies"):
        code, _, body = client.get(path, host=host or "x")
        assert code == 403
        assert b"accuracy" not in body


@pytest.mark.parametrize("host", ["localhost:1234", "127.0.0.1:8040", "[::1]:8040", "localhost"])
def test_a_forwarded_port_is_served(client, host):
    assert client.get("/", host=host)[0] == 200


def test_a_request_from_another_page_is_refused(client):
    assert client.get("/data?what=studies", Origin="https://evil.example")[0] == 403
    token = {"X-Evomerge-Token": client.server.token, "Origin": "https://evil.example"}
    assert client.post("/export", {"study": 0, "number": 1}, **token)[0] == 403


def test_the_page_loads_scripts_and_styles_of_its_own_only(client):
    _, headers, body = client.get("/")
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert not re.findall(rb"""(?:src|href)=["']?(?:https?:)?//""", body)
    assert b"style=" not in body
    assert b"onclick" not in body


def test_no_script_makes_markup_of_data():
    for file in STATIC.glob("*.js"):
        if file.name != "uplot.js":
            text = file.read_text(encoding="utf-8")
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|https?://(?!www\.w3\.org)",
                text,
            )


@pytest.mark.parametrize(
    "path", ["/../server.py", "/static/app.js", "/%2e%2e/server.py", "/etc/passwd", "//etc/passwd", "/nothing"]
)
def test_only_files_of_the_page_are_served(client, path):
    assert client.get(path)[0] == 404


def test_all_files_of_the_page_are_installed_with_the_licence_of_what_others_wrote():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["package-data"]["evomerge.view"] == ["static/*"]
    assert all(file.is_file() for file in STATIC.iterdir())
    assert "MIT" in (STATIC / "uplot-LICENSE.txt").read_text()
    used = set(
        re.findall(
            r"""(?:from |src=|href=)"(?:\./)?([\w.]+\.(?:js|css))\"""",
            "\n".join(f.read_text() for f in STATIC.glob("*") if f.name != "uplot.js"),
        )
    )
    assert used <= {file.name for file in STATIC.iterdir()}
    assert used == {file.name for file in STATIC.iterdir() if file.suffix in (".js", ".css")}


def test_hostile_names_arrive_as_json_and_nothing_of_a_study_is_in_the_page(client):
    code, headers, body = client.get("/data?what=search&study=0")
    assert code == 200
    assert headers["Content-Type"] == "application/json"
    data = json.loads(body)
    assert EVIL in data["genes"][0]
    assert any(EVIL in one["name"] for one in data["report"]["references"])
    assert b"onerror" not in client.get("/")[2]


def test_the_front_of_the_page_is_that_of_the_study(client, finished):
    data, study = client.data(what="search", study=0), Study.open(finished)
    assert data["front"] == study.front()["number"].tolist()
    trials = study.trials()
    assert [row[0] for row in data["rows"]] == trials["number"].tolist()
    for row, (_, trial) in zip(data["rows"], trials.iterrows(), strict=True):
        assert row[1] == [trial[name] for name in study.parts.searched]
    assert data["report"]["picked"] in [
        one["name"] for one in (*data["report"]["front"], *data["report"]["references"])
    ]
    for number in data["front"]:
        for mean, (value, low, high) in zip(data["rows"][number][1], data["intervals"][str(number)], strict=True):
            assert value == pytest.approx(mean)
            assert low <= value <= high


def test_only_what_is_new_is_sent(client):
    first = client.data(what="search", study=0)
    again = client.data(
        what="search", study=0, since=len(first["rows"]), generation=first["generation"], reported=first["reported"]
    )
    assert again["rows"] == []
    assert "report" not in again
    assert again["front"] == first["front"]


def test_reading_writes_nothing(client, finished):
    before = names(finished)
    number = client.data(what="search", study=0)["front"][0]
    for query in (
        {"what": "studies"},
        {"what": "progress"},
        {"what": "model", "name": f"#{number}", "against": "average"},
        {"what": "genes", "name": f"#{number}"},
        {"what": "population"},
        {"what": "prefer", "way": "weights", "numbers": '{"turned": 1}'},
        {"what": "export", "number": number},
    ):
        client.data(**query)
    assert names(finished) == before


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"what": "nothing"}, "expected studies"),
        ({"what": "search", "study": "9"}, "expected 0 to 0"),
        ({"what": "search", "study": "-1"}, "expected 0 to 0"),
        ({"what": "search", "since": "x"}, "whole number"),
        ({"what": "model", "name": "#999"}, "no candidate 999"),
        ({"what": "model", "name": "../etc"}, "no candidate or reference"),
        ({"what": "prefer", "way": "weights", "numbers": "[1"}, "JSON"),
        ({"what": "prefer", "way": "knee", "numbers": "{}"}, "weights, tchebycheff or floors"),
        ({"what": "prefer", "way": "weights", "numbers": '{"nothing": 1}'}, "unknown objective"),
        ({"what": "compare", "against": "0"}, "two different studies"),
    ],
)
def test_a_query_that_is_not_valid_is_refused_in_words(client, query, words):
    assert words in client.data(status=422, **query)["error"]


def test_an_export_needs_the_token(client, finished, monkeypatch):
    started = []
    monkeypatch.setattr(client.server.exports, "start", lambda folder, number: started.append((folder, number)) or {})
    for token in ("", "0" * 16, client.server.token[:-1]):
        code, _, body = client.post("/export", {"study": 0, "number": 1}, **{"X-Evomerge-Token": token})
        assert code == 403
        assert client.server.token.encode() not in body
    assert not started
    assert client.get("/export")[0] == 404
    right = {"X-Evomerge-Token": client.server.token}
    for body in (b"{", b"[]", b'{"study": 0}', {"study": 7, "number": 1}, {"study": 0, "number": 999}):
        assert client.post("/export", body, **right)[0] == 422
    assert client.post("/export", b"x" * 20_000, **right)[0] == 404
    assert not started
    assert client.post("/export", {"study": 0, "number": 1}, **right)[0] == 200
    assert started == [(finished, 1)]


def test_a_study_that_cannot_be_opened_says_why_and_the_others_are_shown(finished, tmp_path, serve):
    broken = tmp_path / "broken"
    shutil.copytree(finished, broken)
    (broken / "journal.jl").write_bytes(b"00000000 {}\n")
    with serve(broken, finished) as client:
        shown, good = client.data(what="studies")
        assert "line 1 is damaged" in shown["error"]
        assert good["state"] == "done"
        assert "line 1 is damaged" in client.data(status=422, what="search", study=0)["error"]
        assert client.data(what="search", study=1)["rows"]


def test_two_studies_side_by_side(finished, tmp_path, serve):
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    with serve(finished, other) as client:
        data = client.data(what="compare", study=0, against=1)
    first, second = data["runs"]
    assert first["hypervolume"] == second["hypervolume"] > 0
    assert first["front"] == first["on_common_front"] == len(data["front"])
    assert data["warning"] is None


def test_a_study_that_begins_later_is_found_and_the_others_keep_their_places(finished, tmp_path, serve):
    shutil.copytree(finished, tmp_path / "second")
    with serve(tmp_path) as client:
        assert [Path(one["folder"]).name for one in client.data(what="studies")] == ["second"]
        shutil.copytree(finished, tmp_path / "first")
        assert [Path(one["folder"]).name for one in client.data(what="studies")] == ["second", "first"]
        for place, name in enumerate(("second", "first")):
            assert client.data(what="search", study=place)["folder"] == str(tmp_path / name)


def test_a_study_that_is_deleted_says_so_and_another_in_its_place_is_shown_anew(finished, tmp_path, serve):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with serve(folder) as client:
        before = client.data(what="search", study=0)
        shutil.rmtree(folder)
        assert "no study here" in client.data(status=422, what="search", study=0)["error"]
        shutil.copytree(finished, folder)
        header = (folder / "study.json").read_text(encoding="utf-8")
        (folder / "study.json").write_text(header.replace('"name": "view"', '"name": "another"'), encoding="utf-8")
        after = client.data(what="search", study=0, since=len(before["rows"]), generation=before["generation"])
    assert (before["name"], after["name"]) == ("view", "another")
    assert after["rows"] == before["rows"]
