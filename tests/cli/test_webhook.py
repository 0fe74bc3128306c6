"""Notices of whole commands, to a server on loopback."""

import json

from commands import evomerge
from webhooks import MlflowServer, Webhook

from evomerge import header, status
from evomerge.study import Study


def test_a_study_with_notices_is_the_same_study_and_its_directory_has_no_word_of_them(finished, study_file, tmp_path):
    folder = tmp_path / "run"
    with Webhook(200) as webhook, MlflowServer() as mlflow:
        evomerge("run", study_file, "-o", folder, "--webhook", webhook.url, "--mlflow", mlflow.url)
        before = (folder / "study.json").read_bytes()
        evomerge("resume", folder, "--webhook", webhook.url, "--mlflow", mlflow.url)
    [tracked] = mlflow.runs.values()
    assert [tracked["status"], len({metric["step"] for metric in tracked["metrics"]})] == ["FINISHED", 10]
    assert webhook.events == ["started", "ended"] * 2
    assert "search done, 10 of 10 evaluations" in webhook.posts[-1]["text"]
    assert f"best mean {status.read(finished[0]).best.mean:.4g}" in webhook.posts[-1]["text"]
    assert Study.open(folder).digest() == Study.open(finished[0]).digest()
    assert header.read(folder).identity == header.read(finished[0]).identity
    for file in (file for file in folder.rglob("*") if file.is_file()):
        assert b"notify" not in file.read_bytes(), file
        assert webhook.url.encode() not in file.read_bytes(), file
        assert mlflow.url.encode() not in file.read_bytes(), file
    assert (folder / "study.json").read_bytes() == before


def test_an_address_in_the_directory_of_somebody_else_is_left_out(finished, tmp_path):
    content = json.loads((finished[0] / "study.json").read_text())
    content["settings"]["notify"] = {"webhook": "http://elsewhere/"}
    (tmp_path / "study.json").write_text(json.dumps(content))
    assert header.read(tmp_path).settings.notify is None
