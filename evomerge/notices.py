"""Notices: what a search that runs unattended posts to a webhook, as JSON: its start, its end, and that too many candidates fail.

Scores go to MLflow too, where that is asked for. A post is made in another thread, for at most a few seconds, and a failure of it is said once: no search waits for a server, or ends
by one.
"""

import json
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict
from http.client import HTTPException
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit
from urllib.request import Request, build_opener

from evomerge import status
from evomerge.errors import EvomergeError, printable
from evomerge.settings import NotifySettings
from evomerge.status import Status
from evomerge.tracking import SECONDS, Ending, Mlflow, NoRedirects
from evomerge.trial import Evaluation

_LEAST = 8  # evaluations of a run, before which a share of failures says little
_SECONDS = SECONDS


class Notices:
    """The notices of one run of the search of the study in `folder`; none without `settings`. The end of the block is the run's end."""

    def __init__(self, settings: NotifySettings | None, folder: Path, say: Callable[[str], None]) -> None:
        """Post nothing yet. `say` is called with a line, once, if a post fails."""
        self._settings, self._folder, self._say = settings, folder, say
        self._posts: list[threading.Thread] = []
        self._mlflow: Mlflow | None = None
        self._problem: str | None = None
        self._evaluated = self._failed = 0
        self._began = self._warned = False
        self._said: set[str] = set()

    def began(self) -> None:
        """Post that the search runs."""
        self._began = True
        self._send("started")
        if self._settings is not None and self._settings.mlflow is not None:
            self._mlflow = Mlflow(self._settings.mlflow, self._settings.experiment, self._folder)

    def add(self, number: int, evaluation: Evaluation) -> None:
        """Count the evaluation of candidate `number` in this run; post once if more than the given share has failed."""
        if self._mlflow is not None:
            self._mlflow.add(number, evaluation)
        self._evaluated += 1
        self._failed += evaluation.error is not None
        limit = 1.0 if self._settings is None else self._settings.failed
        if not self._warned and self._evaluated >= _LEAST and self._failed > limit * self._evaluated:
            self._warned = True
            self._send("failures", f"{self._failed} of {self._evaluated} evaluations of this run failed")
        self._say_problem()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._began:
            self._wait()
            self._send("ended")
            if self._mlflow is not None:
                self._mlflow.end("FAILED" if error[0] is not None else _ending(self._folder))
            self._wait()
            self._say_problem()

    def _send(self, event: str, what: str = "") -> None:
        if self._settings is not None and self._settings.webhook is not None:
            post = threading.Thread(target=self._post, args=(self._settings.webhook, event, what), daemon=True)
            post.start()
            self._posts.append(post)

    def _wait(self) -> None:
        for post in self._posts:
            post.join(_SECONDS)
        self._posts.clear()

    def _post(self, webhook: str, event: str, what: str) -> None:
        """Post one notice, in a thread of its own."""
        try:
            body = json.dumps(_notice(status.read(self._folder), event, what)).encode()
            headers = {"Content-Type": "application/json", "User-Agent": "evomerge"}
            request = Request(webhook, body, headers, method="POST")  # noqa: S310  # http or https, by its settings
            build_opener(NoRedirects).open(request, timeout=_SECONDS).close()
        except (OSError, HTTPException, ValueError, EvomergeError) as error:
            self._problem = f"{type(error).__name__}: {error}"

    def _say_problem(self) -> None:
        if self._settings is None:
            return
        untracked = None if self._mlflow is None else self._mlflow.problem
        for what, address, problem in (
            ("notice", self._settings.webhook, self._problem),
            ("scores", self._settings.mlflow, untracked),
        ):
            if problem is not None and what not in self._said:
                self._said.add(what)
                host = urlsplit(address or "").hostname  # the rest may be secret
                self._say(printable(f"no {what} could be posted to {host} ({problem}); the search goes on without"))


def _ending(folder: Path) -> Ending:
    """Return how a search without an error ended."""
    try:
        done = status.read(folder).state == "done"
    except (OSError, EvomergeError):
        done = False
    return "FINISHED" if done else "KILLED"


def _notice(found: Status, event: str, what: str) -> dict[str, Any]:
    """Return a notice: `text` for people, which chat services show, and the rest for programs."""
    parts = [what or f"search {found.state}{f' ({found.ended})' * (found.ended not in (None, found.state))}"]
    parts.append(f"{found.spent:g} of {found.budget} evaluations")
    parts += [f"{found.failed} failed"] * bool(found.failed and not what)
    parts += [] if found.best is None else [f"best mean {found.best.mean:.4g}"]
    host = socket.gethostname()
    text = f"{found.study} on {host}: {', '.join(parts)}"
    return {"text": printable(text), "event": event, "study": found.study, "host": host, "status": asdict(found)}
