"""Tracking: the scores of a search that runs, on an MLflow server, by its REST API.

One run of MLflow for a study's directory, which a resumed search continues. Not to be confused with `notices`, which say that a
search began or ended.
"""

import base64
import hashlib
import json
import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import HTTPRedirectHandler, Request, build_opener

from evomerge.trial import Evaluation

Ending = Literal["FINISHED", "FAILED", "KILLED"]

SECONDS = 3.0  # for one request: after SIGTERM there are few
_EVERY, _LATEST = 2.0, 60.0  # seconds between requests, and at most where the server does not answer
_KEPT = 10_000  # metrics that wait for a server at most; the oldest are left out
_AT_ONCE = 1000  # metrics of one request at most, by the API
_LONGEST = 250  # characters of a key or a value
_SETTINGS = ("driver", "evaluations", "seed", "space", "precision")


class NoRedirects(HTTPRedirectHandler):
    """Refuses to follow: the answer is then an error, and no other host gets what was posted."""

    def redirect_request(self, *_: Any) -> None:
        """Return no other request."""


class Mlflow:
    """Sends mean scores to an MLflow server, in a thread of its own. A server that fails is tried again, and never waited for."""

    def __init__(self, server: str, experiment: str, folder: Path) -> None:
        """Send what is added for the study in `folder` to a run of the `experiment`, which is made if there is none."""
        self._server, self._experiment, self._folder = server.rstrip("/"), experiment, folder
        self._metrics: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._ended = threading.Event()
        self._ending: Ending = "FINISHED"
        self._run: str | None = None
        self.problem: str | None = None
        """The error of the last request; None where it did what was asked."""
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def add(self, number: int, evaluation: Evaluation) -> None:
        """Send the mean of each metric of candidate `number`, which is the step; nothing of a failed one."""
        if evaluation.error is not None:
            return
        now = _now()
        for name, mean in zip(evaluation.scores, evaluation.means(list(evaluation.scores)), strict=True):
            if math.isfinite(mean):
                key = re.sub(r"[^\w./ -]", "_", name)[:_LONGEST]
                self._metrics.append({"key": key, "value": float(mean), "timestamp": now, "step": number})

    def end(self, ending: Ending) -> None:
        """Send what is left, for a few seconds at most, and end the run."""
        self._ending = ending
        self._ended.set()
        self._thread.join(2 * SECONDS)

    def _serve(self) -> None:
        pause = 0.0
        while True:
            ended = self._ended.wait(pause)
            try:
                self._send(ended=ended)
                self.problem, pause = None, _EVERY
            except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
                self.problem = f"{type(error).__name__}: {error}"
                pause = min(2 * pause + 1, _LATEST)
            if ended:
                return

    def _send(self, *, ended: bool) -> None:
        run = self._run = self._run or self._begin()
        while self._metrics:
            some = [self._metrics[i] for i in range(min(len(self._metrics), _AT_ONCE))]
            self._post("runs/log-batch", {"run_id": run, "metrics": some})
            for _ in some:
                self._metrics.popleft()
        if ended:
            self._post("runs/update", {"run_id": run, "status": self._ending, "end_time": _now()})

    def _begin(self) -> str:
        """Return the id of this directory's run, which is running then."""
        experiment = self._experiment_id()
        place = hashlib.sha256(str(self._folder.resolve()).encode()).hexdigest()[:16]
        wanted = {"experiment_ids": [experiment], "filter": f"tags.`evomerge.study` = '{place}'", "max_results": 1}
        known = self._post("runs/search", wanted).get("runs")
        if known:
            run = str(known[0]["info"]["run_id"])
            self._post("runs/update", {"run_id": run, "status": "RUNNING"})
            return run
        settings = json.loads((self._folder / "study.json").read_text(encoding="utf-8"))["settings"]
        tags = {"evomerge.study": place, "mlflow.source.name": "evomerge"}
        new = {"experiment_id": experiment, "run_name": settings["name"], "start_time": _now(), "tags": _pairs(tags)}
        run = str(self._post("runs/create", new)["run"]["info"]["run_id"])
        texts = {key: settings[key] for key in _SETTINGS if settings.get(key) is not None}
        texts = {key: text if isinstance(text, str) else json.dumps(text) for key, text in texts.items()}
        self._post("runs/log-batch", {"run_id": run, "params": _pairs(texts)})
        return run

    def _experiment_id(self) -> str:
        name = self._experiment
        try:
            answer = self._request("GET", f"experiments/get-by-name?experiment_name={quote(name, safe='')}")
        except HTTPError as error:
            if error.code != 404:
                raise
            return str(self._post("experiments/create", {"name": name})["experiment_id"])
        return str(answer["experiment"]["experiment_id"])

    def _post(self, what: str, data: Mapping[str, Any]) -> Any:
        return self._request("POST", what, json.dumps(data, allow_nan=False).encode())

    def _request(self, method: str, what: str, body: bytes | None = None) -> Any:
        headers = {"Content-Type": "application/json", "User-Agent": "evomerge", **_authorization()}
        address = f"{self._server}/api/2.0/mlflow/{what}"
        request = Request(address, body, headers, method=method)  # noqa: S310  # http or https, by its settings
        with build_opener(NoRedirects).open(request, timeout=SECONDS) as answer:
            content = json.loads(answer.read() or b"{}")
        if not isinstance(content, dict):
            raise TypeError(f"expected a JSON object, got {type(content).__name__}: no MLflow server")
        return content


def _authorization() -> dict[str, str]:
    """Return the header that MLflow's own client makes of the environment."""
    token, user = os.environ.get("MLFLOW_TRACKING_TOKEN"), os.environ.get("MLFLOW_TRACKING_USERNAME")
    if user:
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {"Authorization": f"Bearer {token}"} if token else {}


def _pairs(texts: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": text[:_LONGEST]} for key, text in texts.items()]


def _now() -> int:
    """Return the time in milliseconds, as MLflow wants it."""
    return int(1000 * time.time())
