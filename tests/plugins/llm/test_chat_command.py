"""``sixfold chat``: streams an answer to the terminal, remembers the conversation, and says what to do on errors."""

import argparse
import builtins
import http.server
import io
import json
import sys
import threading
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from sixfold.core.errors import UsageError
from sixfold.plugins.llm import cli


@dataclass
class FakeServer:
    """Answers like a server of OpenAI's API.

    Attributes:
        models: What ``/v1/models`` lists: (id, capabilities).
        chunks: The data of each SSE event of an answer.
        status: Answered instead, with an error body, if set.
        bodies: The requests, decoded.
        keys: Their Authorization headers.
    """

    url: str = ""
    models: list[tuple[str, list[str]]] = field(default_factory=list[tuple[str, list[str]]])
    chunks: list[str] = field(default_factory=list[str])
    status: int | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    keys: list[str | None] = field(default_factory=list[str | None])

    def say(self, *texts: str) -> None:
        """Makes the answer these pieces of text."""
        deltas: list[dict[str, str]] = [
            {"role": "assistant", "content": ""},
            *({"content": text} for text in texts),
            {},
        ]
        self.chunks = [json.dumps({"choices": [{"delta": delta}]}) for delta in deltas]
        self.chunks += [json.dumps({"choices": [], "usage": {}}), "[DONE]"]


def _handler(server: FakeServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = [{"id": name, "object": "model", "capabilities": can} for name, can in server.models]
            self._send(json.dumps({"object": "list", "data": data}).encode())

        def do_POST(self) -> None:
            server.keys.append(self.headers["Authorization"])
            server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._send("".join(f"data: {chunk}\n\n: keep-alive\n\n" for chunk in server.chunks).encode())

        def _send(self, body: bytes) -> None:
            if server.status is not None:
                body = json.dumps({"error": {"message": "The queue is full.", "type": "t", "code": None}}).encode()
            self.send_response(server.status or 200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return

    return Handler


@pytest.fixture
def server() -> Generator[FakeServer, None, None]:
    state = FakeServer(models=[("embed", ["embed"]), ("org/chat", ["chat", "complete"])])
    state.say("Par", "is.")
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def chat(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    cli.configure(parser)
    return cli.run(parser.parse_args(arguments))


def type_lines(monkeypatch: pytest.MonkeyPatch, lines: Iterable[str]) -> None:
    """Makes a terminal at which these lines are typed, then Ctrl-D."""
    pending = iter(lines)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def read(_prompt: str) -> str:
        try:
            return next(pending)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(builtins, "input", read)


def test_one_question_is_answered_by_the_first_model_that_can_chat(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat("--url", server.url, "The capital of France?") == 0
    assert capsys.readouterr().out == "Paris.\n"
    assert server.bodies == [
        {"model": "org/chat", "messages": [{"role": "user", "content": "The capital of France?"}], "stream": True}
    ]


def test_every_argument_reaches_the_server(server: FakeServer) -> None:
    chat(
        *("--url", f"{server.url}/v1/", "--model", "mine", "--key", "secret", "--system", "Be brief."),
        *("--max-tokens", "7", "--temperature", "0", "Hello"),
    )
    assert server.keys == ["Bearer secret"]
    assert server.bodies[0] == {
        "model": "mine",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        "stream": True,
        "max_tokens": 7,
        "temperature": 0.0,
    }


def test_a_pipe_is_one_question(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("line one\nline two\n"))
    assert chat("--url", server.url) == 0
    assert server.bodies[0]["messages"][0]["content"] == "line one\nline two\n"
    assert capsys.readouterr().out == "Paris.\n"


def test_a_conversation_is_remembered(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    type_lines(monkeypatch, ["France?", "  ", "And Italy?"])
    assert chat("--url", server.url) == 0
    assert [body["messages"] for body in server.bodies] == [
        [{"role": "user", "content": "France?"}],
        [
            {"role": "user", "content": "France?"},
            {"role": "assistant", "content": "Paris."},
            {"role": "user", "content": "And Italy?"},
        ],
    ]


def test_a_failed_answer_is_told_and_the_conversation_goes_on_without_it(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = list(server.chunks)
    server.chunks = [good[1], json.dumps({"error": {"message": "The model failed."}}), "[DONE]"]

    def lines() -> Generator[str, None, None]:
        yield "one"
        server.chunks = good
        yield "two"

    type_lines(monkeypatch, lines())
    assert chat("--url", server.url) == 0
    assert "The answer broke off: The model failed." in capsys.readouterr().err
    assert server.bodies[1]["messages"] == [{"role": "user", "content": "two"}]


def test_a_refusal_carries_the_servers_message(server: FakeServer) -> None:
    server.status = 429
    with pytest.raises(UsageError, match=r"HTTP 429: The queue is full\."):
        chat("--url", server.url, "--model", "m", "Hello")


def test_a_stream_that_ends_early_is_an_error(server: FakeServer) -> None:
    server.chunks = server.chunks[:2]
    with pytest.raises(UsageError, match="ended the answer early"):
        chat("--url", server.url, "Hello")


def test_no_server_says_how_to_start_one() -> None:
    with pytest.raises(UsageError, match="Start one with `sixfold serve CONFIG`"):
        chat("--url", "127.0.0.1:1", "Hello")
    with pytest.raises(UsageError, match="is no address"):
        chat("--url", "ftp://x", "Hello")


def test_no_model_that_can_chat_says_so(server: FakeServer) -> None:
    server.models = [("embed", ["embed"])]
    with pytest.raises(UsageError, match="can chat"):
        chat("--url", server.url, "Hello")


def test_control_c_stops_the_answer_and_keeps_what_has_come(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class InterruptedAfterFirst(io.StringIO):
        def write(self, text: str) -> int:
            if text == "is.":
                raise KeyboardInterrupt
            return super().write(text)

    type_lines(monkeypatch, ["one", "two"])
    out = InterruptedAfterFirst()
    monkeypatch.setattr(sys, "stdout", out)
    assert chat("--url", server.url) == 0
    assert len(server.bodies) == 2
    assert server.bodies[1]["messages"][1] == {"role": "assistant", "content": "Paris."}
