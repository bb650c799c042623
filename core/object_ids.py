"""Ids of what a server keeps for later requests: each names the store that holds it, by which any gateway finds the way."""

from __future__ import annotations

import base64
import re
import secrets

STORE_ID = re.compile(r"[a-z2-7]{8}")
"""A store's own id: forty random bits in base32."""
_OBJECT_ID = re.compile(r"[a-z]+[-_]([a-z2-7]{8})_[0-9a-f]{32}")


def new_store_id() -> str:
    """The id of a store that begins now."""
    return base64.b32encode(secrets.token_bytes(5)).decode().lower()


def new_object_id(prefix: str, store_id: str) -> str:
    """An id that nobody can guess, whatever else of it is known.

    Args:
        prefix: Says the kind, with its separator: ``resp_``.
        store_id: Of the store that will hold the object; "" leaves it out.
    """
    return object_id(prefix, store_id, secrets.token_hex(16))


def object_id(prefix: str, store_id: str, digits: str) -> str:
    """As `new_object_id`, of 32 hexadecimal digits that are given."""
    return f"{prefix}{store_id}_{digits}" if store_id else prefix + digits


def store_of(object_id: str) -> str | None:
    """The store that an id names; None where it names none, as those of other makers."""
    found = _OBJECT_ID.fullmatch(object_id)
    return None if found is None else found[1]
