"""What came of one request: when its parts were there, how much it was, or how it failed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from sixfold.core.benchmark.client import Answer
from sixfold.core.benchmark.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One request; all times by one clock.

    Attributes:
        due_s: When it should have been sent. Latencies count from here: a generator that is late, or a server that keeps
            it from sending, makes them longer and never hides them.
        sent_s: When it was.
        output_s: When each part of the answer was there.
        ended_s: When all was.
        num_input_tokens: As the server counted, if it did.
        num_output_tokens: The same.
        error: What kind of failure it was; None for none.
    """

    due_s: float
    sent_s: float
    output_s: tuple[float, ...] = ()
    ended_s: float
    num_input_tokens: int | None = None
    num_output_tokens: int | None = None
    error: str | None = None

    @property
    def ttft_s(self) -> float | None:
        """From due to the first part of the answer."""
        return self.output_s[0] - self.due_s if self.output_s and self.error is None else None

    @property
    def e2e_s(self) -> float:
        """From due to the end."""
        return self.ended_s - self.due_s

    @property
    def gaps_s(self) -> tuple[float, ...]:
        """Between neighbouring parts of the answer."""
        return tuple(later - earlier for earlier, later in itertools.pairwise(self.output_s))

    @property
    def tpot_s(self) -> float | None:
        """Seconds for each output token after the first; None without a count."""
        if len(self.output_s) < 2 or not self.num_output_tokens or self.num_output_tokens < 2:
            return None
        return (self.output_s[-1] - self.output_s[0]) / (self.num_output_tokens - 1)


def read_answer(workload: Workload, answer: Answer, *, due_s: float) -> Outcome:
    """Reads an answer after its end, so that nothing is parsed while others are measured."""
    facts = _Facts()
    if answer.status != 200:
        facts.error = f"http_{answer.status}"
    elif workload.framing == "bytes":
        facts.output_s = [at_s for at_s, part in answer.parts if part]
    elif workload.framing == "sse":
        _read_events(workload, answer, facts)
    else:
        _read_object(answer, facts)
    if facts.error is None and not facts.output_s:
        facts.error = "empty_answer"
    return Outcome(
        due_s=due_s,
        sent_s=answer.started_s,
        output_s=tuple(facts.output_s),
        ended_s=answer.ended_s,
        num_input_tokens=facts.num_input,
        num_output_tokens=facts.num_output,
        error=facts.error,
    )


class _Facts:
    """Owner: `read_answer`."""

    def __init__(self) -> None:
        self.error: str | None = None
        self.output_s: list[float] = []
        self.num_input: int | None = None
        self.num_output: int | None = None

    def count(self, usage: object) -> None:
        if isinstance(usage, Mapping):
            counted = cast(Mapping[str, Any], usage)
            self.num_input = counted.get("prompt_tokens", counted.get("input_tokens", self.num_input))
            self.num_output = counted.get("completion_tokens", counted.get("output_tokens", self.num_output))


def _read_object(answer: Answer, facts: _Facts) -> None:
    try:
        found: Any = json.loads(answer.body)
    except (ValueError, RecursionError):
        facts.error = "invalid_json"
        return
    facts.output_s = [answer.ended_s]
    facts.count(cast(dict[str, Any], found).get("usage") if isinstance(found, dict) else None)


def _read_events(workload: Workload, answer: Answer, facts: _Facts) -> None:
    pending, done = b"", False
    for at_s, part in answer.parts:
        *events, pending = (pending + part.replace(b"\r\n", b"\n")).split(b"\n\n")
        for event in events:
            data = b"".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
            if data == b"[DONE]":
                done = True
            elif data:
                try:
                    found: Any = json.loads(data)
                except (ValueError, RecursionError):
                    found = None
                if not isinstance(found, dict):
                    facts.error = "invalid_json"
                    return
                found = cast(dict[str, Any], found)
                if "error" in found:
                    facts.error = "stream_error"
                    return
                facts.count(found.get("usage"))
                if workload.has_output(found):
                    facts.output_s.append(at_s)
    if not done:
        facts.error = "torn_stream"
