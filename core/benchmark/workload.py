"""What is asked of a server: a modality says how a request of its kind is written, and which events of the answer are output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Framing = Literal["json", "sse", "bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request of a data set.

    Attributes:
        text: What is sent in.
        max_output_tokens: How long the answer may become; None leaves it to the server.
        body: The whole JSON body, of data sets that bring it; the model's name is put in.
    """

    text: str = ""
    max_output_tokens: int | None = None
    body: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A kind of request that ``sixfold bench`` can send. Registered by a plugin through ``register_workloads``.

    Attributes:
        name: What ``--workload`` takes; unique over all plugins.
        summary: One line for ``--help``.
        path: Where it is sent by POST.
        framing: How the answer comes: one JSON object; server-sent events; or bytes (each piece is output).
        make_body: The JSON body for a model's name and a sample.
        has_output: Whether an event of a stream holds a part of the answer; of no interest for other framings.
    """

    name: str
    summary: str
    path: str
    framing: Framing
    make_body: Callable[[str, Sample], dict[str, Any]]
    has_output: Callable[[Mapping[str, Any]], bool] = lambda _event: False
