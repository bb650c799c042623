"""Follows the steps of a server's model by its live view, with what each step computed and how long it took."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from sixfold.core.benchmark.client import Address, Connection
from sixfold.scaling.autoscale.step_time import Measured, attended_tokens

TOLD_AFTER_S = 0.6
"""Workers tell their steps every 100 ms, and the server its watchers every 250 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step; sequences must have begun without cached tokens, or less is counted than they attend to.

    Attributes:
        at_s: Its end, by `time.monotonic`, which on Linux is the clock of `time.perf_counter`.
        seconds: From the step before, if the replica went on at once, so with the host's time between them; else of the step.
        prefill_tokens: Prompt tokens.
        prefill_kv_tokens: See `attended_tokens`.
        decode_rows: Sequences that decode.
        kv_tokens: What these attend to.
        budget_tokens: What it could have computed.
        num_waiting: Requests that no step has served yet.
    """

    at_s: float
    seconds: float
    prefill_tokens: int
    prefill_kv_tokens: float
    decode_rows: int
    kv_tokens: int
    budget_tokens: int
    num_waiting: int

    @property
    def measured(self) -> Measured:
        """For a fit."""
        return Measured(
            prefill_tokens=self.prefill_tokens,
            prefill_kv_tokens=self.prefill_kv_tokens,
            decode_rows=self.decode_rows,
            kv_tokens=self.kv_tokens,
            seconds=self.seconds,
        )

    @property
    def row(self) -> tuple[float, ...]:
        """Its fields in order, short enough for a file of thousands."""
        return tuple(round(value, 5) for value in astuple(self))

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> Step:
        """Undoes `row`."""
        return cls(**dict(zip(cls.__slots__, row, strict=True)))


class StepWatcher:
    """Collects the steps of one model's only replica.

    Args:
        model: Its name.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._computed: dict[int, int] = {}
        self._before: dict[str, Any] | None = None
        self._num_dropped = 0
        self.steps: list[Step] = []

    def take(self, message: dict[str, Any]) -> None:
        """Reads one message of the live view."""
        for model in message["models"]:
            if model["name"] != self._model:
                continue
            for replica in model["replicas"]:
                self._num_dropped += replica["num_dropped"]
                for event in replica["events"]:
                    if event["kind"] == "stepped":
                        self._stepped(event)

    def between(self, start_s: float, end_s: float) -> list[Step]:
        """The steps that ended within this time.

        Raises:
            RuntimeError: Some were missed.
        """
        if self._num_dropped:
            raise RuntimeError(
                f"{self._num_dropped} events of the live view were lost. Measure again, on an idle machine."
            )
        return [step for step in self.steps if start_s <= step.at_s <= end_s]

    def _stepped(self, event: dict[str, Any]) -> None:
        prefill_tokens = decode_rows = kv_tokens = 0
        prefill_kv_tokens = 0.0
        for sequence, units in event["rows"]:
            num_before = self._computed.get(sequence, 0)
            self._computed[sequence] = num_before + units
            if units == 1 and num_before:
                decode_rows += 1
                kv_tokens += num_before + 1
            else:
                prefill_tokens += units
                prefill_kv_tokens += attended_tokens(units, num_before)
        self.steps.append(
            Step(
                at_s=event["at_s"],
                seconds=self._seconds(event),
                prefill_tokens=prefill_tokens,
                prefill_kv_tokens=prefill_kv_tokens,
                decode_rows=decode_rows,
                kv_tokens=kv_tokens,
                budget_tokens=event["budget_units"],
                num_waiting=event["num_waiting"],
            )
        )
        self._before = event

    def _seconds(self, event: dict[str, Any]) -> float:
        before = self._before
        if before is None:
            return float(event["seconds"])
        went_on = before["num_waiting"] or {row[0] for row in before["rows"]} & {row[0] for row in event["rows"]}
        return float(event["at_s"] - before["at_s"] if went_on else event["seconds"])


class _LiveConnection(Connection):
    """Hands out the messages of a stream of events that does not end."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self.watcher: StepWatcher | None = None
        self._rest = b""

    def on_body(self, body: bytes) -> None:
        """A part of the stream."""
        assert self.watcher is not None
        *lines, self._rest = (self._rest + body).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self.watcher.take(json.loads(line[5:]))


@contextlib.asynccontextmanager
async def watched(port: int, model: str) -> AsyncGenerator[StepWatcher]:
    """Watches a model of a server on this machine; it must be idle at the start.

    Raises:
        RuntimeError: The server ended the stream.
    """
    watcher = StepWatcher(model)
    address = Address(port=port, headers={"Accept": "text/event-stream"})
    connection = await _LiveConnection.open(address)
    assert isinstance(connection, _LiveConnection)
    connection.watcher = watcher
    task = asyncio.create_task(connection.request("GET", "/live"))
    await asyncio.sleep(TOLD_AFTER_S)
    try:
        yield watcher
    finally:
        if task.done():
            raise RuntimeError("the server ended the live view.") from task.exception()
        task.cancel()
        await asyncio.wait((task,))
