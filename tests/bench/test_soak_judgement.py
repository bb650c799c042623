"""The soak would see what it is there to see: each kind of defect is told from what is right."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
ERROR = json.dumps({"error": {"message": "m", "type": "t", "param": None, "code": "queue_full"}})
DIED = ERROR.replace("queue_full", "worker_died")
HELLO = '{"choices": [{"message": {"content": "Hello."}, "finish_reason": "stop"}]}'
CHUNK = 'data: {"choices": [{"delta": {"content": "Hello."}, "finish_reason": "stop"}]}\n\n'
DONE = "data: [DONE]\n\n"


class Soak:
    """The modules of `bench/soak`, which is a folder of scripts and no package."""

    def __init__(self) -> None:
        self.exchange, self.ledger, self.corpus, self.kills, self.census, self.verdict = (
            importlib.import_module(name)
            for name in ("exchange", "ledger", "corpus", "kills", "census", "verdict")
        )  # fmt: skip


@pytest.fixture(scope="module")
def soak() -> Iterator[Soak]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(BENCH / "soak"), str(BENCH), *sys.path])
        yield Soak()


def answer(status: int, body: str, *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body) if length is None else length}", *headers, "", body]
    return "\r\n".join(lines).encode()


async def judged(soak: Soak, act: str, raw: bytes, **manner: Any) -> Any:
    """What the soak makes of an answer to a chat that says "Hello." when it is asked alone."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        corpus: Any = soak.corpus.Corpus()
        known = next(each for each in corpus.of("chat") if each.act == act)
        corpus._answers[id(known)] = ("Hello.", "stop")
        reply = await soak.exchange.exchange(port, known.ask, "mine", soak.exchange.Manner(**manner))
    return corpus.judge(known, reply, "mine")


@pytest.mark.parametrize(
    ("act", "raw", "end"),
    [
        pytest.param("whole", answer(200, HELLO), "ANSWERED", id="known"),
        pytest.param("stream", answer(200, CHUNK + DONE), "ANSWERED", id="known-stream"),
        pytest.param("whole", answer(429, ERROR, "Retry-After: 1"), "REFUSED", id="refused"),
        pytest.param("whole", answer(503, DIED, "Retry-After: 1"), "FAILED", id="worker-died"),
        pytest.param("stream", answer(200, CHUNK + f"data: {DIED}\n\n" + DONE), "FAILED", id="error-frame"),
        pytest.param("whole", answer(200, HELLO.replace("Hello", "Bye")), "WRONG", id="another-text"),
        pytest.param("whole", answer(200, HELLO) * 2, "WRONG", id="two-answers"),
        pytest.param("whole", b"", "WRONG", id="no-answer"),
        pytest.param("whole", answer(200, HELLO, length=999), "WRONG", id="torn"),
        pytest.param("whole", answer(200, HELLO, "x-request-id: yours"), "WRONG", id="of-another-request"),
        pytest.param("whole", answer(429, ERROR), "WRONG", id="no-retry-after"),
        pytest.param("whole", answer(500, ERROR), "WRONG", id="500"),
        pytest.param("whole", answer(503, "down"), "WRONG", id="no-shape"),
        pytest.param("whole", answer(400, ERROR), "WRONG", id="good-request-rejected"),
        pytest.param("stream", answer(200, CHUNK), "WRONG", id="stream-without-end"),
        pytest.param("stream", answer(200, CHUNK + DONE + DONE), "WRONG", id="two-ends"),
        pytest.param("stream", answer(200, CHUNK + f"data: {DIED}\n\n"), "WRONG", id="error-frame-without-end"),
    ],
)
async def test_an_answer_is_told_from_what_only_looks_like_one(soak: Soak, act: str, raw: bytes, end: str) -> None:
    verdict = await judged(soak, act, raw)
    assert verdict.end.name == end, verdict


async def test_a_client_that_leaves_is_no_defect(soak: Soak) -> None:
    assert (await judged(soak, "whole", answer(200, HELLO, length=999), leave_after_bytes=10)).end.name == "LEFT"


def found(soak: Soak, rows: list[Any], *, end_mib: float = 100.0, fds: int = 10, held: float = 0.0) -> Any:
    def census(pss_mib: float, num_fds: int, held: float) -> Any:
        process = soak.census.Process(pss_mib=pss_mib, rss_mib=pss_mib, num_fds=num_fds, num_threads=4)
        return soak.census.Census(processes={"server": process}, held={"kv_blocks_used of chat": held}, totals={})

    ledger: Any = soak.ledger.Ledger()
    ledger.rows.extend(rows)
    kill: Any = soak.kills.Kill(model="chat", at_s=10.0, seen_s=0.1, back_s=5.0)
    censuses = (census(100.0, 10, 0.0), census(100.0, 10, 0.0), census(end_mib, fds, held))
    return soak.verdict.Found(ledger=ledger, kills=[kill], censuses=censuses, num_left_behind=0)


def row(
    ledger: ModuleType,
    end: str,
    *,
    modality: str = "chat",
    act: str = "whole, waits",
    began_s: float = 9.5,
    ended_s: float = 10.2,
) -> Any:
    return ledger.Row(modality=modality, act=act, began_s=began_s, ended_s=ended_s, end=ledger.End[end])


def missed(soak: Soak, given: Any) -> list[str]:
    return [claim.claim for claim in soak.verdict.claims_of(given) if not claim.met]


def test_a_kill_explains_the_failures_of_its_own_model_and_time_only(soak: Soak) -> None:
    assert missed(soak, found(soak, [row(soak.ledger, "FAILED"), row(soak.ledger, "ANSWERED")])) == []
    for strange in (
        row(soak.ledger, "FAILED", modality="embed"),
        row(soak.ledger, "FAILED", began_s=30.0, ended_s=31.0),
    ):
        assert len(missed(soak, found(soak, [strange]))) == 1


def test_clients_that_are_told_late_of_a_death_are_a_miss(soak: Soak) -> None:
    assert len(missed(soak, found(soak, [row(soak.ledger, "FAILED", ended_s=11.5)]))) == 1


def test_a_client_that_reads_slowly_is_not_told_late(soak: Soak) -> None:
    slow = row(soak.ledger, "FAILED", act="stream, reads slowly", ended_s=11.5)
    assert missed(soak, found(soak, [slow])) == []


def test_what_grows_or_stays_held_is_a_miss(soak: Soak) -> None:
    assert missed(soak, found(soak, [], end_mib=101.0, fds=9)) == []
    assert len(missed(soak, found(soak, [], end_mib=106.0))) == 1
    assert len(missed(soak, found(soak, [], fds=11))) == 1
    assert len(missed(soak, found(soak, [], held=1.0))) == 1
