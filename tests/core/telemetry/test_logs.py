"""Logs for people and for machines: one object a line, ids to join them by, and no secret."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from sixfold.core.errors import StepFailed
from sixfold.core.serving.request_record import ACCESS_LOG
from sixfold.core.serving.settings import ApiKeySettings, ServerSettings, hash_key
from sixfold.core.telemetry.logs import (
    JsonFormatter,
    PresentStderrHandler,
    TextFormatter,
    add_log_fields,
    configure_logging,
    log_format,
    redact,
)
from tests.core.serving.fake_replica import FakeModel, FakeReplica
from tests.core.serving.server_thread import ServerThread


class Lines(logging.Handler):
    """Keeps what a formatter makes of each record."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def access(caplog: pytest.LogCaptureFixture) -> Iterator[Lines]:
    handler = Lines(JsonFormatter())
    logger = logging.getLogger(ACCESS_LOG)
    caplog.set_level(logging.INFO, ACCESS_LOG)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def test_each_request_has_a_line_with_its_durations_and_what_it_joins_to(access: Lines) -> None:
    settings = ServerSettings(
        access_log=True, api_keys=(ApiKeySettings(name="ann", sha256=hash_key("sk-ann-12345678")),)
    )
    bearer = {"authorization": "Bearer sk-ann-12345678", "x-request-id": "mine"}
    with ServerThread(FakeModel("parrot", replicas=[FakeReplica()]), settings=settings) as server:
        server.ask("POST", "/v1/echo?api_key=sk-ann-12345678", {"model": "parrot", "input": "open sesame"}, bearer)
        server.ask("POST", "/v1/echo", {"model": "parrot", "input": "x"})
        server.ask("GET", "/health")
    answered, refused, probe = access.objects
    assert answered["message"].startswith("POST /v1/echo 200 in ")
    for name, value in {
        "level": "info",
        "request_id": "mine",
        "model": "parrot",
        "replica": 0,
        "operation": "echo",
        "tenant": "ann",
        "method": "POST",
        "route": "/v1/echo",
        "status": 200,
        "queue_s": 0.01,
        "inference_s": 0.02,
        "usage": {"prompt_tokens": 2},
    }.items():
        assert answered[name] == value, name
    assert 0 < answered["first_byte_s"] <= answered["duration_s"]
    assert (refused["status"], refused["error"], "model" in refused) == (401, "invalid_api_key", False)
    assert (probe["route"], probe["status"]) == ("/health", 200)
    assert not any("sesame" in line or "12345678" in line for line in access.lines)


def test_a_failed_request_is_logged_by_the_kind_of_its_error(access: Lines) -> None:
    replica = FakeReplica()
    replica.rejection = StepFailed("it said open sesame")
    with ServerThread(FakeModel("parrot", replicas=[replica]), settings=ServerSettings(access_log=True)) as server:
        server.echo("open sesame")
    (line,) = access.objects
    assert (line["status"], line["error"]) == (500, "model_step_failed")
    assert "sesame" not in access.lines[0]


def test_without_an_access_log_nothing_is_logged_for_a_request(access: Lines) -> None:
    with ServerThread(FakeModel("parrot", replicas=[FakeReplica()])) as server:
        server.echo()
    assert access.lines == []


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("a.b", logging.WARNING, "x.py", 1, message, args, None)
    made.__dict__.update(extra)
    return made


def test_a_line_is_one_object_whatever_is_in_it() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        made = record('a "quote"\nand %s', "é", request_id="r", status=None, odd=object())
        made.exc_info = (ValueError, error, error.__traceback__)
    line = JsonFormatter().format(made)
    assert "\n" not in line
    found = json.loads(line)
    assert found["message"] == 'a "quote"\nand é'
    assert (found["request_id"], found["level"], found["logger"]) == ("r", "warning", "a.b")
    assert "status" not in found and "odd" not in found
    assert found["exception"].endswith("ValueError: two\nlines")
    assert found["time"].endswith("Z") and len(found["time"]) == len("2026-01-01T00:00:00.000Z")


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer abcdef123456",
        '{"api_key": "abcdef123456"}',
        "GET /x?token=abcdef123456&y=1",
        "key sk-abcdef123456",
        "proxy http://user:abcdef123456@host/",
        "HF_TOKEN=hf_abcdef123456",
    ],
)
def test_keys_and_passwords_never_stand_in_a_line(text: str) -> None:
    for formatter in (TextFormatter(), JsonFormatter()):
        line = formatter.format(record(text))
        assert "abcdef123456" not in line and "***" in line


@pytest.mark.parametrize(
    "text", ["12 tokens: 3 of 4", "request req_0123456789abcdef failed", "http://127.0.0.1:8000/x"]
)
def test_ordinary_lines_stay_as_they_are(text: str) -> None:
    assert redact(text) == text


def test_a_process_says_how_it_logs_so_that_its_workers_do_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    assert log_format() == "text"
    configure_logging("info", "json", pid=7)
    assert log_format() == "json"
    add_log_fields(model="m", replica=1)
    (handler,) = root.handlers
    found = json.loads(handler.format(record("x")))
    assert (found["pid"], found["model"], found["replica"]) == (7, "m", 1)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("word", ["a" * 200_000, "a." * 100_000, "a://" * 50_000, "x:" * 100_000, "token=" * 33_000])
def test_a_long_word_is_read_in_time_that_grows_with_its_length(word: str) -> None:
    redact(word)


@pytest.mark.parametrize("before", ["", "see ", "(", '"', "'", "url=", "_", "-i", "1", "https://proxy/http:"])
def test_a_password_in_an_address_is_struck_out_wherever_the_address_begins(before: str) -> None:
    assert "hunter" not in redact(f"{before}http://user:hunter@host/")


def test_a_record_that_makes_no_line_never_raises_in_whoever_logged_it(capsys: pytest.CaptureFixture[str]) -> None:
    handler = PresentStderrHandler()
    handler.setFormatter(TextFormatter())
    handler.handle(record("%d of %d", "one"))
    assert "Logging error" in capsys.readouterr().err
