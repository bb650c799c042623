"""The ticket for a prompt that another process has computed, and what can go wrong when it is used."""

from __future__ import annotations

import msgspec

from sixfold.core.errors import SixfoldError


class KvHandle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the keys and values of a prompt's full blocks can be fetched. Whoever has it can fetch them: keep it secret.

    Attributes:
        fingerprint: Of the model, the type, the block size and the layers: only a cache of the same one can read the bytes.
        chain: Hash of the last block, in hex; it stands for all tokens before it, and for who shares them.
        num_tokens: That the blocks hold.
        num_bytes: What will be transferred.
        address: ``tcp:HOST:PORT``, or ``shm:NAME`` on the same host.
        lease_id: Which blocks.
        secret: Proves that the handle was given by their owner.
        lease_s: How long the blocks are kept, from when the handle was made, by the owner's clock.
    """

    fingerprint: str
    chain: str
    num_tokens: int
    num_bytes: int
    address: str
    lease_id: str
    secret: str
    lease_s: float


class KvTransferError(SixfoldError):
    """Blocks can't be brought over. Never fails a request: its prompt is computed instead."""


class OtherModel(KvTransferError):
    """The blocks are of another model, type, block size or version."""


class OtherPrompt(KvTransferError):
    """The blocks are of another prompt, or of one that is not shared with this request."""


class PeerNotAllowed(KvTransferError):
    """The handle points to where this server was not told to connect."""


class LeaseExpired(KvTransferError):
    """The owner has the blocks no longer: the lease has ended, or they were taken."""


class DamagedBlock(KvTransferError):
    """What came is not what was sent, or no keys and values."""


class PeerGone(KvTransferError):
    """The other process can't be reached, is too slow, or does not speak this protocol."""
