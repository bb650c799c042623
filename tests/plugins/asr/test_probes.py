"""What the conformance kit asks of recognizers: recordings that a model can tell apart, and that it can decode."""

from __future__ import annotations

from sixfold.plugins.asr.audio import decode_file
from sixfold.plugins.asr.probes import PROBES


def recording(number: int) -> bytes:
    file = PROBES[0].make_body("model", number)["file"]
    assert isinstance(file, bytes)
    return file


def num_samples(number: int) -> int:
    return sum(len(block) for block in decode_file(recording(number), max_duration_s=60))


def test_equal_numbers_have_equal_recordings() -> None:
    assert recording(1) == recording(1)


def test_other_numbers_have_shorter_recordings_of_about_as_much_sound() -> None:
    lengths = [num_samples(number) for number in range(4)]
    assert lengths == sorted(set(lengths), reverse=True)
    assert lengths[-1] > lengths[0] / 2
