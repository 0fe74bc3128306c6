"""Small studies for all tests of the page: one that is done, and one with the names of an attacker."""

import json
import threading
from contextlib import contextmanager
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
import yaml
from commands import evomerge

from evomerge.view.server import Server

EVIL = '<img src=x onerror="document.title=1">'


@pytest.fixture(scope="session")
def study_file(small_digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("view")
    data = {
        "name": "view",
        "pool": {**small_digits.pool, "experts": {f"{EVIL}{n}": p for n, p in small_digits.pool["experts"].items()}},
        "tasks": {name: {**task, "search_metric": "accuracy"} for name, task in list(small_digits.tasks.items())[:2]},
        "space": "task_arithmetic_per_block",
        "driver": {"kind": "nsga2"},
        "evaluations": 12,
        "report": {"scales": [0.4], "mixtures": 0, "front": 4, "resamples": 100},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return folder / "study.yaml"


@pytest.fixture(scope="session")
def finished(study_file):
    """The directory of a study that is done, and has a report; do not write into it."""
    out = study_file.parent / "run"
    evomerge("run", study_file, "-o", out)
    return out


class Client:
    """Asks a server over HTTP."""

    def __init__(self, server):
        self.server = server

    def get(self, path="/", host=None, **headers):
        headers = {"Host": host or f"127.0.0.1:{self.server.server_address[1]}", **headers}
        return self._open(Request(self.server.url + path.removeprefix("/"), headers=headers))

    def post(self, path, body, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._open(Request(self.server.url + path.removeprefix("/"), data=data, headers=headers))

    def data(self, status=200, **query):
        code, _, body = self.get(f"/data?{urlencode(query)}")
        assert code == status, body
        return json.loads(body)

    def _open(self, request):
        try:
            with urlopen(request) as answer:
                return answer.status, answer.headers, answer.read()
        except HTTPError as error:
            with error:
                return error.code, error.headers, error.read()


@contextmanager
def serving(*folders):
    with Server(folders, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Client(server)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def serve():
    return serving


@pytest.fixture(scope="session")
def client(finished):
    with serving(finished) as client:
        yield client
