"""``sixfold bench`` against servers whose answers are written down: every request counted, every failure by its kind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.core import cli
from sixfold.core.benchmark.client import Address, Answer
from sixfold.core.benchmark.dataset import Length, draw_samples, read_samples
from sixfold.core.benchmark.outcome import Outcome, read_answer
from sixfold.core.benchmark.slo import Slo
from sixfold.core.benchmark.summary import Spread, percentile, summarize
from sixfold.core.errors import UsageError
from sixfold.core.plugins import load_plugins
from sixfold.plugins.embedding.workloads import EMBEDDINGS
from sixfold.plugins.llm.workloads import WORKLOADS
from sixfold.plugins.tts.workloads import SPEECH
from tests.scaling.gateway.scripted import Reply, ScriptedReplica

CHAT, COMPLETIONS = WORKLOADS


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def chat_stream(*texts: str, usage: Mapping[str, int] | None = None, then: str = "end") -> Reply:
    parts = [event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})]
    parts += [event({"choices": [{"delta": {"content": text}}]}) for text in texts]
    if usage is not None:
        parts.append(event({"choices": [], "usage": usage}))
    if then == "end":
        parts.append(b"data: [DONE]\n\n")
    return Reply(parts=parts, headers={"content-type": "text/event-stream"}, then=then, chunked=True)


GOOD = chat_stream("a", "b", "c", usage={"prompt_tokens": 5, "completion_tokens": 3})


async def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = await asyncio.to_thread(cli.main, ["bench", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


async def test_each_request_is_sent_once_and_each_failure_counted_by_its_kind(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    script = [
        *(GOOD,) * 2,  # warm-up
        *(GOOD,) * 4,
        Reply(status=429),
        Reply(status=500),
        Reply(status=500),
        chat_stream("a"),
        chat_stream("a", then="tear"),
        Reply(parts=[event({"error": {"message": "no"}})], headers={"content-type": "text/event-stream"}, chunked=True),
        chat_stream(),
        GOOD,
    ]
    replica = ScriptedReplica("a", *script)
    await replica.start()
    figures = tmp_path / "figures.json"
    try:
        status, out, _err = await bench(
            capsys,
            *(replica.url, "--requests", "12", "--rounds", "2", "--warm-up", "2", "--concurrency", "1"),
            *(
                "--input-tokens",
                "7:9",
                "--output-tokens",
                "3",
                "--json",
                str(figures),
                "--extra-body",
                '{"top_p": 0.5}',
            ),
            *("--key", "of-ann", "--slo", "e2e=100"),
        )
    finally:
        await replica.kill()
    assert status == 0
    bodies = [json.loads(seen.body) for seen in replica.seen]
    assert len(bodies) == 14
    assert all(seen.headers["authorization"] == "Bearer of-ann" for seen in replica.seen)
    assert {(body["model"], body["max_tokens"], body["top_p"], body["stream"]) for body in bodies} == {
        ("m", 3, 0.5, True)
    }
    assert all(7 <= len(body["messages"][0]["content"].split()) <= 9 for body in bodies)
    report = json.loads(figures.read_text())
    (summary,) = report["servers"].values()
    assert summary["num_requests"] == 12
    assert summary["errors"] == {
        "connection_lost": 1,
        "empty_answer": 1,
        "http_429": 1,
        "http_500": 2,
        "stream_error": 1,
    }
    assert (summary["num_failed"], summary["good_share"]) == (6, 0.5)
    assert "failed: 1 connection_lost, 1 empty_answer, 1 http_429, 2 http_500, 1 stream_error" in out
    assert [each["num_requests"] for each in report["rounds"][replica.url]] == [6, 6]


async def test_two_servers_get_the_same_requests_in_turns_and_are_compared(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    replicas = ScriptedReplica("a", GOOD), ScriptedReplica("b", GOOD)
    for replica in replicas:
        await replica.start()
    figures, plot = tmp_path / "figures.json", tmp_path / "plot.svg"
    try:
        status, out, _err = await bench(
            capsys,
            *(replicas[0].url, replicas[1].url, "--requests", "9", "--warm-up", "0", "--rate", "500"),
            *("--json", str(figures), "--plot", str(plot)),
        )
    finally:
        for replica in replicas:
            await replica.kill()
    assert status == 0
    asked = [sorted(seen.body for seen in replica.seen) for replica in replicas]
    assert asked[0] == asked[1] and len(set(asked[0])) == 9
    report = json.loads(figures.read_text())
    assert set(report["servers"]) == {replica.url for replica in replicas}
    assert {"requests/s", "output tokens/s", "TTFT p50", "E2E p95"} <= set(report["ratios"])
    # Tokens of a scripted answer may come in the same instant: a round without gaps has no ratio of them.
    assert all(len(values) == 3 for name, values in report["ratios"].items() if not name.startswith("ITL"))
    assert f"{replicas[1].url} over {replicas[0].url}" in out
    drawn = ElementTree.parse(plot).getroot()
    assert len(drawn.findall(".//{http://www.w3.org/2000/svg}polyline")) == 6


def prompts_of(replica: ScriptedReplica) -> list[str]:
    return [json.loads(seen.body)["messages"][0]["content"] for seen in replica.seen]


async def test_one_server_given_twice_never_gets_a_text_twice_and_lengths_are_those_of_the_first(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    replica, figures = ScriptedReplica("a", GOOD), tmp_path / "figures.json"
    await replica.start()
    try:
        arguments = ("--requests", "4", "--rounds", "1", "--warm-up", "2", "--concurrency", "1")
        lengths = ("--input-tokens", "20:40", "--output-tokens", "3:9", "--shared-prefix-tokens", "10")
        status, _out, _err = await bench(
            capsys, replica.url, f"{replica.url}/", *arguments, *lengths, "--json", str(figures)
        )
    finally:
        await replica.kill()
    assert status == 0
    prompts = prompts_of(replica)
    first, second = prompts[4:8], prompts[8:]
    assert [len(prompt.split()) for prompt in first] == [len(prompt.split()) for prompt in second]
    prefixes = [{" ".join(prompt.split()[:10]) for prompt in part} for part in (first, second)]
    assert [len(each) for each in prefixes] == [1, 1] and prefixes[0] != prefixes[1]
    assert not {*prompts[:4]} & {*first, *second}


async def test_lines_of_a_file_are_no_warm_up_and_are_split_over_a_server_given_twice(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    replica, path = ScriptedReplica("a", GOOD), tmp_path / "data.jsonl"
    bodies = [{"messages": [{"role": "user", "content": f"line {n}"}], "stream": True} for n in range(4)]
    path.write_text("".join(f"{json.dumps(body)}\n" for body in bodies))
    arguments = ("--dataset", str(path), "--rounds", "1", "--warm-up", "3", "--concurrency", "1")
    await replica.start()
    try:
        status, _out, _err = await bench(capsys, replica.url, replica.url, *arguments, "--requests", "2")
        refused, _out, complaint = await bench(capsys, replica.url, replica.url, *arguments, "--requests", "3")
    finally:
        await replica.kill()
    assert status == 0
    of_file = [prompt for prompt in prompts_of(replica) if prompt.startswith("line")]
    assert of_file == ["line 0", "line 2", "line 1", "line 3"] and len(replica.seen) == 10
    assert refused == 2 and "at most --requests 2" in complaint


async def test_a_server_that_fails_everything_ends_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    replica = ScriptedReplica("a", Reply(status=503))
    await replica.start()
    try:
        status, out, _err = await bench(capsys, replica.url, "--requests", "3", "--warm-up", "0")
    finally:
        await replica.kill()
    assert status == 1 and "failed: 3 http_503" in out


async def test_a_request_that_takes_too_long_is_a_failure_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    replica = ScriptedReplica("a", Reply(parts=(), then="stall", chunked=True))
    await replica.start()
    try:
        arguments = ("--requests", "2", "--rounds", "1", "--warm-up", "0", "--timeout", "0.2")
        status, out, _err = await bench(capsys, replica.url, *arguments)
        async with asyncio.timeout(20):
            await replica.left.wait()
    finally:
        await replica.kill()
    assert status == 1 and "failed: 2 timeout" in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["http://127.0.0.1:1", "--requests", "3"], "does not answer"),
        (["ftp://x"], "is no address of a server"),
        (["http://a", "http://b", "http://c"], "two servers at most"),
        (["http://a", "--workload", "sing"], "Known: chat, completions, embeddings, speech"),
        (["http://a", "--requests", "2", "--rounds", "3"], "fewer than --rounds"),
        (["http://a", "--dataset", "no-such-file"], "Give a JSONL file"),
        (["http://a", "--model", "x", "--model", "y"], "once for each server"),
    ],
)
def test_mistakes_are_told_with_what_to_do(
    capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert cli.main(["bench", *arguments]) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [["--slo", "speed=3"], ["--rate", "0"], ["--input-tokens", "9:3"], ["--rate", "1", "--concurrency", "2"]]
)
def test_options_that_make_no_sense_are_refused(option: list[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", "http://a", *option])


def answered(*parts: tuple[float, bytes], status: int = 200) -> Answer:
    return Answer(started_s=10.0, status=status, parts=list(parts), ended_s=20.0)


def test_times_are_those_of_events_with_output_however_the_bytes_were_cut() -> None:
    whole = b"".join(GOOD.parts)
    cuts = [0, 40, 150, 151, 200, len(whole)]
    parts = [(11.0 + n, whole[cut : cuts[n + 1]]) for n, cut in enumerate(cuts[:-1])]
    outcome = read_answer(CHAT, answered(*parts), due_s=9.0)
    assert outcome.error is None
    assert len(outcome.output_s) == 3 and set(outcome.output_s) <= {at_s for at_s, _part in parts}
    assert (outcome.num_input_tokens, outcome.num_output_tokens, outcome.e2e_s) == (5, 3, 11.0)
    assert outcome.ttft_s is not None and outcome.ttft_s > 2.0


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ([event({"choices": [{"text": "a"}]})], "torn_stream"),
        ([b"data: {]\n\n"], "invalid_json"),
        ([b"data: [DONE]\n\n"], "empty_answer"),
        ([event({"choices": [{"text": "a"}]}), b"data: [DONE]\r\n\r\n"], None),
    ],
)
def test_a_stream_is_whole_or_says_what_it_lacks(parts: list[bytes], error: str | None) -> None:
    assert read_answer(COMPLETIONS, answered(*((11.0, part) for part in parts)), due_s=10.0).error == error


def test_one_object_and_bytes_are_answers_too() -> None:
    embedded = read_answer(EMBEDDINGS, answered((12.0, b'{"usage": {"prompt_tokens": 4}}')), due_s=10.0)
    assert (embedded.error, embedded.output_s, embedded.num_input_tokens) == (None, (20.0,), 4)
    assert read_answer(EMBEDDINGS, answered((12.0, b"{")), due_s=10.0).error == "invalid_json"
    spoken = read_answer(SPEECH, answered((12.0, b"ab"), (13.0, b"c")), due_s=10.0)
    assert spoken.output_s == (12.0, 13.0)


def test_workloads_of_plugins_are_offered() -> None:
    assert {"chat", "completions", "embeddings", "speech"} <= set(load_plugins().workloads)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=300))
def test_percentiles_are_values_that_occurred_and_rise(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread is not None
    rising = [spread.p50, spread.p90, spread.p95, spread.p99, spread.max]
    assert rising == sorted(rising) and set(rising) <= set(values)
    assert sum(value < spread.p50 for value in values) <= len(values) / 2


@pytest.mark.parametrize(
    ("share", "count", "rank"),
    [(0.5, 2, 1), (0.5, 3, 2), (0.95, 20, 19), (0.95, 21, 20), (0.99, 100, 99), (0.99, 1, 1)],
)
def test_a_percentile_has_the_nearest_rank(share: float, count: int, rank: int) -> None:
    assert percentile([float(each) for each in range(1, count + 1)], share) == rank


def outcome(e2e_s: float, *, ttft_s: float = 0.1, tokens: int = 11, error: str | None = None) -> Outcome:
    output_s = (ttft_s, e2e_s)
    return Outcome(due_s=0.0, sent_s=0.0, output_s=output_s, ended_s=e2e_s, num_output_tokens=tokens, error=error)


def test_goodput_counts_what_kept_all_objectives_and_failures_never() -> None:
    slo = Slo.parse("ttft=0.5, itl=0.1,e2e=2")
    outcomes = [
        outcome(1.0),
        outcome(1.0, ttft_s=0.6),  # begins late
        outcome(1.9, tokens=2),  # 1.8 s for a token
        outcome(4.0, tokens=1000),  # ends late
        outcome(1.0, error="http_500"),
    ]
    summary = summarize(outcomes, slo)
    assert summary.good_share == 1 / 5
    assert (summary.good_per_s, summary.requests_per_s) == (1 / 4, 4 / 4)
    assert summary.output_tokens_per_s == (11 + 11 + 2 + 1000) / 4


def test_drawn_texts_have_the_wanted_lengths_and_share_only_their_prefix() -> None:
    asked = {"input_tokens": Length(50, 60), "output_tokens": Length(3, 5), "shared_prefix_tokens": 20, "seed": 3}
    samples = draw_samples(40, **asked)  # type: ignore[arg-type]  # the values' types differ
    words = [sample.text.split() for sample in samples]
    assert all(50 <= len(each) <= 60 for each in words)
    assert len({tuple(each[:20]) for each in words}) == 1 and len({tuple(each[20:30]) for each in words}) == 40
    assert {sample.max_output_tokens for sample in samples} == {3, 4, 5}
    assert samples == draw_samples(40, **asked)  # type: ignore[arg-type]  # as above


def test_a_data_set_holds_texts_lengths_and_whole_bodies(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    path.write_text(f'"a text"\n\n{{"prompt": "b", "output_tokens": 7}}\n{json.dumps(body)}\n')
    texts = read_samples(path, default_output_tokens=5)
    assert [(each.text, each.max_output_tokens, each.body) for each in texts] == [
        ("a text", 5, None),
        ("b", 7, None),
        ("", None, body),
    ]
    path.write_text('"a"\n[1]\n')
    with pytest.raises(UsageError, match="line 2: is neither a text nor an object"):
        read_samples(path, default_output_tokens=5)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h", ("h", 80, False, "")),
        ("https://h/v1", ("h", 443, True, "")),
        ("http://h:8/base/v1/", ("h", 8, False, "/base")),
    ],
)
def test_addresses_are_read_as_clients_write_them(url: str, expected: tuple[str, int, bool, str]) -> None:
    address = Address.of(url)
    assert (address.host, address.port, address.tls, address.prefix) == expected
