"""How a check fails: with words that say which promise is broken, what was seen, and what to do."""

from __future__ import annotations

from typing import NoReturn


class CheckFailed(Exception):
    """The plugin does not keep a promise; the message says which, what was seen, and what to do."""


class DoesNotLoad(Exception):
    """The model can't be loaded, so that nothing else of it can be tried; the message is what ``sixfold serve`` says."""


class NotApplicable(Exception):
    """There is nothing to check; the message says why."""


def fail(message: str) -> NoReturn:
    """Ends a check.

    Raises:
        CheckFailed: Always.
    """
    raise CheckFailed(message)


def require(holds: object, message: str) -> None:
    """Ends a check unless something holds.

    Raises:
        CheckFailed: It does not.
    """
    if not holds:
        fail(message)
