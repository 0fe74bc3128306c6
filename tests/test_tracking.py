"""Scores on an MLflow server: one run for a search, however often it is resumed, and no server harms a search. It is a stub on loopback."""

import json

import numpy as np
import pytest
from webhooks import MlflowServer, Webhook

from evomerge import tracking
from evomerge.settings import NotifySettings
from evomerge.tracking import Mlflow
from evomerge.trial import Evaluation


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(tracking, "_EVERY", 0.01)
    monkeypatch.setattr(tracking, "_LATEST", 0.01)


@pytest.fixture
def folder(tmp_path):
    settings = {"name": "night", "seed": 3, "driver": {"kind": "front"}, "space": "linear", "notify": "secret"}
    (tmp_path / "study.json").write_text(json.dumps({"settings": settings}))
    return tmp_path


def scored(mean):
    return Evaluation({"turned/accuracy": np.array([mean, mean]), "a:b/log_likelihood": np.array([-1.0, -2.0])})


def run(server, folder, numbers, ending="FINISHED"):
    posts = Mlflow(f"{server.url}/", "nights", folder)
    for number in numbers:
        posts.add(number, scored(number / 10))
    posts.end(ending)
    return posts.problem


def test_a_resumed_search_goes_on_with_its_run(folder, tmp_path):
    with MlflowServer() as server:
        assert run(server, folder, range(3), "KILLED") is None
        assert server.runs["run0"]["status"] == "KILLED"
        assert run(server, folder, range(3, 5)) is None
    [only] = server.runs.values()
    assert (server.experiments, only["status"], only["run_name"]) == ({"nights": "0"}, "FINISHED", "night")
    assert only["params"] == {"driver": '{"kind": "front"}', "seed": "3", "space": "linear"}
    by_key = {
        key: [(m["step"], m["value"]) for m in only["metrics"] if m["key"] == key]
        for key in ("turned/accuracy", "a_b/log_likelihood")
    }
    assert [(step, pytest.approx(value)) for step, value in by_key["turned/accuracy"]] == [
        (i, i / 10) for i in range(5)
    ]
    assert by_key["a_b/log_likelihood"] == [(i, -1.5) for i in range(5)]


def test_failed_candidates_and_scores_that_are_not_finite_are_left_out(folder):
    with MlflowServer() as server:
        posts = Mlflow(server.url, "nights", folder)
        posts.add(0, Evaluation(error="boom"))
        posts.add(1, Evaluation({"x/accuracy": np.array([np.nan]), "y/accuracy": np.array([1.0])}))
        posts.end("FINISHED")
    assert [(metric["key"], metric["step"]) for metric in server.runs["run0"]["metrics"]] == [("y/accuracy", 1)]


def test_scores_wait_for_a_server_that_fails(folder):
    with MlflowServer(failing=10_000) as server:
        posts = Mlflow(server.url, "nights", folder)
        posts.add(0, scored(0.5))
        posts._ended.wait(0.2)
        assert "503" in posts.problem
        server.failing = 0
        posts.end("FINISHED")
    assert len(server.runs["run0"]["metrics"]) == 2
    assert posts.problem is None  # all was sent in the end


@pytest.mark.parametrize("answer", [200, 302, 404])
def test_what_is_no_mlflow_server_is_a_problem_and_no_error(answer, folder):
    with Webhook(answer) as server:
        assert run(server, folder, range(2)) is not None


@pytest.mark.parametrize("content", [None, [], "ok", {"experiment": []}])
def test_an_answer_of_another_form_is_a_problem_and_no_error(content, folder, monkeypatch):
    monkeypatch.setattr(MlflowServer, "answer", lambda *_: (200, content))
    with MlflowServer() as server:
        assert "TypeError" in run(server, folder, range(2))


def test_a_user_and_a_token_are_those_of_the_environment(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t")
    with MlflowServer() as server:
        run(server, folder, [0])
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "u")
        run(server, folder, [1])
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer t", "Basic dTo="}


def test_notices_have_an_address_at_least():
    with pytest.raises(ValueError, match="expected `webhook: URL`, `mlflow: URL`, or both"):
        NotifySettings()
    with pytest.raises(ValueError, match="expected an address"):
        NotifySettings(mlflow="file:///tmp/mlruns")
