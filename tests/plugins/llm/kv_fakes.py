"""Two sides that exchange cache blocks within one process, each with a device thread of its own, and owners that misbehave."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import torch

from sixfold.plugins.llm.cached_tokens import CachedTokens
from sixfold.plugins.llm.kv_cache import KvCache, LayerShape
from sixfold.plugins.llm.kv_channel import Channel, TransferTimes
from sixfold.plugins.llm.kv_handle import KvHandle
from sixfold.plugins.llm.kv_transfer import KvTransfer
from sixfold.plugins.llm.kv_transport import TcpTransport
from sixfold.plugins.llm.options import KvTransferOptions
from tests.fakes import FakeClock

T = TypeVar("T")

BLOCK_SIZE = 4
LAYERS = (LayerShape(num_kv_heads=2, head_dim=3), LayerShape(num_kv_heads=1, head_dim=8))
PROMPT = tuple(range(100, 100 + 10 * BLOCK_SIZE + 1))
_WAIT_S = 30.0


def make_cache(num_blocks: int = 41, dtype: torch.dtype = torch.float32, device: str = "cpu") -> KvCache:
    return KvCache(LAYERS, num_blocks=num_blocks, block_size=BLOCK_SIZE, dtype=dtype, device=torch.device(device))


def compute(cache: KvCache, token_ids: tuple[int, ...] = PROMPT, *, salt: bytes = b"") -> CachedTokens:
    """A sequence all of whose tokens but the last are in the cache: each value tells its token, layer and place."""
    sequence = CachedTokens(token_ids, salt=salt)
    num_missing = len(token_ids) - cache.prefix.num_found(sequence)
    assert cache.reserve(sequence, num_missing) == num_missing
    for position in range(sequence.num_computed, len(token_ids)):
        block, offset = int(sequence.block_table[position // BLOCK_SIZE]), position % BLOCK_SIZE
        for number, tensor in enumerate(cache.tensors):
            places = torch.arange(tensor[block, :, :, offset].numel()).view_as(tensor[block, :, :, offset])
            tensor[block, :, :, offset] = token_ids[position] + 0.5 * number + places
    sequence.num_computed = len(token_ids)
    cache.publish(sequence)
    return sequence


class Side:
    """A cache, its transfers, and a thread that stands for its device.

    Args:
        listen: See `KvTransferOptions`.
        clock: Of leases and transfers.
        cache: Its cache.
        fingerprint: Of its model.
        options: Further ones.
    """

    def __init__(
        self,
        listen: str | None = None,
        *,
        clock: FakeClock | None = None,
        cache: KvCache | None = None,
        fingerprint: str = "same",
        **options: Any,
    ) -> None:
        self.cache = make_cache() if cache is None else cache
        self.clock = FakeClock() if clock is None else clock
        fields: dict[str, Any] = {"listen": listen, "peers": ("shm", "127.0.0.1")} | options
        chosen = KvTransferOptions(**fields)
        self.transfer = KvTransfer(chosen, self.cache, fingerprint=fingerprint, clock=self.clock)
        self._turn = threading.Condition()
        self._work: list[Callable[[], None]] = []
        self._is_woken = False
        self._is_ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.transfer.attach(self._wake)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._turn:
            self._is_ended = True
            self._turn.notify()
        self._thread.join(_WAIT_S)
        assert not self._thread.is_alive()

    def do(self, work: Callable[[], T]) -> T:
        """Runs on the device thread."""
        done = threading.Event()
        results: list[T] = []

        def run() -> None:
            try:
                results.append(work())
            finally:
                done.set()

        with self._turn:
            self._work.append(run)
            self._turn.notify()
        assert done.wait(_WAIT_S)
        return results[0]

    def prefill(self, token_ids: tuple[int, ...] = PROMPT, *, salt: bytes = b"") -> KvHandle:
        """Computes a prompt, offers it, and lets it go."""
        handle = self.do(lambda: self._prefill(token_ids, salt))
        assert handle is not None
        return handle

    def num_found(self, token_ids: tuple[int, ...] = PROMPT, *, salt: bytes | None = b"") -> int:
        """Tokens that a request with this prompt would not have to compute."""
        return self.do(lambda: self.cache.prefix.num_found(CachedTokens(token_ids, salt=salt)))

    def num_used(self) -> int:
        """Blocks that somebody holds, once all transfers have ended and all that has come in is done."""
        for thread in threading.enumerate():
            if thread.name == "kv-transfer":
                thread.join(_WAIT_S)
        return self.do(lambda: self.cache.pool.num_used)

    def values(self, token_ids: tuple[int, ...] = PROMPT) -> list[torch.Tensor]:
        """What the cache holds for a prompt's found blocks, layer by layer."""

        def read() -> list[torch.Tensor]:
            sequence = CachedTokens(token_ids, salt=b"")
            self.cache.prefix.attach(sequence)
            blocks = torch.tensor(sequence.block_table[: sequence.num_blocks])
            copies = [tensor[blocks].clone() for tensor in self.cache.tensors]
            self.cache.free(sequence)
            return copies

        return self.do(read)

    def _prefill(self, token_ids: tuple[int, ...], salt: bytes) -> KvHandle | None:
        sequence = compute(self.cache, token_ids, salt=salt)
        handle = self.transfer.offer(sequence, len(token_ids))
        self.cache.free(sequence)
        return handle

    def _wake(self) -> None:
        with self._turn:
            self._is_woken = True
            self._turn.notify()

    def _run(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._is_woken or self._work or self._is_ended)
                work, self._work = self._work, []
                self._is_woken = False
                if self._is_ended:
                    break
            self.transfer.run()
            for item in work:
                item()
        self.transfer.close()


class FakeOwner:
    """Listens as the owner of blocks does, and does with one connection what the test says.

    Args:
        behave: Gets the connection.
    """

    def __init__(self, behave: Callable[[Channel], None]) -> None:
        self._behave = behave
        self._socket, self.address = TcpTransport("127.0.0.1:0").listen()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.join(_WAIT_S)
        assert not self._thread.is_alive()
        self._socket.close()

    def _run(self) -> None:
        accepted, _address = self._socket.accept()
        channel = Channel(accepted, TransferTimes(timeout_s=_WAIT_S), FakeClock())
        self._behave(channel)
        channel.close()
