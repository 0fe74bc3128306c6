"""A hub on this machine: what of the Hugging Face hub's protocol evomerge uses, served on loopback; and its cache's layout."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "c0ffee" + "0" * 34


def digest(content):
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def fill_cache(cache, name, files, commit=COMMIT, revision="main"):
    """Lay out the cache as huggingface_hub does: blobs, and links to them; return the snapshot's folder."""
    home = cache / f"models--{name.replace('/', '--')}"
    folder = home / "snapshots" / commit
    (home / "blobs").mkdir(parents=True, exist_ok=True)
    (home / "refs").mkdir(exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    (home / "refs" / revision).write_text(commit)
    for file, content in files.items():
        blob = home / "blobs" / digest(content)
        blob.write_bytes(content)
        (folder / file).symlink_to(blob)
    return folder


def read_files(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class Hub:
    """Models by name, each a mapping from file names to contents; what was asked; and the commits that were sent."""

    def __init__(self):
        self.url = ""
        self.models = {}
        self.gated = set()
        self.asked = []  # method, path, Range
        self.sent = {}  # by model, the bytes of each file that was pushed
        self.created = []
        self.refused = False  # whether accounts may not write
        self.large = None  # files of so many bytes or more are sent by git-LFS
        self.part = None  # larger ones in parts of so many bytes
        self.objects = {}  # what git-LFS has, by sha256
        self.parts = {}  # by sha256 and number
        self.full = False  # whether git-LFS takes nothing more
        self.broken = None  # an object or a part whose upload is refused: its path

    @property
    def bodies(self):
        """The files of which a body was sent, and the range of bytes that was asked for, None for all."""
        return [
            (path.rpartition("/")[2], span)
            for method, path, span in self.asked
            if method == "GET" and "/resolve/" in path
        ]


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def reply(self, content=b"", code=200, **headers):
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(code)
            for key, value in {"Content-Length": len(content), **headers}.items():
                self.send_header(key.replace("_", "-"), str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path, self.headers.get("Range")))
            parts = path.strip("/").split("/")
            name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
            if name not in hub.models:
                self.reply(code=404, X_Error_Code="RepoNotFound")
            elif parts[0] == "api":
                self.listing(name, parts[4:])
            else:
                self.file(name, "/".join(parts[4:]))

        def listing(self, name, rest):
            files = hub.models[name]
            if rest and rest[0] == "tree":
                entries = [{"type": "file", "path": p, "size": len(c), "oid": digest(c)} for p, c in files.items()]
                self.reply(entries)
            elif rest and rest[1] not in ("main", COMMIT):
                self.reply(code=404, X_Error_Code="RevisionNotFound")
            else:
                self.reply({"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]})

        def file(self, name, path):
            if name in hub.gated:
                self.reply(code=403, X_Error_Code="GatedRepo")
                return
            content, code = hub.models[name][path], 200
            length, etag = len(content), digest(content)
            if (span := self.headers.get("Range")) is not None:
                first, _, last = span.removeprefix("bytes=").partition("-")
                content, code = content[int(first) : int(last or length) + 1], 206
            if self.command == "HEAD":
                self.send_response(200)
                for key, value in {"Content-Length": length, "ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}.items():
                    self.send_header(key, str(value))
                self.end_headers()
                return
            self.reply(content, code, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path, None))
            parts = path.strip("/").split("/")
            if path == "/api/validate-yaml":
                self.reply({"errors": [], "warnings": []})
            elif hub.refused:
                self.reply(code=401)
            elif path == "/api/repos/create":
                asked = json.loads(body)
                name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
                hub.created.append((name, asked.get("visibility") == "private" or bool(asked.get("private"))))
                hub.models.setdefault(name, {})
                self.reply({"url": f"{hub.url}/{name}", "id": name, "name": name})
            elif path.endswith(".git/info/lfs/objects/batch"):
                asked = json.loads(body)
                assert asked["operation"] == "upload"
                assert asked["hash_algo"] == "sha256"
                self.reply({"transfer": "basic", "objects": [self.instructions(**entry) for entry in asked["objects"]]})
            elif parts[0] == "complete":
                asked = json.loads(body)
                numbers = [part["partNumber"] for part in asked["parts"]]
                held = [hub.parts[asked["oid"], number] for number in numbers]
                assert numbers == list(range(1, len(held) + 1))
                assert [part["etag"] for part in asked["parts"]] == [digest(content) for content in held]
                self.keep(asked["oid"], b"".join(held))
            elif parts[0] == "verify":
                asked = json.loads(body)
                right = len(hub.objects.get(asked["oid"], b"")) == asked["size"]
                self.reply({}, 200 if right else 404)
            elif parts[4] == "preupload":
                listed = [
                    {"path": f["path"], "uploadMode": self.mode(f["size"]), "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
                self.reply({"files": listed})
            elif parts[4] == "commit":
                name = "/".join(parts[2:4])
                for line in map(json.loads, body.decode().splitlines()):
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        hub.sent.setdefault(name, {})[line["value"]["path"]] = content
                    elif line["key"] == "lfsFile":
                        hub.sent.setdefault(name, {})[line["value"]["path"]] = hub.objects[line["value"]["oid"]]
                url = f"{hub.url}/{name}/commit/{COMMIT}"
                self.reply({"success": True, "commitOid": COMMIT, "commitUrl": url})
            else:
                self.reply(code=404)

        def do_PUT(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            path = urlsplit(self.path).path
            hub.asked.append((self.command, path, None))
            _, oid, *number = path.strip("/").split("/")
            if hub.broken is not None and path.endswith(hub.broken):
                self.reply(code=403)
            elif number:
                hub.parts[oid, int(number[0])] = body
                self.reply(ETag=digest(body))
            else:
                self.keep(oid, body)

        def mode(self, size):
            return "regular" if hub.large is None or size < hub.large else "lfs"

        def instructions(self, oid, size):
            entry = {"oid": oid, "size": size}
            if oid in hub.objects:
                return entry
            if hub.full:
                return {**entry, "error": {"code": 507, "message": "storage limit reached"}}
            upload = {"href": f"{hub.url}/object/{oid}"}
            if hub.part is not None and size > hub.part:
                count = -(-size // hub.part)
                places = {f"{i:05d}": f"{hub.url}/object/{oid}/{i}" for i in range(1, count + 1)}
                upload = {"href": f"{hub.url}/complete", "header": {"chunk_size": str(hub.part), **places}}
            return {**entry, "actions": {"upload": upload, "verify": {"href": f"{hub.url}/verify"}}}

        def keep(self, oid, content):
            right = hashlib.sha256(content).hexdigest() == oid
            if right:
                hub.objects[oid] = content
            self.reply({}, 200 if right else 400)

    return Handler


@contextmanager
def serve(cache, *, offline=False):
    """Serve a `Hub`, and have huggingface_hub ask it and keep its files in `cache`."""
    from huggingface_hub import constants

    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = url = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", offline)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own; git-LFS is the other one
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "ENDPOINT", url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_URL_HOSTS", frozenset({"127.0.0.1"}), raising=False)
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
