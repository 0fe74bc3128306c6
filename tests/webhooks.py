"""A webhook, and an MLflow server, on loopback."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit


class Webhook(HTTPServer):
    """Keeps what is posted to it, and answers with a status; 0 is no answer until it is closed."""

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Post)
        self.answer, self.posts, self.closing = answer, [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/secret"

    def __enter__(self):
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *error):
        self.closing.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    @property
    def events(self):
        return [post["event"] for post in self.posts]


class Post(BaseHTTPRequestHandler):
    def do_POST(self):
        assert self.headers["Content-Type"] == "application/json"
        self.server.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if not self.server.answer:
            self.server.closing.wait()
            return
        self.send_response(self.server.answer)
        self.send_header("Location", self.server.url)
        self.end_headers()

    def log_message(self, *_):
        pass


class MlflowServer(HTTPServer):
    """As much of an MLflow server as evomerge uses, by its REST API: experiments and runs in memory. `failing` answers fail first."""

    def __init__(self, failing=0):
        super().__init__(("127.0.0.1", 0), MlflowAnswer)
        self.failing, self.experiments, self.runs, self.headers = failing, {}, {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"

    __enter__ = Webhook.__enter__

    def __exit__(self, *error):
        self.shutdown()
        self._thread.join()
        self.server_close()

    def answer(self, what, data):
        """Return the status and the content of an answer."""
        if self.failing:
            self.failing -= 1
            return 503, {}
        if what == "experiments/get-by-name":
            found = self.experiments.get(data["experiment_name"])
            return (404, {}) if found is None else (200, {"experiment": {"experiment_id": found}})
        if what == "experiments/create":
            return 200, {"experiment_id": self.experiments.setdefault(data["name"], str(len(self.experiments)))}
        if what == "runs/search":
            [experiment], wanted = data["experiment_ids"], data["filter"].split("'")[1]
            same = [run for run in self.runs.values() if run["experiment_id"] == experiment and wanted in run["tags"]]
            return 200, {"runs": [{"info": {"run_id": run["run_id"]}} for run in same]} if same else {}
        if what == "runs/create":
            tags = [tag["value"] for tag in data["tags"]]
            new = {**data, "run_id": f"run{len(self.runs)}", "tags": tags, "metrics": [], "params": {}}
            self.runs[new["run_id"]] = new | {"status": "RUNNING"}
            return 200, {"run": {"info": {"run_id": new["run_id"]}}}
        run = self.runs[data["run_id"]]
        if what == "runs/log-batch":
            run["metrics"] += data.get("metrics", [])
            run["params"] |= {param["key"]: param["value"] for param in data.get("params", [])}
        else:
            assert what == "runs/update"
            run["status"] = data["status"]
        return 200, {}


class MlflowAnswer(BaseHTTPRequestHandler):
    def do_GET(self):
        self._answer({key: value for key, [value] in parse_qs(urlsplit(self.path).query).items()})

    def do_POST(self):
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, data):
        self.server.headers.append(self.headers)
        status, content = self.server.answer(urlsplit(self.path).path.removeprefix("/api/2.0/mlflow/"), data)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_):
        pass
