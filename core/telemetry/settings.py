"""What an operator may set about traces: the ``telemetry:`` part of the configuration, of servers and gateways alike."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_FROZEN = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TelemetrySettings(BaseModel):
    """Where traces of requests go, and of how many."""

    model_config = _FROZEN

    endpoint: Annotated[str, Field(pattern=r"^https?://[^\s]+$")] | None = None
    """Address of an OTLP/HTTP collector, such as ``http://127.0.0.1:4318``; ``/v1/traces`` is added. Null: no traces."""

    headers: dict[str, str] = {}
    """Sent with each export, such as ``{authorization: "Bearer ${OTLP_TOKEN}"}``."""

    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the requests that are traced. One that comes with a ``traceparent`` follows its caller's decision."""

    service_name: Annotated[str, Field(min_length=1)] = "sixfold"
    """The ``service.name`` of this process's spans; a gateway's should differ from its servers'."""

    max_queue_spans: Annotated[int, Field(ge=512)] = 8192
    """Spans that wait for the collector; while it is slow or gone, further ones are dropped and requests go on."""

    export_timeout_s: Annotated[float, Field(gt=0, le=60)] = 5.0
    """How long one export may take, its retries included; also the most that stopping waits for the last one."""

    record_content: bool = False
    """Whether spans hold the JSON that clients sent, prompts included (its first 16 KiB). Off: no text of a request or an
    answer ever leaves in a trace."""
