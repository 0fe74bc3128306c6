"""Server: answers a browser on this machine. It reads; only an export writes, and asks for the token that the terminal shows.

Only loopback addresses are served, and only requests to a loopback name: a page elsewhere whose name is made to resolve to this
machine (DNS rebinding) gets nothing. The page loads nothing from anywhere else.
"""

import hmac
import json
import secrets
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

from evomerge.errors import EvomergeError, StudyError
from evomerge.view import page
from evomerge.view.exports import Exports
from evomerge.view.source import Source

HOST = "127.0.0.1"
_NAMES = ("127.0.0.1", "localhost", "[::1]")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_LONGEST = 10_000  # bytes of a request's body


class Server(ThreadingHTTPServer):
    """Serves the page of some studies. Not to be confused with a queue's workers, which evaluate."""

    daemon_threads = True

    def __init__(self, folders: Sequence[Path], port: int) -> None:
        """Show the studies in `folders`, and those that begin there later, on `port` of the loopback address; 0 takes a free one.

        Raises `OSError` where the port is taken.
        """
        self._folders, self._looking = tuple(folders), Lock()
        self.sources: list[Source] = []
        """One for each study, which keeps its place: the page names studies by it."""
        self.look()
        self.token = secrets.token_hex(8)
        """What an export asks for."""
        self.exports = Exports()
        self.files = {file.name: (_TYPES[file.suffix], file.read_bytes()) for file in sorted(page.STATIC.iterdir())}
        super().__init__((HOST, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing where the browser went away before its answer; print other errors."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://{HOST}:{self.server_address[1]}/"

    def look(self) -> list[Source]:
        """Return the sources, with those of studies that are new in the folders at the end."""
        with self._looking:
            known = {source.folder for source in self.sources}
            found = dict.fromkeys(folder for place in self._folders for folder in studies(place))
            self.sources += (Source(folder) for folder in found if folder not in known)
        return self.sources

    def data(self, query: Mapping[str, str]) -> Any:
        """Return the answer to a query of `/data`. Raises `StudyError` for one that is not valid, and the errors of the study."""
        what = query.get("what", "")
        if what == "studies":
            return page.studies(self.look())
        source = self._source(query.get("study", "0"))
        name, against = query.get("name", ""), query.get("against", "")
        answers: dict[str, Callable[[], Any]] = {
            "search": lambda: page.search(source, *(_whole(query, key) for key in ("since", "generation", "reported"))),
            "model": lambda: page.model(source, name, against),
            "progress": lambda: page.progress(source),
            "genes": lambda: page.slices(source, name),
            "population": lambda: page.population(source),
            "prefer": lambda: page.prefer(source, query.get("way", ""), _numbers(query), query.get("best")),
            "export": lambda: self.exports.state(source.folder, _whole(query, "number")),
        }
        if what == "compare":
            other = self._source(against)
            if other is source:
                raise StudyError("compare: expected two different studies")
            first, second = sorted((source, other), key=lambda one: str(one.folder))  # one order: no deadlock
            with first.lock, second.lock:
                return page.compare(source, other)
        if what not in answers:
            raise StudyError(f"`what` is `{what}`; expected studies, compare, {', '.join(answers)}")
        with source.lock:
            return answers[what]()

    def export(self, body: bytes) -> Any:
        """Start the export of a candidate. Raises `StudyError` for a request that is not valid."""
        try:
            wanted = json.loads(body)
            study, number = str(wanted["study"]), int(wanted["number"])
        except (ValueError, TypeError, KeyError, RecursionError):
            raise StudyError('expected JSON such as {"study": 0, "number": 12}') from None
        source = self._source(study)
        with source.lock:
            source.update()
            source.candidate(number)
        return self.exports.start(source.folder, number)

    def _source(self, text: str) -> Source:
        if not text.isascii() or not text.isdecimal() or int(text) >= len(self.sources):
            raise StudyError(f"study `{text}`; expected 0 to {len(self.sources) - 1}")
        return self.sources[int(text)]


def studies(folder: Path) -> list[Path]:
    """Return `folder` itself if it is a study's directory, else those of studies in it, sorted by name."""
    if (folder / "study.json").is_file():
        return [folder]
    return sorted(file.parent for file in folder.glob("*/study.json"))


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version = "evomerge"
    sys_version = ""
    timeout = 60

    def do_GET(self) -> None:  # the name of http.server
        """Answer with a file of the page, or with data."""
        if not self._is_local():
            return
        address = urlsplit(self.path)
        if address.path == "/data":
            query = {key: values[-1] for key, values in parse_qs(address.query, keep_blank_values=True).items()}
            self._answer(partial(self.server.data, query))
            return
        name = "index.html" if address.path == "/" else address.path.removeprefix("/")
        if name not in self.server.files:
            self._send(HTTPStatus.NOT_FOUND, _TYPES[".txt"], b"not found\n")
            return
        self._send(HTTPStatus.OK, *self.server.files[name])

    def do_POST(self) -> None:  # the name of http.server
        """Start an export, if the request has the token."""
        if not self._is_local():
            return
        length = self.headers.get("Content-Length", "")
        if self.path != "/export" or not length.isdecimal() or int(length) > _LONGEST:
            self._refuse(HTTPStatus.NOT_FOUND, "only `/export` takes requests of this kind, of up to 10,000 bytes")
            return
        body = self.rfile.read(int(length))
        given = self.headers.get("X-Evomerge-Token", "")
        if not hmac.compare_digest(given.encode(), self.server.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN, "an export needs the token that `evomerge view` shows in its terminal")
            return
        self._answer(partial(self.server.export, body))

    def _is_local(self) -> bool:
        """Return whether the request is to this machine by a name that is only its own; refuse it if not."""
        name = self.headers.get("Host", "").rpartition(":")
        host = name[0] if name[1] and name[2].isdecimal() else self.headers.get("Host", "")
        origin = self.headers.get("Origin")
        if host in _NAMES and (origin is None or origin == f"http://{self.headers['Host']}"):
            return True
        self._refuse(HTTPStatus.FORBIDDEN, f"expected a request to {self.server.url} from its own page")
        return False

    def _answer(self, make: Callable[[], Any]) -> None:
        try:
            data = make()
        except EvomergeError as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except Exception as error:  # noqa: BLE001  # a request must not end the server; the terminal gets the trace
            traceback.print_exc(file=sys.stderr)
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")
        else:
            body = json.dumps(page.finite(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            self._send(HTTPStatus.OK, "application/json", body.encode("utf-8", "replace"))

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._send(status, "application/json", json.dumps({"error": why}).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name of http.server
        """Say nothing of each request."""


def _whole(query: Mapping[str, str], key: str) -> int:
    """Return a whole number of a query, 0 where it is missing. Raises `StudyError` for anything else."""
    text = query.get(key, "0")
    if not text.isascii() or not text.isdecimal():
        raise StudyError(f"`{key}` is `{text}`; expected a whole number")
    return int(text)


def _numbers(query: Mapping[str, str]) -> dict[str, float]:
    """Return the numbers of a preference by task. Raises `StudyError`."""
    try:
        data = json.loads(query.get("numbers", ""))
        return {str(name): float(number) for name, number in data.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise StudyError('`numbers`: expected JSON such as {"maths": 2, "code": 1}') from None
