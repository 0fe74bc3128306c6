"""Notices to a webhook: what is posted, and that no failure of a post harms a search. The webhook is a server on loopback."""

import json
from pathlib import Path

import pytest
from webhooks import Webhook

from evomerge import notices
from evomerge.costs import Clock
from evomerge.errors import StudyError
from evomerge.notices import Notices
from evomerge.settings import NotifySettings, StudySettings
from evomerge.trial import Evaluation

GOOD, BAD = Evaluation(scores={}), Evaluation(error="boom")


@pytest.fixture
def webhook():
    with Webhook(200) as server:
        yield server


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps({"settings": {"name": "test", "evaluations": 20}}))
    return tmp_path


def run(folder, url, evaluations, said=None, **settings):
    """Go through a run of a search with these evaluations."""
    said = [] if said is None else said
    with Notices(NotifySettings(webhook=url, **settings), folder, said.append) as posts:
        clock = Clock(folder, 1, {}, [])
        posts.began()
        for number, evaluation in enumerate(evaluations):
            posts.add(number, evaluation)
        clock.end("hours")
    return said


def test_the_start_and_the_end_are_posted_with_the_status(folder, webhook):
    assert run(folder, webhook.url, [GOOD] * 10) == []
    assert webhook.events == ["started", "ended"]
    first, last = webhook.posts
    assert first["study"] == "test"
    assert last["status"]["ended"] == "hours"
    assert last["text"].startswith("test on ")
    assert last["text"].endswith(": search not started (hours), 0 of 20 evaluations"), "no journal was written"


@pytest.mark.parametrize(
    ("evaluations", "limit", "warned"),
    [
        ([BAD] * 7, 0.25, False),
        ([BAD] * 8, 0.25, True),
        ([GOOD, GOOD, GOOD, BAD] * 5, 0.25, False),
        ([GOOD] * 8 + [BAD] * 3, 0.25, True),
        ([BAD] * 20, 1.0, False),
    ],
)
def test_failures_are_posted_once_their_share_is_above_the_limit(evaluations, limit, warned, folder, webhook):
    run(folder, webhook.url, evaluations, failed=limit)
    assert sorted(webhook.events) == sorted(["started", "ended"] + ["failures"] * warned)
    for post in webhook.posts:
        if post["event"] == "failures":
            failed = 3 if GOOD in evaluations else 8
            assert f"{failed} of {11 if GOOD in evaluations else 8} evaluations of this run failed" in post["text"]


def test_a_run_that_never_began_posts_nothing(folder, webhook):
    with pytest.raises(StudyError), Notices(NotifySettings(webhook=webhook.url), folder, print):
        raise StudyError("in use")
    with Notices(None, folder, print) as posts:
        posts.began()
        posts.add(0, BAD)
    assert webhook.posts == []


@pytest.mark.parametrize("answer", [404, 500, 302, 307, 0])
def test_a_webhook_that_does_not_take_the_notice_is_said_once_without_its_address(answer, folder, monkeypatch):
    monkeypatch.setattr(notices, "_SECONDS", 2.0)  # on a busy machine a thread takes long to begin
    with Webhook(answer) as server:
        (line,) = run(folder, server.url, [BAD] * 10)
    assert 1 <= len(server.posts) <= 3, (
        "no redirect is followed; threads post in any order, and a silent server hears one"
    )
    assert line.startswith("no notice could be posted to 127.0.0.1 (")
    assert "secret" not in line


def test_no_webhook_is_said_once(folder):
    with Webhook(200) as server:
        pass
    (line,) = run(folder, server.url, [BAD] * 10)
    assert "refused" in line


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://host/x", "host/x", "https://", "http://a:b@host/", "http://host:x/", "http://h/ä b"],
)
def test_an_address_that_is_not_plain_http_is_refused_before_any_work(url):
    data = {"pool": {"zoo": "digits"}, "space": "task_arithmetic", "notify": {"webhook": url}}
    with pytest.raises(StudyError, match="expected an address such as https://HOST/PATH"):
        StudySettings.parse(data, "study.yaml", Path("/models"))
