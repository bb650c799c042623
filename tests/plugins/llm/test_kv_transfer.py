"""A prompt that one process has computed is found by another, or computed there: never lost, never wrong."""

from __future__ import annotations

import logging
import struct
import threading
import time
import zlib
from collections.abc import Callable

import msgspec
import pytest
import torch

from sixfold.core.errors import ConfigError
from sixfold.plugins.llm.cached_tokens import CachedTokens
from sixfold.plugins.llm.kv_bytes import KvBytes
from sixfold.plugins.llm.kv_channel import OWNER, READER, Channel, Chunk, Done, Offer, Pull, Take, TransferTimes
from sixfold.plugins.llm.kv_handle import (
    DamagedBlock,
    KvHandle,
    KvTransferError,
    LeaseExpired,
    OtherModel,
    OtherPrompt,
    PeerGone,
    PeerNotAllowed,
)
from sixfold.plugins.llm.kv_layer import PlainLayer
from sixfold.plugins.llm.kv_shared_memory import SharedMemoryTransport
from sixfold.plugins.llm.kv_transfer import NO_TRANSFERS
from sixfold.plugins.llm.kv_transport import TcpTransport
from sixfold.plugins.llm.options import KvTransferOptions
from sixfold.plugins.llm.tensors import host_bytes
from tests.plugins.llm.kv_fakes import BLOCK_SIZE, PROMPT, FakeOwner, Side, compute, make_cache

LISTEN = ("127.0.0.1:0", "shm")
BLOCK_BYTES = KvBytes(make_cache().layers).block_bytes


def prompt(token_ids: tuple[int, ...] = PROMPT, salt: bytes | None = b"") -> CachedTokens:
    """As a request's sequence is when it was prepared."""
    sequence = CachedTokens(token_ids, salt=salt)
    if salt is not None:
        make_cache().prefix.num_found(sequence)
    return sequence


@pytest.mark.parametrize("listen", LISTEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def test_what_was_computed_is_found_elsewhere_bit_by_bit(listen: str, dtype: torch.dtype, device: str) -> None:
    own, other = (make_cache(dtype=dtype, device=device) for _ in range(2))
    with Side(listen, cache=own) as owner, Side(cache=other) as reader:
        handle = owner.prefill()
        assert handle.num_bytes == 10 * KvBytes(owner.cache.layers).block_bytes
        assert reader.transfer.fetch(handle, prompt()) == handle.num_tokens == 40
        assert reader.num_found() == 40
        assert all(torch.equal(a, b) for a, b in zip(owner.values(), reader.values(), strict=True))
        assert reader.num_used() == 0


@pytest.mark.parametrize("listen", LISTEN)
def test_blocks_come_in_chunks(listen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sixfold.plugins.llm.kv_server._CHUNK_BYTES", 3 * BLOCK_BYTES)
    with Side(listen) as owner, Side() as reader:
        assert reader.transfer.fetch(owner.prefill(), prompt()) == 40
        assert all(torch.equal(a, b) for a, b in zip(owner.values(), reader.values(), strict=True))


@pytest.mark.parametrize("listen", LISTEN)
def test_the_owner_keeps_the_blocks_until_they_were_taken_and_no_longer(listen: str) -> None:
    with Side(listen) as owner, Side() as reader:
        handle = owner.prefill()
        assert owner.num_used() == 10
        reader.transfer.fetch(handle, prompt())
        assert owner.num_used() == 0
        with pytest.raises(LeaseExpired):
            reader.transfer.fetch(handle, prompt())
        assert reader.num_used() == 0


@pytest.mark.parametrize("listen", LISTEN)
def test_no_step_waits_for_blocks_to_be_looked_at(listen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[threading.Thread] = []
    finite = PlainLayer.finite

    def seen(layer: PlainLayer, blocks: torch.Tensor) -> torch.Tensor:
        looked.append(threading.current_thread())
        return finite(layer, blocks)

    with Side(listen) as owner, Side() as reader:
        handle = owner.prefill()
        monkeypatch.setattr(PlainLayer, "finite", seen)
        assert reader.transfer.fetch(handle, prompt()) == 40
    assert {*looked} == {threading.current_thread()}  # which fetches; neither side's device thread


def test_only_what_is_missing_is_transferred() -> None:
    with Side("shm") as owner, Side() as reader:
        handle = owner.prefill()
        reader.do(lambda: reader.cache.free(compute(reader.cache, PROMPT[: 4 * BLOCK_SIZE + 1])))
        assert reader.transfer.fetch(handle, prompt()) == 6 * BLOCK_SIZE
        assert reader.num_found() == 40


def test_a_cache_without_room_takes_the_head_of_a_prompt() -> None:
    with Side("shm") as owner, Side(cache=make_cache(num_blocks=7)) as reader:
        assert reader.transfer.fetch(owner.prefill(), prompt()) == 6 * BLOCK_SIZE
        assert reader.num_found() == 6 * BLOCK_SIZE


def test_blocks_come_for_those_who_share_the_salt_alone() -> None:
    with Side("shm") as owner, Side() as reader:
        handle = owner.prefill(salt=b"ann")
        for salt in (b"", b"bob", None):
            with pytest.raises(OtherPrompt):
                reader.transfer.fetch(handle, prompt(salt=salt))
        reader.transfer.fetch(handle, prompt(salt=b"ann"))
        assert reader.num_found(salt=b"ann") == 40
        assert reader.num_found(salt=b"") == 0


def test_a_handle_of_another_prompt_is_not_even_asked_for() -> None:
    with Side("shm") as owner, Side() as reader:
        handle = owner.prefill()
        for other in ((1, *PROMPT[1:]), PROMPT[:20]):
            with pytest.raises(OtherPrompt):
                reader.transfer.fetch(handle, prompt(other))
        assert owner.num_used() == 10
        assert reader.transfer.fetch(handle, prompt((*PROMPT, 5, 6))) == 40


def test_a_handle_of_another_model_is_not_even_asked_for() -> None:
    with Side("shm") as owner, Side(fingerprint="other") as reader, pytest.raises(OtherModel, match="other"):
        reader.transfer.fetch(owner.prefill(), prompt())


@pytest.mark.parametrize("listen", LISTEN)
def test_an_expired_lease_gives_nothing(listen: str) -> None:
    with Side(listen, lease_s=5) as owner, Side() as reader:
        handle = owner.prefill()
        owner.clock.advance(5)
        with pytest.raises(LeaseExpired):
            reader.transfer.fetch(handle, prompt())
        assert owner.num_used() == 0


def test_an_owner_without_requests_lets_go_of_what_has_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sixfold.plugins.llm.kv_server._EXPIRY_S", 0.01)
    with Side("shm", lease_s=5) as owner:
        owner.prefill()
        assert owner.transfer.stats()["kv_transfer_held_blocks"] == 10
        owner.clock.advance(5)
        until_s = time.monotonic() + 30
        while owner.transfer.stats()["kv_transfer_held_blocks"] and time.monotonic() < until_s:
            pass
        assert owner.transfer.stats()["kv_transfer_held_blocks"] == 0


@pytest.mark.parametrize("listen", LISTEN)
def test_a_wrong_secret_gives_nothing(listen: str) -> None:
    with Side(listen) as owner, Side() as reader, pytest.raises(LeaseExpired):
        reader.transfer.fetch(msgspec.structs.replace(owner.prefill(), secret="0" * 32), prompt())


@pytest.mark.parametrize("listen", LISTEN)
def test_an_owner_that_has_ended_gives_nothing(listen: str) -> None:
    with Side() as reader:
        with Side(listen) as owner:
            handle = owner.prefill()
        with pytest.raises(PeerGone):
            reader.transfer.fetch(handle, prompt())


@pytest.mark.parametrize(
    "address",
    ["tcp:10.1.2.3:80", "tcp:127.0.0.1:99999", "tcp:127.0.0.1:", "shm:../../x", "shm:", "file:/x", "127.0.0.1:80", ""],
)
def test_a_handle_leads_nowhere_but_to_peers(address: str) -> None:
    with Side("shm") as owner, Side() as reader, pytest.raises(PeerNotAllowed):
        reader.transfer.fetch(msgspec.structs.replace(owner.prefill(), address=address), prompt())


def test_without_peers_nothing_is_fetched() -> None:
    for listen in LISTEN:
        with Side(listen) as owner, Side(peers=()) as reader, pytest.raises(PeerNotAllowed, match="peers"):
            reader.transfer.fetch(owner.prefill(), prompt())


def owner_blocks(channel: Channel) -> memoryview:
    """Answers up to the first wanted chunk: its bytes, of blocks that were never computed."""
    assert isinstance(channel.receive(READER), Take)
    channel.send(Offer(10, BLOCK_BYTES, 4))
    assert channel.receive(READER) == Pull(0)
    return host_bytes(torch.zeros((4, BLOCK_BYTES), dtype=torch.uint8))


def sends_good_then_damaged(channel: Channel) -> None:
    data = owner_blocks(channel)
    checksums = tuple(zlib.crc32(data[i : i + BLOCK_BYTES]) for i in range(0, len(data), BLOCK_BYTES))
    channel.send(Chunk(0, checksums))
    channel.send_raw(data)
    assert channel.receive(READER) == Pull(4)
    channel.send(Chunk(4, checksums))
    data[2 * BLOCK_BYTES + 5] ^= 1
    channel.send_raw(data)


def sends_nan(channel: Channel) -> None:
    sends_value(channel, float("nan"))


def sends_infinity(channel: Channel) -> None:
    sends_value(channel, float("-inf"))


def sends_value(channel: Channel, value: float) -> None:
    data = owner_blocks(channel)
    data[BLOCK_BYTES : BLOCK_BYTES + 4] = struct.pack("<f", value)
    channel.send(Chunk(0, tuple(zlib.crc32(data[i : i + BLOCK_BYTES]) for i in range(0, len(data), BLOCK_BYTES))))
    channel.send_raw(data)


def leaves_in_a_chunk(channel: Channel) -> None:
    data = owner_blocks(channel)
    channel.send(Chunk(0, (0, 0, 0, 0)))
    channel.send_raw(data[: 2 * BLOCK_BYTES])


def sends_other_blocks(channel: Channel) -> None:
    owner_blocks(channel)
    channel.send(Chunk(1, (0, 0, 0, 0)))


def offers_other_blocks(channel: Channel) -> None:
    channel.receive(READER)
    channel.send(Offer(9, BLOCK_BYTES, 4))


def offers_huge_chunks(channel: Channel) -> None:
    channel.receive(READER)
    channel.send(Offer(10, BLOCK_BYTES, 1 << 30))


def speaks_http(channel: Channel) -> None:
    channel.receive(READER)
    channel.send_raw(memoryview(b"HTTP/1.1 400 Bad Request\r\n\r\n"))


def speaks_nonsense(channel: Channel) -> None:
    channel.receive(READER)
    channel.send_raw(memoryview(b"\0\0\0\2\x81\x00"))


def is_silent(channel: Channel) -> None:
    channel.receive(READER)
    with pytest.raises(PeerGone):
        channel.receive(READER)  # until the other side gives up


@pytest.mark.parametrize(
    ("behave", "error", "num_found"),
    [
        (sends_good_then_damaged, DamagedBlock, 16),
        (sends_nan, DamagedBlock, 0),
        (sends_infinity, DamagedBlock, 0),
        (leaves_in_a_chunk, PeerGone, 0),
        (sends_other_blocks, PeerGone, 0),
        (offers_other_blocks, PeerGone, 0),
        (offers_huge_chunks, PeerGone, 0),
        (speaks_http, PeerGone, 0),
        (speaks_nonsense, PeerGone, 0),
        (is_silent, PeerGone, 0),
    ],
)
def test_an_owner_that_misbehaves_costs_the_prompt_and_nothing_else(
    behave: Callable[[Channel], None], error: type[KvTransferError], num_found: int
) -> None:
    with Side("shm") as owner, FakeOwner(behave) as fake, Side(timeout_s=2.0 if behave is is_silent else 30) as reader:
        handle = msgspec.structs.replace(owner.prefill(), address=fake.address)
        with pytest.raises(error):
            reader.transfer.fetch(handle, prompt())
        assert reader.num_found() == num_found
        assert reader.num_used() == 0


def read_first_chunk(owner: Side, handle: KvHandle) -> Channel:
    """A reader that has taken something and not said yet that it is done."""
    sock = TcpTransport().connect(handle.address, 10)
    channel = Channel(sock, TransferTimes(timeout_s=30), owner.clock)
    channel.send(Take(handle.lease_id, handle.secret))
    assert isinstance(channel.receive(OWNER), Offer)
    return channel


def test_a_reader_that_leaves_midway_costs_the_owner_nothing_after_the_lease() -> None:
    with Side("127.0.0.1:0", lease_s=5) as owner, Side() as reader:
        handle = owner.prefill()
        read_first_chunk(owner, handle).close()
        assert reader.transfer.fetch(handle, prompt()) == 40
        owner.clock.advance(5)
        with pytest.raises(LeaseExpired):
            reader.transfer.fetch(handle, prompt())
        assert owner.num_used() == 0


def test_the_owner_ends_while_readers_wait() -> None:
    with Side("127.0.0.1:0") as owner:
        channel = read_first_chunk(owner, owner.prefill())
    with pytest.raises(PeerGone):
        channel.receive(READER)
    channel.close()


def test_a_request_that_needs_the_room_of_leases_gets_it() -> None:
    with Side("shm", cache=make_cache(num_blocks=21)) as owner, Side() as reader:
        handle = owner.prefill()
        other = CachedTokens(tuple(range(1000, 1000 + 18 * BLOCK_SIZE)), salt=b"")
        assert owner.do(lambda: owner.cache.reserve(other, 18 * BLOCK_SIZE)) == 18 * BLOCK_SIZE
        with pytest.raises(LeaseExpired):
            reader.transfer.fetch(handle, prompt())


def test_a_request_that_needs_the_room_of_a_running_import_gets_it() -> None:
    other = CachedTokens(tuple(range(1000, 1000 + 8 * BLOCK_SIZE)), salt=b"")
    granted: list[int] = []

    def is_slow(channel: Channel) -> None:
        data = owner_blocks(channel)
        checksums = tuple(zlib.crc32(data[i : i + BLOCK_BYTES]) for i in range(0, len(data), BLOCK_BYTES))
        channel.send(Chunk(0, checksums))
        channel.send_raw(data)
        assert channel.receive(READER) == Pull(4)  # so the first chunk was written
        granted.append(reader.do(lambda: reader.cache.reserve(other, 8 * BLOCK_SIZE)))
        channel.send(Chunk(4, checksums))
        channel.send_raw(data)
        assert channel.receive(READER) == Done()

    with Side("shm") as owner, FakeOwner(is_slow) as fake, Side(cache=make_cache(num_blocks=9)) as reader:
        handle = msgspec.structs.replace(owner.prefill(), address=fake.address)
        assert reader.transfer.fetch(handle, prompt()) == 4 * BLOCK_SIZE
        assert granted == [8 * BLOCK_SIZE]
        assert reader.num_found() == 0  # the request's tokens took the place of what had come
        assert reader.num_used() == 8


def test_a_failure_is_logged_and_counted_and_fails_no_request(caplog: pytest.LogCaptureFixture) -> None:
    with Side("shm") as owner, Side() as reader, caplog.at_level(logging.WARNING):
        handle = owner.prefill()
        reader.transfer.fetch_or_compute(handle, prompt())
        assert owner.num_used() == 0
        reader.transfer.fetch_or_compute(handle, prompt())
        stats = reader.transfer.stats()
    assert "computed here" in caplog.text
    assert (stats["kv_transfer_imports_total"], stats["kv_transfer_failures_total"]) == (1, 1)
    assert stats["kv_transfer_imported_tokens_total"] == 40
    assert stats.keys() == NO_TRANSFERS.keys()


def test_a_device_without_memory_for_what_comes_computes_the_prompt(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_device: torch.device, _make: Callable[[], torch.Tensor]) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("sixfold.plugins.llm.kv_import.made_beside", full)
    with Side("shm") as owner, Side() as reader, caplog.at_level(logging.WARNING):
        reader.transfer.fetch_or_compute(owner.prefill(), prompt())
        assert "computed here" in caplog.text
        assert reader.transfer.stats()["kv_transfer_failures_total"] == 1
        assert reader.num_used() == 0


def test_memory_of_another_user_or_of_no_name_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    sock, address = SharedMemoryTransport().listen()
    with sock:
        monkeypatch.setattr("os.getuid", lambda: 12345)
        with pytest.raises(PeerNotAllowed, match="another user"):
            SharedMemoryTransport().connect(address, 1)


def test_an_address_in_use_is_a_mistake_of_the_configuration() -> None:
    sock, address = TcpTransport("127.0.0.1:0").listen()
    with sock, pytest.raises(ConfigError, match="can't be bound"):
        TcpTransport(address.removeprefix("tcp:")).listen()


@pytest.mark.parametrize("listen", ["0.0.0.0:7000", "[::]:7000", "*:7000", "7000", "host", "host:http", ""])
def test_handles_need_an_address_that_others_reach(listen: str) -> None:
    with pytest.raises(ValueError, match="address that others reach"):
        KvTransferOptions(listen=listen)
