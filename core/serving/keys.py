"""Who is asking: bearer keys, known by their sha256 only."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sixfold.core.errors import InvalidRequest, NotAuthenticated, PermissionDenied
from sixfold.core.messages import ANONYMOUS, Priority
from sixfold.core.serving.limits import KeyLimiter
from sixfold.core.serving.settings import ApiKeySettings, KeyLimits, parse_priority

MAX_TENANT = 1024
_TENANT = re.compile(rb"[!-~]{1,%d}" % MAX_TENANT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """The holder of a key, or everyone when no keys are configured.

    Attributes:
        name: `Request.tenant`.
        weight: `Request.weight`.
        priority: The class of its requests when they don't say.
        max_priority: The highest class that they may ask for.
        models: Names, aliases and variants of the models that it may use; None for all.
        changes_models: Whether it may change models while they serve.
        acts_for_others: Whether its requests may be for tenants that it names.
        limiter: Counts its requests.
    """

    name: str
    weight: float
    priority: Priority
    max_priority: Priority
    models: frozenset[str] | None
    changes_models: bool
    acts_for_others: bool
    limiter: KeyLimiter

    def may_use(self, *names: str) -> bool:
        """Whether it may use the model that has these names."""
        return self.models is None or any(name in self.models for name in names)

    def acting_for(self, header: bytes | None) -> Principal:
        """The tenant of a request with this ``x-tenant`` header: one within the key's own, whatever it is called.

        Raises:
            InvalidRequest: The header is no name.
            PermissionDenied: The key may not act for others.
        """
        if header is None:
            return self
        if not self.acts_for_others:
            raise PermissionDenied(
                "The key may not act for others. Leave the header x-tenant out; the operator allows it by the key's "
                "'acts_for_others'."
            )
        if not _TENANT.fullmatch(header):
            raise InvalidRequest(f"Header x-tenant: use 1 to {MAX_TENANT} visible ASCII characters.")
        return self.named(f"{self.name}/{header.decode()}")

    def named(self, name: str) -> Principal:
        """The same, by another name."""
        return replace(self, name=name)

    def priority_of(self, header: str | None) -> Priority:
        """The class of a request with this ``x-priority`` header.

        Raises:
            InvalidRequest: The header names no class.
            PermissionDenied: The class is above what the key may ask for.
        """
        if header is None:
            return self.priority
        try:
            wanted: Priority = parse_priority(header[:40])
        except ValueError as error:
            raise InvalidRequest(f"Header x-priority: {error}.") from None
        if wanted > self.max_priority:
            raise PermissionDenied(
                f"The key may ask for the priority {self.max_priority.name.lower()} at most, not {wanted.name.lower()}."
            )
        return wanted


class KeyRing:
    """The configured keys.

    Args:
        keys: None at all lets everyone in.
        clock: Monotonic seconds, for the limits.
    """

    def __init__(self, keys: Sequence[ApiKeySettings], clock: Callable[[], float]) -> None:
        self._principals = tuple((key.sha256.encode(), _principal(key, clock)) for key in keys)
        self.everyone = Principal(
            name=ANONYMOUS,
            weight=1.0,
            priority=Priority.STANDARD,
            max_priority=Priority.INTERACTIVE,
            models=None,
            changes_models=True,
            acts_for_others=True,  # nobody is kept from anything here: names only tell objects and shares apart
            limiter=KeyLimiter(ANONYMOUS, KeyLimits(), clock),
        )

    def holder(self, name: str) -> Principal:
        """The holder of this name (`Principal.name`), or whom it acts for, for work that goes on without a request.

        Raises:
            PermissionDenied: There are keys, and none has this name any more.
        """
        principals = [principal for _, principal in self._principals] or [self.everyone]
        for principal in principals:
            if principal.name == name:
                return principal
            if principal.acts_for_others and name.startswith(f"{principal.name}/"):
                return principal.named(name)
        if not self._principals:
            return self.everyone
        raise PermissionDenied("The key for which this is done is not known here any more.")

    def authenticate(self, authorization: bytes | None) -> Principal:
        """The holder of the key in an ``Authorization: Bearer`` header.

        Every key is compared in constant time and none is left out, so the time says nothing about any of them.

        Raises:
            NotAuthenticated: There are keys, and this is none of them.
        """
        if not self._principals:
            return self.everyone
        if authorization is None:
            raise NotAuthenticated("No API key was given. Send the header 'Authorization: Bearer YOUR_KEY'.")
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not key.strip():
            raise NotAuthenticated(
                "The Authorization header holds no bearer key. Send 'Authorization: Bearer YOUR_KEY'."
            )
        digest = hashlib.sha256(key.strip()).hexdigest().encode()
        found: Principal | None = None
        for known, principal in self._principals:
            if hmac.compare_digest(known, digest):
                found = principal
        if found is None:
            raise NotAuthenticated("The API key is not known here. Check it, or ask the operator for one.")
        return found


def _principal(key: ApiKeySettings, clock: Callable[[], float]) -> Principal:
    return Principal(
        name=key.name,
        weight=key.weight,
        priority=key.priority,
        max_priority=key.priority,
        models=None if key.models is None else frozenset(key.models),
        changes_models=key.changes_models,
        acts_for_others=key.acts_for_others,
        limiter=KeyLimiter(key.name, key.limits, clock),
    )
