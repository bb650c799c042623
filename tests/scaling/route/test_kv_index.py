"""The index of caches follows the events of replicas, in the wire format of vLLM and of our own runtime."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.plugins.llm.kv_events import KvEventLog
from sixfold.scaling.route.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, decode_batch
from sixfold.scaling.route.kv_index import KvIndex

SIZE = 4


def stored(
    names: Sequence[int | bytes], tokens: Sequence[int], parent: int | bytes | None = None, **more: str
) -> BlockStored:
    return BlockStored(
        block_hashes=tuple(names), parent_block_hash=parent, token_ids=tuple(tokens), block_size=SIZE, **more
    )


def held(index: KvIndex, tokens: Sequence[int], adapter: str | None = None) -> float:
    return index.cached_tokens(tokens, ["r"], adapter)["r"]


def test_a_prompt_is_found_up_to_its_last_whole_block_that_is_held() -> None:
    index = KvIndex()
    index.apply("r", [stored([1, 2], range(8)), stored([3], range(8, 12), parent=2)])
    assert held(index, range(12)) == 12
    assert held(index, range(14)) == 12
    assert held(index, range(11)) == 8
    assert held(index, [9, *range(1, 12)]) == 0
    assert index.cached_tokens(range(12), ["r", "unknown"]) == {"r": 12, "unknown": 0}


def test_an_adapters_blocks_are_its_own() -> None:
    index = KvIndex()
    index.apply("r", [stored([1], range(4), lora_name="ink")])
    assert held(index, range(4)) == 0
    assert held(index, range(4), adapter="ink") == 4


def test_what_is_removed_or_cleared_is_found_no_more() -> None:
    index = KvIndex()
    index.apply("r", [stored([1, 2], range(8)), BlockRemoved(block_hashes=(2,))])
    assert held(index, range(8)) == 4
    index.apply("r", [AllBlocksCleared()])
    assert held(index, range(8)) == 0
    assert index.num_blocks("r") == 0


def test_a_block_in_host_memory_counts_less_and_outlives_the_devices_copy() -> None:
    index = KvIndex()
    index.apply("r", [stored([1], range(4)), stored([1], range(4), medium="CPU")])
    assert held(index, range(4)) == 4
    index.apply("r", [BlockRemoved(block_hashes=(1,))])
    assert held(index, range(4)) == 3
    index.apply("r", [BlockRemoved(block_hashes=(1,), medium="CPU")])
    assert held(index, range(4)) == 0


def test_equal_tokens_under_two_names_are_held_until_both_are_gone() -> None:
    index = KvIndex()
    index.apply("r", [stored([1], range(4)), stored([b"salted"], range(4)), BlockRemoved(block_hashes=(1,))])
    assert held(index, range(4)) == 4
    index.apply("r", [BlockRemoved(block_hashes=(b"salted",))])
    assert held(index, range(4)) == 0


def test_blocks_behind_an_unknown_parent_are_counted_and_not_guessed() -> None:
    index = KvIndex()
    index.apply("r", [stored([5, 6], range(8), parent=4)])
    assert held(index, range(8)) == 0
    assert index.num_orphans == 2


def test_a_name_that_is_given_to_other_tokens_stands_for_them_alone() -> None:
    index = KvIndex()
    index.apply("r", [stored([1], range(4)), stored([1], range(4, 8))])
    assert held(index, range(4)) == 0
    assert held(index, range(4, 8)) == 4


def test_replicas_of_different_block_sizes_are_compared_in_tokens() -> None:
    index = KvIndex()
    index.apply("r", [stored([1, 2], range(8))])
    index.apply("s", [BlockStored(block_hashes=(1,), parent_block_hash=None, token_ids=tuple(range(8)), block_size=8)])
    assert index.cached_tokens(range(9), ["r", "s"]) == {"r": 8, "s": 8}


@given(st.lists(st.tuples(st.sampled_from(("store", "remove")), st.integers(0, 5)), max_size=60))
def test_after_any_events_exactly_what_is_announced_is_found(steps: list[tuple[str, int]]) -> None:
    index = KvIndex()
    chain = list(range(6 * SIZE))
    announced: set[int] = set()
    for kind, number in steps:
        tokens = chain[number * SIZE : (number + 1) * SIZE]
        if kind == "remove":
            index.apply("r", [BlockRemoved(block_hashes=(number,))])
            announced.discard(number)
        elif number == 0 or number - 1 in announced:
            index.apply("r", [stored([number], tokens, parent=number - 1 if number else None)])
            announced.add(number)
    num_leading = next((number for number in range(6) if number not in announced), 6)
    assert held(index, chain) == num_leading * SIZE
    assert index.num_blocks("r") == len(announced)


def test_what_our_own_runtime_sends_is_understood() -> None:
    sent: list[bytes] = []
    log = KvEventLog(SIZE, sent.append)
    log.stored([bytes(15) + b"\x01", bytes(15) + b"\x02"], b"", range(8))
    log.removed(bytes(15) + b"\x02")
    log.flush()
    index = KvIndex()
    for batch in sent:
        index.apply("r", decode_batch(batch).events)
    assert held(index, range(8)) == 4


def test_a_batch_as_vllm_encodes_it_is_understood() -> None:
    # Maps with tags inside of an array; fields that are new to us, and hashes as bytes.
    event = {
        "type": "BlockStored", "block_hashes": [b"\x01" * 32], "parent_block_hash": None, "token_ids": [0, 1, 2, 3],
        "block_size": 4, "lora_id": None, "medium": "GPU", "lora_name": None, "extra_keys": None, "group_idx": 0,
    }  # fmt: skip
    index = KvIndex()
    index.apply("r", decode_batch(msgspec.msgpack.encode([12.5, [event], 0])).events)
    assert held(index, range(4)) == 4


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param({"ts": 1.0, "events": [], "data_parallel_rank": 0}, id="an envelope that is a map"),
        pytest.param(
            [1.0, [["BlockRemoved", [1], "GPU"]], 0], id="events that are positional arrays, as vLLM once sent them"
        ),
        pytest.param([1.0, [{"type": "BlockMoved", "block_hashes": [1]}], 0], id="an event of another type"),
    ],
)
def test_another_wire_format_fails_loudly(payload: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_batch(msgspec.msgpack.encode(payload))
