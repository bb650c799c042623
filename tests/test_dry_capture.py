"""What a CUDA graph could not record is found without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.dry_capture import dry_capture, dry_recording

NUMBERS = torch.zeros(4, device="meta")
PLACES = torch.zeros(4, dtype=torch.long, device="meta")
ON_THE_HOST = torch.zeros(4)


def refused() -> dict[str, Callable[[], Any]]:
    values: Any = NUMBERS
    return {
        "a number that becomes a tensor": lambda: torch.tensor(0.0, device="meta"),
        "a copy to the device": lambda: ON_THE_HOST.to("meta"),
        "a copy in place": lambda: NUMBERS.clone().copy_(ON_THE_HOST),
        "a scalar of the host": lambda: NUMBERS * ON_THE_HOST[0],
        "a list as an index": lambda: NUMBERS[[0, 2]],
        "a list as an index to write to": lambda: values.clone().__setitem__(([1, 2],), 0.0),
        "a copy to the host": NUMBERS.cpu,
        "a value": lambda: NUMBERS[0].item(),
        "a list of values": values.tolist,
        "a condition": lambda: bool((NUMBERS > 0).all()),
        "places of what is not zero": NUMBERS.nonzero,
        "a choice by booleans": lambda: NUMBERS[NUMBERS > 0],
        "writing by booleans": lambda: values.clone().__setitem__(NUMBERS > 0, NUMBERS),
        "filling with a value of the device": lambda: NUMBERS.masked_fill(NUMBERS > 0, NUMBERS[0]),
    }


@pytest.mark.parametrize("name", refused())
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_copies_or_asks_is_refused(name: str, mode: Callable[[], Any]) -> None:
    with mode(), pytest.raises(AssertionError), dry_recording():
        refused()[name]()


def test_what_stays_on_the_device_is_computed() -> None:
    found: list[Tensor] = []

    def call() -> None:
        rows = torch.where(NUMBERS > 0, NUMBERS, 0.0) * 2.0 + torch.arange(4, device="meta")
        rows[PLACES] = NUMBERS
        found.append(rows.masked_fill(rows > 1, -1.0).index_select(0, PLACES)[1:, None])

    with torch.inference_mode():
        dry_capture(call)()
    assert [tuple(each.shape) for each in found] == [(3, 1)] * 3


def test_libraries_are_told_that_a_graph_is_recorded() -> None:
    with dry_recording():
        assert torch.cuda.is_current_stream_capturing()


def test_a_question_before_the_recording_is_refused_too_and_no_error_that_is_caught_comes_out() -> None:
    with pytest.raises(AssertionError, match="asked for a value"):
        dry_capture(lambda: print(NUMBERS[0].item()))
