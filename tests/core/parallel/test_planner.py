from __future__ import annotations

import dataclasses

from sixfold.core.parallel.degrees import Degrees
from sixfold.core.parallel.planner import Capacity, ParallelShape, choose, estimate_s
from sixfold.core.parallel.settings import ParallelSettings

WAN = ParallelShape(
    num_heads=12, num_kv_heads=12, head_dim=128, num_layers=30, num_tokens=32_760, num_rows=2, parameters=1_420_000_000
)
SMALL = dataclasses.replace(
    WAN, num_tokens=256, num_layers=12, num_heads=8, head_dim=32, parameters=20_000_000, num_rows=1
)


def gpus(count: int, link: float | None = 370e9) -> Capacity:
    return Capacity(names=tuple(f"cuda:{index}" for index in range(count)), link_bytes_per_s=link)


def test_guidance_takes_the_first_two_devices_and_tokens_the_rest() -> None:
    assert choose(WAN, gpus(2), None).degrees == Degrees(cfg=2)
    four = choose(WAN, gpus(4), None)
    assert four.degrees == Degrees(cfg=2, context=2, ulysses=2)
    assert any("guidance need no exchange" in reason for reason in four.reasons)
    assert any("370 GB/s measured" in reason for reason in four.reasons)


def test_a_small_model_stays_on_one_device_and_says_why() -> None:
    choice = choose(SMALL, gpus(8), None)
    assert choice.degrees == Degrees()
    assert any(reason.startswith("not 2 ranks: they would make a step") for reason in choice.reasons)


def test_a_slow_link_makes_key_value_blocks_travel_instead_of_heads() -> None:
    one_row = dataclasses.replace(WAN, num_rows=1)
    assert choose(one_row, gpus(2, 370e9), None).degrees.ulysses == 2
    assert choose(one_row, gpus(2, 25e9), None).degrees.ring == 2


def test_no_more_ranks_trade_heads_than_there_are_heads() -> None:
    few = dataclasses.replace(WAN, num_heads=2, num_kv_heads=2, head_dim=768, num_rows=1)
    choice = choose(few, gpus(4), ParallelSettings(context=4))
    assert choice.degrees.context == 4 and choice.degrees.ulysses <= 2
    assert any(reason.startswith("ring ") for reason in choice.reasons)


def test_processors_of_one_host_are_not_divided_by_themselves() -> None:
    choice = choose(WAN, Capacity(names=("cpu",)), None)
    assert choice.degrees == Degrees()
    assert "one process uses as well" in choice.reasons[0]


def test_what_the_operator_sets_is_kept() -> None:
    wanted = ParallelSettings(context=4, cfg=2, ulysses=1)
    assert choose(WAN, gpus(8), wanted).degrees == Degrees(context=4, cfg=2, ulysses=1)


def test_a_model_whose_tokens_cannot_be_split_has_its_rows_divided() -> None:
    unet = dataclasses.replace(WAN, can_split_tokens=False)
    assert choose(unet, gpus(8), None).degrees == Degrees(cfg=2)


def test_more_ranks_never_make_a_large_step_slower_by_the_estimate() -> None:
    steps = [estimate_s(WAN, Degrees(context=n, ulysses=n if n <= 4 else 4), gpus(8)) for n in (1, 2, 4, 8)]
    assert steps == sorted(steps, reverse=True)
