"""Joins a model to others of its kind: prompts that one has computed are decoded by another."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from sixfold.plugins.llm.cached_tokens import CachedTokens
from sixfold.plugins.llm.device_inbox import DeviceInbox
from sixfold.plugins.llm.generation import KvTransferParams
from sixfold.plugins.llm.kv_bytes import KvBytes
from sixfold.plugins.llm.kv_cache import KvCache
from sixfold.plugins.llm.kv_channel import TransferTimes
from sixfold.plugins.llm.kv_client import fetch_blocks
from sixfold.plugins.llm.kv_exports import KvExports
from sixfold.plugins.llm.kv_handle import KvHandle, KvTransferError, OtherModel, OtherPrompt, PeerNotAllowed
from sixfold.plugins.llm.kv_import import KvImport
from sixfold.plugins.llm.kv_server import KvServer
from sixfold.plugins.llm.kv_transport import listening_transport
from sixfold.plugins.llm.options import KvTransferOptions
from sixfold.plugins.llm.sequence import SequenceState

_LOG = logging.getLogger(__name__)

NO_TRANSFERS: Mapping[str, float] = dict.fromkeys(
    (
        "kv_transfer_exports_total",
        "kv_transfer_imports_total",
        "kv_transfer_imported_tokens_total",
        "kv_transfer_failures_total",
        "kv_transfer_held_blocks",
    ),
    0.0,
)
"""The metrics of a model that exchanges nothing."""


class KvTransfer:
    """Both sides of one model. Methods are for the device thread unless they say otherwise.

    Args:
        options: Where to listen and whom to ask.
        cache: The model's.
        fingerprint: Of model and cache; see `kv_fingerprint`.
        clock: ``time.monotonic`` or a fake.

    Raises:
        ConfigError: Nothing can listen there.
    """

    def __init__(
        self, options: KvTransferOptions, cache: KvCache, *, fingerprint: str, clock: Callable[[], float]
    ) -> None:
        self._options = options
        self._cache = cache
        self._fingerprint = fingerprint
        self._clock = clock
        self._block_bytes = KvBytes(cache.layers).block_bytes
        self._times = TransferTimes(timeout_s=options.timeout_s)
        self._inbox = DeviceInbox()
        self._exports = KvExports(cache, clock=clock, lease_s=options.lease_s)
        self._imports: set[KvImport] = set()
        cache.make_room = self._make_room
        self._counts: Counter[str] = Counter()
        self._server: KvServer | None = None
        if options.listen is not None:
            self._server = KvServer(
                listening_transport(options.listen),
                self._exports,
                self._inbox,
                block_bytes=self._block_bytes,
                times=self._times,
                clock=clock,
            )

    @property
    def details(self) -> Mapping[str, str]:
        """Facts for ``/v1/models``: who has the same fingerprint can take this model's blocks. [any thread]"""
        address = {} if self._server is None else {"kv_transfer_address": self._server.address}
        return {"kv_transfer_fingerprint": self._fingerprint, **address}

    def attach(self, wake: Callable[[], None]) -> None:
        """Takes what makes the device thread call `run` soon."""
        self._inbox.attach(wake)

    def run(self) -> bool:
        """Does what transfers wait for; says whether there was anything. Called between steps."""
        self._exports.expire()
        return self._inbox.run()

    def offer(self, sequence: CachedTokens, num_tokens: int) -> KvHandle | None:
        """Holds the blocks of a sequence's first tokens for another process.

        Returns:
            None where this process does not listen, no block is full, or too many are held already.
        """
        lease = None if self._server is None else self._exports.hold(sequence, num_tokens)
        if self._server is None or lease is None:
            return None
        self._counts["exported"] += 1
        return KvHandle(
            fingerprint=self._fingerprint,
            chain=lease.chain.hex(),
            num_tokens=len(lease.block_ids) * self._cache.block_size,
            num_bytes=len(lease.block_ids) * self._block_bytes,
            address=self._server.address,
            lease_id=lease.lease_id,
            secret=lease.secret,
            lease_s=self._options.lease_s,
        )

    def fetch(self, handle: KvHandle, prompt: CachedTokens) -> int:
        """Brings the handle's blocks into the cache, where the prompt finds them when it starts.

        Waits for the other process and for the device thread. [pool]

        Returns:
            The tokens that came; those that were here already are not counted.

        Raises:
            KvTransferError: Says why they could not be had, or not all.
        """
        num_blocks = self._check(handle, prompt)
        target = KvImport(
            self._cache,
            prompt.token_ids[: handle.num_tokens],
            salt=prompt.salt or b"",
            block_hashes=prompt.block_hashes[:num_blocks],
            adapter=prompt.adapter,
            running=self._imports,
        )
        num_came = fetch_blocks(
            handle,
            target,
            num_blocks=num_blocks,
            block_bytes=self._block_bytes,
            inbox=self._inbox,
            times=self._times,
            clock=self._clock,
        )
        return num_came * self._cache.block_size

    def fetch_or_compute(self, handle: KvHandle, prompt: CachedTokens) -> None:
        """As `fetch`, but a failure is only logged and counted: the prompt is computed then. [pool]"""
        try:
            num_tokens = self.fetch(handle, prompt)
        except KvTransferError as error:
            self._counts["failed"] += 1
            _LOG.warning("a prompt is computed here, not fetched: %s: %s", type(error).__name__, error)
        else:
            self._counts["imported"] += 1
            self._counts["imported_tokens"] += num_tokens

    def prepare(self, wanted: KvTransferParams, sequences: Sequence[SequenceState]) -> None:
        """Does what a request of one prompt asks for, before its sequences start. [pool]"""
        sequences[0].wants_kv_handle = wanted.wants_handle
        if wanted.handle is not None:
            self.fetch_or_compute(wanted.handle, sequences[0])

    def stats(self) -> Mapping[str, float]:
        """The values of `NO_TRANSFERS`."""
        return {
            "kv_transfer_exports_total": self._counts["exported"],
            "kv_transfer_imports_total": self._counts["imported"],
            "kv_transfer_imported_tokens_total": self._counts["imported_tokens"],
            "kv_transfer_failures_total": self._counts["failed"],
            "kv_transfer_held_blocks": self._exports.num_held_blocks,
        }

    def close(self) -> None:
        """Ends all transfers."""
        self._inbox.close()
        if self._server is not None:
            self._server.close()

    def _make_room(self, num_blocks: int) -> None:
        """Whoever computes comes first: what leaves or comes would be computed elsewhere or here instead."""
        self._exports.give_up(num_blocks)
        for running in [*self._imports]:
            if self._cache.pool.num_free < num_blocks:
                running.end()

    def _check(self, handle: KvHandle, prompt: CachedTokens) -> int:
        """The number of blocks of a handle that fits."""
        if handle.fingerprint != self._fingerprint:
            raise OtherModel(
                f"The handle's fingerprint is {handle.fingerprint[:32]}, this model's is {self._fingerprint}. Serve the same "
                "files with the same dtype and block_size_tokens on both sides."
            )
        num_blocks, rest = divmod(handle.num_tokens, self._cache.block_size)
        is_shared = prompt.salt is not None and 0 < num_blocks <= len(prompt.block_hashes) and not rest
        if not is_shared or prompt.block_hashes[num_blocks - 1].hex() != handle.chain:
            raise OtherPrompt("The handle is of another prompt, or of one that this request does not share.")
        peers = self._options.peers
        kind, _, place = handle.address.partition(":")
        host = place.rpartition(":")[0]
        if not ("shm" in peers if kind == "shm" else kind == "tcp" and (place in peers or host in peers)):
            raise PeerNotAllowed(
                f"{handle.address[:100]!r} is not among options.kv_transfer.peers. Add it if its owner is trusted."
            )
        return num_blocks
