"""What an operator may set about the HTTP face: the ``server:`` part of the configuration."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from sixfold.core.messages import Priority

_FROZEN = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def hash_key(key: str) -> str:
    """The sha256 of an API key in hexadecimal, as ``server.api_keys[].sha256`` wants it."""
    return hashlib.sha256(key.encode()).hexdigest()


def parse_priority(value: Any) -> Any:
    """Reads a priority class by its name (``"batch"``); anything else is left to pydantic to refuse.

    Raises:
        ValueError: The name is not one of the classes.
    """
    if not isinstance(value, str):
        return value
    try:
        return Priority[value.strip().upper()]
    except KeyError:
        names = ", ".join(priority.name.lower() for priority in Priority)
        raise ValueError(f"{value!r} is no priority; use one of {names}") from None


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


class KeyLimits(BaseModel):
    """What one key may ask of the server, next to the models' own admission."""

    model_config = _FROZEN

    max_concurrent_requests: int | None = Field(default=None, ge=1)
    """Requests of this key that may run at the same time; more get 429. Unlimited unless set."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    """Requests that this key may begin a minute, all at once or spread; more get 429. Unlimited unless set."""

    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Tokens, read and written, that this key's requests may use a minute, as the models count them. They are known when a
    request ends, so it is the next that gets 429. Unlimited unless set."""


class ApiKeySettings(BaseModel):
    """One bearer key. The key itself is never written down: only its sha256 is."""

    model_config = _FROZEN

    name: str = Field(min_length=1, max_length=64)
    """Who holds the key: the unit of fairness in the queues, and the name in logs."""

    sha256: Annotated[str, BeforeValidator(_lower), StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """The key's sha256 in hexadecimal, as ``sixfold hash-key`` prints it."""

    weight: float = Field(default=1.0, gt=0)
    """The holder's share of a busy model against other holders of the same priority."""

    priority: Annotated[Priority, BeforeValidator(parse_priority)] = Priority.STANDARD
    """The class of its requests: batch, standard or interactive. A request's ``x-priority`` header may lower it only."""

    models: tuple[str, ...] | None = None
    """Names, aliases or variants of the models that it may use; all of them unless set."""

    changes_models: bool = False
    """Whether it may change models while they serve, such as load adapters into one that it may use by its own name, and see
    what the server changes of itself (``GET /decisions``)."""

    acts_for_others: bool = False
    """Whether its requests may say for whom they are (``x-tenant``), as those of a gateway do that has checked its own clients'
    keys: each is then a tenant of its own, with objects, a share of the queues and a prefix cache of its own."""

    limits: KeyLimits = KeyLimits()
    """Its own limits."""


class BatchSettings(BaseModel):
    """What ``/v1/batches`` and ``/v1/files`` may take of the server."""

    model_config = _FROZEN

    max_rows: int = Field(default=16, ge=1)
    """Lines of batches that run at the same time while nobody else uses their models."""

    max_rows_beside_others: int = Field(default=1, ge=0)
    """Of these, how many may run at a model while requests of other classes run there; 0 lets batches wait for quiet."""

    max_lines: int = Field(default=50_000, ge=1)
    """Longest input file of a batch."""

    max_open_batches: int = Field(default=100, ge=1)
    """Batches of one key that have not ended; more get 429."""

    max_batches: int = Field(default=10_000, ge=1)
    """Batches of one key, those that have ended and are still kept included; more get 429."""

    max_files: int = Field(default=10_000, ge=1)
    """Files of one key, results included; more uploads get 429."""

    max_storage_bytes: int = Field(default=10 * 1024**3, ge=1024)
    """Of all uploaded files and results together; uploads over it get 503, lines wait until there is room. A file takes 4 KiB
    at least."""

    keep_files_s: float = Field(default=30 * 86_400.0, gt=0)
    """How long files and ended batches are kept where the client does not say so (``expires_after``)."""


class ServerSettings(BaseModel):
    """The HTTP face of the server."""

    model_config = _FROZEN

    host: str = "127.0.0.1"
    """Address to listen on. ``0.0.0.0`` takes requests from other machines: set ``api_keys`` then."""

    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""

    max_body_bytes: int = Field(default=32 * 1024 * 1024, ge=1024)
    """Largest request body; a longer one gets 413 before it is held in memory."""

    max_upload_bytes: int = Field(default=100 * 1024 * 1024, ge=1024, le=1000 * 1024 * 1024)
    """Largest multipart body, files included; a longer one gets 413."""

    max_message_bytes: int = Field(default=16 * 1024 * 1024, ge=1024)
    """Largest message on a WebSocket; a longer one closes it with the code 1009."""

    request_timeout_s: float | None = Field(default=600.0, gt=0)
    """Deadline of a request, and the most that its ``x-request-timeout-s`` header may ask for; null for none."""

    drain_timeout_s: float = Field(default=30.0, ge=0)
    """How long running requests may go on after SIGTERM before they are cancelled."""

    keep_alive_s: int = Field(default=75, ge=1)
    """How long an idle connection stays open; longer than the load balancer's, or it reuses closed connections."""

    header_timeout_s: float = Field(default=15.0, gt=0)
    """A connection that has not sent its request headers by then is closed."""

    max_header_bytes: int = Field(default=64 * 1024, ge=1024)
    """Largest request line and headers; longer ones get 431."""

    body_timeout_s: float = Field(default=60.0, gt=0)
    """A request whose body has not arrived by then gets 400 and its connection is closed; uploads get one second more for
    each 256 KiB that arrived."""

    sse_keep_alive_s: float | None = Field(default=None, gt=0)
    """Sends an SSE comment on streams that were silent for this long, for proxies that close idle ones; off unless set."""

    api_keys: tuple[ApiKeySettings, ...] = ()
    """Bearer keys. Without any, everyone who reaches the port may use every model."""

    protect_metrics: bool = False
    """Whether ``/metrics`` needs a key as well."""

    cors_origins: tuple[str, ...] = ()
    """Web pages' origins whose scripts may call the server (``"*"`` for all), also by WebSocket; none unless set."""

    fetch_urls: tuple[str, ...] = ()
    """Hosts from which the server may fetch what a request names by URL: ``host``, ``*.domain`` or ``*``, with ``:port``
    for others than 80 and 443. Private and local addresses are never fetched from. None unless set."""

    fetch_timeout_s: float = Field(default=20.0, gt=0)
    """How long one such fetch may take in all."""

    data_dir: Path | None = None
    """Where jobs and generated files are kept, for one server at a time; a relative path starts at the folder of the
    configuration file. Unless set, a temporary folder that is removed when the server ends."""

    playground: bool = True
    """Whether browsers find a page at ``/`` for trying the models and watching their batches. It calls what clients call, with a
    key that its user types."""

    batches: BatchSettings = BatchSettings()
    """Bounds of the batches API."""

    access_log: bool = False
    """Whether each request is logged with its durations; it costs about a tenth of a millisecond each."""

    @model_validator(mode="after")
    def _keys_are_distinct(self) -> Self:
        for what in ("name", "sha256"):
            seen: set[str] = set()
            for key in self.api_keys:
                value: str = getattr(key, what)
                if value in seen:
                    raise ValueError(f"api_keys: two keys have the same {what} ({key.name!r}); give each its own")
                seen.add(value)
        for key in self.api_keys:
            for other in self.api_keys:
                if key.acts_for_others and other.name.startswith(f"{key.name}/"):
                    raise ValueError(
                        f"api_keys: {other.name!r} is what a tenant of {key.name!r} would be called (acts_for_others). "
                        "Give it a name that does not begin with that key's and a slash"
                    )
        return self
