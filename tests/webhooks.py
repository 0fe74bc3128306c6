"""A webhook on loopback."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer


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
