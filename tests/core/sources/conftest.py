"""A small HTTP server with ranges, which breaks off, refuses or lies on demand."""

import http.server
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sixfold.core.hookspecs import Progress


@dataclass
class FileServer:
    """Serves bytes by path.

    Attributes:
        files: Content by path (``"/a.whl"``).
        ranges: The Range header of each request, in order; None for a request without.
        break_after: One number of bytes per coming request after which the connection is cut; then no more cuts.
        status: Answered instead of content, if set.
        honours_ranges: Whether it answers a Range with 206.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    ranges: list[str | None] = field(default_factory=list[str | None])
    break_after: list[int] = field(default_factory=list[int])
    status: int | None = None
    honours_ranges: bool = True


def _handler(server: FileServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            given = self.headers.get("Range")
            server.ranges.append(given)
            content = server.files.get(self.path)
            if server.status is not None or content is None:
                self.send_error(server.status or 404)
                return
            start = int(given.removeprefix("bytes=").removesuffix("-")) if given and server.honours_ranges else 0
            if start and start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            rest = content[start:]
            if server.break_after:
                rest = rest[: server.break_after.pop(0)]
                self.close_connection = True
            self.wfile.write(rest)

        def log_message(self, format: str, *args: object) -> None:
            return

    return Handler


@pytest.fixture
def file_server(monkeypatch: pytest.MonkeyPatch) -> Generator[FileServer, None, None]:
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    state = FileServer()
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@dataclass
class Reports:
    """A progress callback that keeps what it was told."""

    calls: list[tuple[str, int, int | None]] = field(default_factory=list[tuple[str, int, int | None]])

    def __call__(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        self.calls.append((what, done_bytes, total_bytes))


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def quiet() -> Progress:
    return lambda _what, _done_bytes, _total_bytes: None


@pytest.fixture
def write_wheel(tmp_path: Path) -> Callable[[str, dict[str, bytes]], Path]:
    """Writes a zip file with these members and returns its path."""
    import zipfile

    def write(name: str, members: dict[str, bytes]) -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        return path

    return write
