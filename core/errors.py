"""The exception tree: each error knows its HTTP status, its OpenAI code and whether a retry may help.

SixfoldError
├── UsageError                      the operator's mistake, shown on the terminal (exit status 2)
│   ├── ConfigError
│   ├── PluginConflict
│   └── SourceError
└── RequestError                    answered to a client in OpenAI's error shape
    ├── InvalidRequest         400
    │   └── ContextLengthExceeded
    ├── NotAuthenticated       401
    ├── PermissionDenied       403
    ├── NotFound               404
    │   └── ModelNotFound
    ├── PayloadTooLarge        413
    ├── RateLimited            429  (a key's own limit)
    ├── QueueFull              429  (the model's queue)
    ├── RequestCancelled       499
    ├── StepFailed             500  (this request made the model fail)
    ├── NotReady               503  (loading or draining)
    ├── WorkerDied             503
    └── DeadlineExceeded       504
"""

from __future__ import annotations

from typing import ClassVar


class SixfoldError(Exception):
    """Base of every error that Sixfold raises on purpose."""


class UsageError(SixfoldError):
    """The operator's input is wrong: the message says what was given, what is allowed, what to do next."""


class ConfigError(UsageError):
    """A configuration file, environment variable or flag is wrong."""


class PluginConflict(UsageError):
    """Two plugins claim one name; the message names both."""


class SourceError(UsageError):
    """A model's files cannot be had: unknown scheme, missing files, a wrong checksum, no network."""


class RequestError(SixfoldError):
    """A request cannot be served; the message is safe to show to the client.

    Args:
        message: What was wrong and what to do. Never holds paths, addresses or secrets.
        param: The offending field of the body, as OpenAI's ``error.param``.
        code: OpenAI's ``error.code``; the class's ``default_code`` unless given.
        retry_after_s: When a retry may succeed, for ``Retry-After``.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else self.default_code
        self.retry_after_s = retry_after_s


class InvalidRequest(RequestError):
    """The body or a parameter is malformed, unknown or unsupported."""

    status = 400
    type = "invalid_request_error"
    default_code = "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    """The input does not fit the model's context."""

    default_code = "context_length_exceeded"


class NotAuthenticated(RequestError):
    """No key, or an unknown one."""

    status = 401
    type = "invalid_request_error"
    default_code = "invalid_api_key"


class PermissionDenied(RequestError):
    """The key may not use this model."""

    status = 403
    type = "invalid_request_error"
    default_code = "permission_denied"


class NotFound(RequestError):
    """No such route or object."""

    status = 404
    type = "invalid_request_error"
    default_code = "not_found"


class ModelNotFound(NotFound):
    """No model of this name serves this operation."""

    default_code = "model_not_found"


class PayloadTooLarge(RequestError):
    """The body exceeds the server's limit."""

    status = 413
    type = "invalid_request_error"
    default_code = "payload_too_large"


class RateLimited(RequestError):
    """The key has used up its own limit."""

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"
    retryable = True


WOULD_BE_LATE = "would_be_late"
"""The code of a `QueueFull` that concerns only requests with as little time; answers say so in the header `REFUSED`, too."""
REFUSED = "x-refused"


class QueueFull(RequestError):
    """The model's queue holds as much work as it may, or more than this request has time for (`WOULD_BE_LATE`);
    ``retry_after_s`` comes from the drain rate."""

    status = 429
    type = "rate_limit_error"
    default_code = "queue_full"
    retryable = True


class RequestCancelled(RequestError):
    """The client went away or cancelled; no client reads this."""

    status = 499
    type = "cancelled"
    default_code = "request_cancelled"


class StepFailed(RequestError):
    """The model failed on this request alone; another try would fail again."""

    default_code = "model_step_failed"


class NotReady(RequestError):
    """The model is loading or the server is draining."""

    status = 503
    default_code = "not_ready"
    retryable = True


class WorkerDied(RequestError):
    """The process that held the model ended; it is being replaced."""

    status = 503
    default_code = "worker_died"
    retryable = True


class DeadlineExceeded(RequestError):
    """The request's own deadline passed before it was done."""

    status = 504
    default_code = "deadline_exceeded"


def request_error_types() -> dict[str, type[RequestError]]:
    """Every RequestError class by its name, so that an error can cross a process border by name."""
    found: dict[str, type[RequestError]] = {}
    pending: list[type[RequestError]] = [RequestError]
    while pending:
        cls = pending.pop()
        found[cls.__name__] = cls
        pending.extend(cls.__subclasses__())
    return found
