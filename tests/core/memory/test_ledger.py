from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from sixfold.core.memory.ledger import MemoryLedger
from sixfold.core.memory.need import Claim, MemoryKind, MemoryNeed, format_bytes

GIB = 1 << 30


def claim(device: str, num_bytes: int, kind: MemoryKind = MemoryKind.WEIGHTS) -> Claim:
    return Claim(device=device, kind=kind, num_bytes=num_bytes)


def test_claims_are_given_and_given_back() -> None:
    ledger = MemoryLedger({"cpu": 10, "cuda:0": 5})
    ledger.claim("a", "chat", [claim("cpu", 3), claim("cpu", 2, MemoryKind.CACHE), claim("cuda:0", 5)])
    assert ledger.free() == {"cpu": 5, "cuda:0": 0}
    assert ledger.held("a") == {"cpu": 5, "cuda:0": 5}
    ledger.give_back("a")
    ledger.give_back("a")
    assert ledger.free() == {"cpu": 10, "cuda:0": 5}


def test_a_measurement_counts_where_it_is_more_than_the_claim() -> None:
    ledger = MemoryLedger({"cpu": 10})
    ledger.claim("a", "chat", [claim("cpu", 5)])
    ledger.measure("a", {"cpu": 3})  # its cache is not filled yet
    assert ledger.free() == {"cpu": 5}
    ledger.measure("a", {"cpu": 12})
    assert ledger.free() == {"cpu": -2}
    ledger.measure("gone", {"cpu": 1})
    assert len(ledger.holdings) == 1


def test_the_explanation_names_who_has_what() -> None:
    ledger = MemoryLedger({"cpu": 8 * GIB})
    ledger.claim("a", "chat", [claim("cpu", 3 * GIB)])
    ledger.claim("b", "film", [claim("cuda:0", 3 * GIB)])
    assert ledger.explain("cpu") == "cpu has 8.0 GiB: chat 3.0 GiB, free 5.0 GiB"


def test_a_replica_on_a_gpu_takes_host_memory_for_its_process() -> None:
    need = MemoryNeed(weights_bytes=4, cache_bytes=2, working_bytes=1, process_bytes=3)
    on_gpu = {(c.device, c.kind): c.num_bytes for c in need.claims("cuda:0", 100, num_replicas=2)}
    assert on_gpu == {
        ("cpu", MemoryKind.PROCESS): 6,
        ("cuda:0", MemoryKind.WEIGHTS): 8,
        ("cuda:0", MemoryKind.CACHE): 4,
        ("cuda:0", MemoryKind.WORKING): 2,
    }


def test_an_elastic_cache_takes_its_share_of_what_the_rest_leaves() -> None:
    need = MemoryNeed(weights_bytes=20, cache_bytes=5, cache_share=0.5, working_bytes=10, process_bytes=0)

    def cache(free: int) -> int:
        return next(c.num_bytes for c in need.claims("cuda:0", free) if c.kind is MemoryKind.CACHE)

    assert cache(130) == 50
    assert cache(32) == 5  # the least that it works with
    assert cache(-10) == 5


@given(
    weights=st.integers(0, 100),
    loading=st.integers(0, 200),
    cache=st.integers(0, 50),
    share=st.sampled_from([0.0, 0.5]),
    num_replicas=st.integers(1, 3),
)
def test_claims_hold_what_is_there_before_weights_are_quantized_or_what_serves_whichever_is_more(
    weights: int, loading: int, cache: int, share: float, num_replicas: int
) -> None:
    need = MemoryNeed(weights_bytes=weights, cache_bytes=cache, cache_share=share, working_bytes=10, process_bytes=0)
    serving = sum(c.num_bytes for c in need.claims("cuda:0", 150, num_replicas=num_replicas))
    need = dataclasses.replace(need, loading_bytes=loading)
    claims = need.claims("cuda:0", 150, num_replicas=num_replicas)
    assert sum(c.num_bytes for c in claims) == max(serving, num_replicas * (loading + 10))


def test_sizes_are_written_for_people() -> None:
    assert [format_bytes(n) for n in (12, 2048, 300 << 20, 3 * GIB // 2, 640 * GIB)] == [
        "12 B",
        "2.0 KiB",
        "300 MiB",
        "1.5 GiB",
        "640 GiB",
    ]
