"""What a model's methods return, held to the types of their contract: a plugin's mistake costs one request, and is named.

Met later, on a thread that all requests share, a forgotten `return` would end the worker, or nobody would hear of it.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex, TypeVar, cast

import msgspec

from sixfold.core.batching.model import DeviceLost, Finish, ModelInfo, Outcome, ReplicaModel, StepModel
from sixfold.core.errors import RequestError, StepFailed, UsageError
from sixfold.core.messages import Request, Usage

_log = logging.getLogger(__name__)

ReturnedT = TypeVar("ReturnedT")
SEE_LOG = "The model failed on this request. The server's log has the reason under the request's id."
"""What a client is told of a defect in a model's code."""


def wrong_return(model: object, method: str, value: object, expected: str) -> StepFailed:
    """The error of a request for which a method returned what it may not; its cause says the same, for the log.

    Args:
        model: Whose method it is.
        method: Its name.
        value: What came; the message has its type alone.
        expected: What should have come, with its article.
    """
    return _mistake(f"{type(model).__name__}.{method} returned {_kind(value)}, not {expected}{_hint(value)}")


def _mistake(message: str) -> StepFailed:
    error = StepFailed(message)
    error.__cause__ = TypeError(message)
    return error


def _kind(value: object) -> str:
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _hint(value: object) -> str:
    return ": is a `return` missing?" if value is None else "."


def returned(model: object, method: str, value: object, expected: type[ReturnedT]) -> ReturnedT:
    """The value, if it is of this class.

    Raises:
        StepFailed: It is not; see `wrong_return`.
    """
    if isinstance(value, expected):
        return value
    article = "an" if expected.__name__[0] in "AEIOU" else "a"
    raise wrong_return(model, method, value, f"{article} {expected.__name__}")


def sequence_of(model: object, method: str, value: object) -> Sequence[Any]:
    """The value, if it is a list, a tuple or the like.

    Raises:
        StepFailed: It is not.
    """
    if isinstance(value, Sequence):
        return value  # pyright: ignore[reportUnknownVariableType]  # of whatever
    raise wrong_return(model, method, value, "a sequence")


def units_of(model: object, method: str, value: object) -> int:
    """The value, if it is a whole number; at least 1.

    Raises:
        StepFailed: It is not.
    """
    if isinstance(value, SupportsIndex):  # those of numpy and torch, too
        return max(1, operator.index(value))
    raise wrong_return(model, method, value, "an int")


def finish_of(model: object, method: str, value: object) -> Finish[Any]:
    """The value, if it is a Finish that can cross to the serving process.

    Raises:
        StepFailed: It is not.
    """
    end: Finish[Any] = returned(model, method, value, Finish)  # pyright: ignore[reportUnknownVariableType]  # of whatever
    where = f"{type(model).__name__}.{method} returned a Finish"
    if not isinstance(end.result, msgspec.Struct):
        raise _mistake(f"{where} whose result is {_kind(end.result)}, not a Struct of the family's output_type.")
    usage = end.usage
    if not isinstance(usage, Usage):  # pyright: ignore[reportUnnecessaryIsInstance]  # plugins may be untyped
        raise _mistake(f"{where} whose usage is {_kind(usage)}, not a Usage.")
    for name, count in usage.counts.items():
        if not isinstance(count, int):  # pyright: ignore[reportUnnecessaryIsInstance]  # as above
            raise _mistake(f"{where} whose usage counts {name!r} by {_kind(count)}, not an int.")
    reason = end.finish_reason
    if not isinstance(reason, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # as above
        raise _mistake(f"{where} whose finish_reason is {_kind(reason)}, not a str.")
    return end


def outcomes_of(model: object, method: str, value: object, num_sequences: int) -> list[Outcome[Any]]:
    """The outcomes of a step; what is none becomes one that fails its sequence alone.

    Raises:
        StepFailed: They are no sequence of outcomes at all: who makes the step fail is to be found.
        DeviceLost: They are too few or too many: whose they are can't be told.
    """
    if value is None:
        raise wrong_return(model, method, value, "a sequence of outcomes")
    outcomes: list[Any] = list(cast(Sequence[Any], value))
    if len(outcomes) != num_sequences:
        raise DeviceLost(
            f"{type(model).__name__}.{method} returned {len(outcomes)} outcomes for {num_sequences} sequences"
        )
    for index, outcome in enumerate(outcomes):
        if not isinstance(outcome, Outcome):
            outcomes[index] = no_outcome(model, method, outcome)
    return outcomes


def no_outcome(model: object, method: str, value: object) -> Outcome[Any]:
    """The outcome of a sequence for which something else was returned."""
    return Outcome(done=True, error=wrong_return(model, method, value, "an Outcome"))


def size_of(model: StepModel[Any, Any, Any], request: Request[Any]) -> tuple[int, Sequence[object]]:
    """The units of a request as its model guesses them, and its pieces.

    Raises:
        RequestError: As the model says; StepFailed, logged, where its code fails.
    """
    try:
        units = units_of(model, "estimate_units", model.estimate_units(request))
        return units, sequence_of(model, "split", model.split(request))
    except RequestError as error:
        log_cause(error, request.request_id, {})
        raise
    except Exception as error:  # the border between the core and a model's code
        _log.exception("request %s was not admitted", request.request_id)
        raise StepFailed(SEE_LOG) from error


def check_loaded(model: ReplicaModel[Any, Any]) -> ModelInfo:
    """What a loaded model tells about itself, once it is seen to tell what all of its workers will ask for.

    Raises:
        UsageError: It does not.
    """
    try:
        info = returned(model, "info", model.info, ModelInfo)
        stats = model.stats()
        if not isinstance(stats, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  # plugins may be untyped
            raise wrong_return(model, "stats", stats, "a mapping")
    except StepFailed as error:
        raise UsageError(error.message) from None
    return info


def log_cause(error: RequestError, request_id: str, fields: Mapping[str, object]) -> None:
    """Tells the log why a request failed, where the client is not told or it is a mistake of the model's code."""
    cause = error.__cause__
    if cause is not None and error.status >= 500:
        traced = cause if cause.__traceback__ is not None else None
        _log.error("request %s failed: %s", request_id, cause, exc_info=traced, extra=fields)
