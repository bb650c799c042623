"""Streams whose replica dies go on at another one, without a letter lost, doubled or changed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.scaling.gateway.events import WholeEvents
from sixfold.scaling.gateway.inbound import read_inbound
from sixfold.scaling.gateway.resume import Diverged, Replay, StreamRecord, is_resumable
from tests.scaling.gateway.scripted import NOTHING, Reply, ScriptedReplica, fleet

GREEDY = {"model": "m", "prompt": "p", "stream": True, "temperature": 0}
SSE = {"content-type": "text/event-stream"}


def frame(data: object) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def completion(texts: Sequence[str], *, answer_id: str = "c1", end: bool = True) -> list[bytes]:
    head = {"id": answer_id, "created": 1, "model": "m"}
    frames = [frame({**head, "choices": [{"index": 0, "text": text, "finish_reason": None}]}) for text in texts]
    if end:
        frames.append(frame({**head, "choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}))
        frames.append(b"data: [DONE]\n\n")
    return frames


def stream(frames: Sequence[bytes], then: str = "end") -> Reply:
    return Reply(parts=frames, headers=SSE, then=then, chunked=True)


def read(content: bytes) -> tuple[str, list[dict[str, Any]]]:
    assert content.endswith(b"data: [DONE]\n\n")
    assert content.count(b"[DONE]") == 1
    found = [json.loads(each[6:]) for each in content.split(b"\n\n")[:-2]]
    return "".join(choice["text"] for event in found for choice in event.get("choices", ())), found


async def test_a_stream_goes_on_where_it_broke_under_the_same_head() -> None:
    dying = ScriptedReplica("dying", stream([*completion(["The ", "sea ", "is"], end=False), b'data: {"ha'], "tear"))
    other = ScriptedReplica("other", stream(completion(["The sea", " is wide", "."], answer_id="c2")))
    async with fleet(dying, other, resume_streams=True) as gateway:
        answers = [read((await gateway.ask(GREEDY))[1]) for _request in range(2)]
        assert await gateway.metric("sixfold:gateway_resumed_streams_total", outcome="done") == len(dying.seen) >= 1
    assert [text for text, _events in answers] == ["The sea is wide."] * 2
    assert all(len({event["id"] for event in events}) == 1 for _text, events in answers)


async def test_a_stream_survives_several_deaths_but_not_more_than_the_tries() -> None:
    broken = [ScriptedReplica(str(n), stream(completion(["a", "b", "c"][:n], end=False), "tear")) for n in (1, 2)]
    whole = ScriptedReplica("whole", stream(completion(["abc"])))
    async with fleet(*broken, whole, resume_streams=True) as gateway:
        for _request in range(3):
            assert read((await gateway.ask(GREEDY))[1])[0] == "abc"
    async with fleet(*[ScriptedReplica(str(n), stream(completion(["a"], end=False), "tear")) for n in range(4)],
                     resume_streams=True) as gateway:  # fmt: skip
        content = (await gateway.ask(GREEDY))[1]
    assert b'"worker_died"' in content
    assert content.endswith(b"data: [DONE]\n\n")


async def test_a_stream_that_goes_on_may_lose_a_second_replica_with_a_single_place_for_retries() -> None:
    only = ScriptedReplica(
        "only", stream(completion(["The "], end=False), "tear"), NOTHING, stream(completion(["The sea"]))
    )
    async with fleet(only, resume_streams=True, retries={"min_concurrent": 1, "budget": 0.0}) as gateway:
        assert read((await gateway.ask(GREEDY))[1])[0] == "The sea"
    assert len(only.seen) == 3


async def test_an_answer_that_differs_ends_the_stream_loudly() -> None:
    dying = ScriptedReplica("dying", stream(completion(["The sea"], end=False), "tear"))
    other = ScriptedReplica("other", *[stream(completion(["The lake"]))] * 9)
    async with fleet(dying, other, resume_streams=True) as gateway:
        contents = [(await gateway.ask(GREEDY))[1] for _request in range(2)]
    broken = [content for content in contents if b"The sea" in content]
    assert len(broken) == len(dying.seen) >= 1
    assert all(b'"worker_died"' in content and b"lake" not in content for content in broken)


async def test_without_the_option_or_with_random_answers_a_stream_ends_loudly() -> None:
    for body, option in ((GREEDY, False), ({**GREEDY, "temperature": 1}, True)):
        dying = ScriptedReplica("dying", stream(completion(["a"], end=False), "tear"))
        async with fleet(dying, resume_streams=option) as gateway:
            assert b'"worker_died"' in (await gateway.ask(body))[1]
        assert len(dying.seen) == 1


@pytest.mark.parametrize(
    ("more", "resumable"),
    [
        ({"temperature": 0}, True),
        ({"seed": 7}, True),
        ({"temperature": 0.5, "seed": 7}, True),
        ({}, False),
        ({"temperature": 1}, False),
        ({"temperature": 0, "n": 2}, False),
        ({"temperature": 0, "stream": False}, False),
        ({"temperature": "cold"}, False),
    ],
)
def test_only_streams_that_are_the_same_every_time_are_resumed(more: dict[str, Any], resumable: bool) -> None:
    body = json.dumps({"model": "m", "stream": True, **more}).encode()
    assert is_resumable(read_inbound("POST", "/v1/completions", b"", {}, body)) == resumable


def chat(**delta: Any) -> bytes:
    return frame({"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})


def test_reasoning_and_calls_are_compared_each_for_itself() -> None:
    def call(**function: str) -> bytes:
        return chat(tool_calls=[{"index": 0, "function": function}])

    record = StreamRecord()
    record.feed(chat(role="assistant", content="") + chat(reasoning_content="hm") + call(name="look", arguments='{"a'))
    replay = Replay(record)
    assert replay.cut(chat(role="assistant", content="") + chat(reasoning_content="hm") + call(name="look")) == b""
    new = json.loads(replay.cut(call(arguments='{"a": 1}'))[6:])
    assert new["choices"][0]["delta"]["tool_calls"] == [{"index": 0, "function": {"arguments": '": 1}'}}]


def test_a_replay_that_ends_early_is_another_answer() -> None:
    record = StreamRecord()
    record.feed(b"".join(completion(["abc"], end=False)))
    with pytest.raises(Diverged):
        Replay(record).cut(b"".join(completion(["ab"])))


texts = st.lists(st.text(max_size=4), min_size=1, max_size=6)


@given(
    gaps=st.lists(st.sampled_from((b"", b"\n", b"\n\n", b"\r\n", b"\n\r\n")), min_size=4, max_size=4),
    size=st.integers(1, 40),
)
def test_further_empty_lines_between_events_change_nothing_however_they_are_cut(gaps: list[bytes], size: int) -> None:
    frames = completion(["The ", "sea ", "is wide."], end=False)
    sent = b"".join(gap + each for gap, each in itertools.zip_longest(gaps, frames, fillvalue=b""))
    whole, record = WholeEvents(), StreamRecord()
    for at in range(0, len(sent), size):
        record.feed(whole.feed(sent[at : at + size]))
    assert record.texts == {"text": "The sea is wide."}
    at_once = StreamRecord()
    at_once.feed(sent)
    assert at_once.texts == record.texts


@given(first=texts, cuts=st.lists(st.integers(0, 30), max_size=5), num_sent=st.integers(0, 6))
def test_however_both_answers_are_cut_the_client_gets_the_text_once(
    first: list[str], cuts: list[int], num_sent: int
) -> None:
    text = "".join(first)
    record = StreamRecord()
    sent = completion(first, end=False)[:num_sent]
    record.feed(b"".join(sent))
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    second = [text[start:end] for start, end in itertools.pairwise(places)]
    replay = Replay(record)
    new = [replay.cut(each) for each in completion(second, answer_id="c2")]
    got, events = read(b"".join([*sent, *new]))
    assert got == text
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
