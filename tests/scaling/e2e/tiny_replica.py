"""A replica for tests of agents: answers /health, and holds nothing."""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        return


HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
