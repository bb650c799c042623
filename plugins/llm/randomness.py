"""Random numbers that depend on nothing but the seed, the choice and the token's place in the answer.

A generator with state would have to be rolled back when a failed step is repeated, and saved when a sequence is
preempted. A counter needs neither, and no other member of the batch can shift it.
"""

from __future__ import annotations

import hashlib
import secrets
import struct

_PACK = struct.Struct("<QQQ").pack


def new_seed() -> int:
    """A seed for a request that gives none."""
    return secrets.randbits(64)


def uniform(seed: int, choice: int, position: int) -> float:
    """A number in [0, 1) for one token.

    Args:
        seed: Any integer; taken modulo 2**64.
        choice: Index of the choice within the request.
        position: Index of the token within the answer.
    """
    digest = hashlib.blake2b(_PACK(seed & 0xFFFFFFFFFFFFFFFF, choice, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53
