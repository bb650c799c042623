"""The writer of streams alone: what is joined, what is not held back, and what happens when it is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.core.errors import QueueFull
from sixfold.core.serving.sse import data_frame, error_frame, event_frame, write_ready


def test_frames_are_exact() -> None:
    assert data_frame(b"{}") == b"data: {}\n\n"
    assert event_frame("response.done", b"{}") == b"event: response.done\ndata: {}\n\n"
    assert error_frame(QueueFull("full")) == (
        b'data: {"error":{"message":"full","type":"rate_limit_error","param":null,"code":"queue_full"}}\n\n'
    )


@given(st.lists(st.lists(st.binary(min_size=1, max_size=4), min_size=1, max_size=5), max_size=8))
def test_each_step_is_one_write(steps: list[list[bytes]]) -> None:
    async def scenario() -> list[bytes]:
        async def chunks() -> AsyncIterator[bytes]:
            for step in steps:
                await asyncio.sleep(0)
                for chunk in step:
                    yield chunk

        written: list[bytes] = []

        async def write(data: bytes) -> None:
            await asyncio.sleep(0)
            written.append(data)

        await write_ready(chunks(), write)
        return written

    assert asyncio.run(scenario()) == [b"".join(step) for step in steps]


async def test_what_is_there_is_written_before_the_next_chunk_is_waited_for() -> None:
    gate, seen = asyncio.Event(), asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        await gate.wait()
        yield b"second"

    written: list[bytes] = []

    async def write(data: bytes) -> None:
        written.append(data)
        seen.set()

    task = asyncio.create_task(write_ready(chunks(), write))
    await seen.wait()
    assert written == [b"first"]
    gate.set()
    await task
    assert written == [b"first", b"second"]


async def test_chunks_before_an_exception_are_written_first() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"a"
        raise ValueError("late")

    written: list[bytes] = []

    async def write(data: bytes) -> None:
        written.append(data)

    with pytest.raises(ValueError, match="late"):
        await write_ready(chunks(), write)
    assert written == [b"a"]


@pytest.mark.parametrize("first", [b"", b"a"])
async def test_cancelling_the_writer_ends_the_generator(first: bytes) -> None:
    waiting, ended = asyncio.Event(), asyncio.Event()

    async def chunks() -> AsyncGenerator[bytes]:
        try:
            if first:
                yield first
            waiting.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def write(data: bytes) -> None:
        return

    task = asyncio.create_task(write_ready(chunks(), write))
    await waiting.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_a_write_that_fails_ends_the_generator() -> None:
    ended = asyncio.Event()

    async def chunks() -> AsyncGenerator[bytes]:
        try:
            yield b"a"
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def write(data: bytes) -> None:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await write_ready(chunks(), write)
    assert ended.is_set()
