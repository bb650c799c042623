"""A replica for tests of sites: serves the models that it is told, says where it is, and takes a moment for an answer."""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, SITE, MODELS = int(sys.argv[1]), *(*sys.argv[2:], "", "")[:2]
ANSWER_S = 0.05


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        models = [{"id": name, "object": "model"} for name in MODELS.split(",") if name]
        self._answer({"object": "list", "data": models} if self.path == "/v1/models" else {"status": "ready"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        time.sleep(ANSWER_S)  # so that requests are in flight when a site is lost
        self._answer({"site": SITE, "model": asked["model"]})

    def _answer(self, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        return


ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
