"""What a simulated client sends, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """One request of a trace.

    Attributes:
        arrived_s: Seconds from the start of the trace.
        prompt_tokens: Length of the prompt.
        output_tokens: Length of the answer, at least 1.
        blocks: Names of the prompt's blocks, in order; two requests share a prefix as far as their names are equal.
        origin: The site next to the client; "" for the first.
    """

    arrived_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    origin: str = ""

    @property
    def prompt_units(self) -> int:
        """The prompt's work, as routing names it."""
        return self.prompt_tokens

    @property
    def output_units(self) -> int:
        """The answer's work, as routing names it."""
        return self.output_tokens


class Outcome(StrEnum):
    """How a request ended."""

    RUNNING = "running"
    ANSWERED = "answered"
    EXPIRED = "expired"
    LOST = "lost"


class Job:
    """A request on its way through the fleet. Owner: the simulation; a replica changes it while it runs there.

    Args:
        request: What was sent.
    """

    __slots__ = (
        "cached_tokens",
        "finished_s",
        "first_token_s",
        "given_tokens",
        "num_attempts",
        "outcome",
        "prefill_left",
        "request",
        "travel_s",
    )

    def __init__(self, request: TraceRequest) -> None:
        self.request = request
        self.outcome = Outcome.RUNNING
        self.prefill_left = 0
        self.cached_tokens = 0
        self.given_tokens = 0
        """Of the prompt, what another replica has computed for it."""
        self.first_token_s: float | None = None
        self.finished_s: float | None = None
        self.num_attempts = 0
        self.travel_s = 0.0
        """Both ways between the client's site and the one that serves."""

    @property
    def context_tokens(self) -> int:
        """Cache that it fills in the end."""
        return self.request.prompt_tokens + self.request.output_tokens

    @property
    def ttft_s(self) -> float | None:
        """From arrival to the first token at the client."""
        return None if self.first_token_s is None else self.first_token_s - self.request.arrived_s + self.travel_s

    @property
    def e2e_s(self) -> float | None:
        """From arrival to the last token at the client."""
        return None if self.finished_s is None else self.finished_s - self.request.arrived_s + self.travel_s
