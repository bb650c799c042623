"""Compares the content of two answers: texts exactly, numbers within a family's tolerance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

When = tuple[str, str]
"""What sets two answers apart, for the words: ``content is 'a' alone and 'b' beside others``."""


def difference(
    expected: object, found: object, tolerance: float, place: str = "content", *, when: When = ("first", "then")
) -> str | None:
    """What differs first between two contents, in words; None if nothing does.

    Args:
        expected: Numbers, texts, bytes, arrays, and sequences and mappings of them.
        found: Likewise.
        tolerance: See `Family.batch_tolerance`.
        place: Where they stand, for the words.
        when: Each was seen.
    """
    if _is_numbers(expected) and _is_numbers(found):
        return _numbers_differ(np.asarray(expected, np.float64), np.asarray(found, np.float64), tolerance, place, when)
    one, two = expected, found  # neither is a mapping where these are used
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        given, other = cast("Mapping[str, object]", expected), cast("Mapping[str, object]", found)
        if given.keys() != other.keys():
            return f"{place} has the members {sorted(given)} {when[0]} and {sorted(other)} {when[1]}"
        pairs = [(f"{place}.{name}", given[name], other[name]) for name in given]
    elif _is_sequence(one) and _is_sequence(two):
        ours, theirs = cast("Sequence[object]", expected), cast("Sequence[object]", found)
        if len(ours) != len(theirs):
            return f"{place} has {len(ours)} members {when[0]} and {len(theirs)} {when[1]}"
        pairs = [(f"{place}[{index}]", *both) for index, both in enumerate(zip(ours, theirs, strict=True))]
    else:
        same = type(one) is type(two) and one == two
        return None if same else f"{place} is {_shortened(one)} {when[0]} and {_shortened(two)} {when[1]}"
    told = (difference(a, b, tolerance, name, when=when) for name, a, b in pairs)
    return next((words for words in told if words is not None), None)


def _numbers_differ(expected: Any, found: Any, tolerance: float, place: str, when: When) -> str | None:
    if expected.shape != found.shape:
        return f"{place} has the shape {expected.shape} {when[0]} and {found.shape} {when[1]}"
    # A NaN is far from everything, itself included: it is never a good answer.
    far = ~(np.abs(expected - found) <= tolerance * np.maximum(1.0, np.abs(expected)))
    if not far.any():
        return None
    worst = float(np.abs(expected - found)[far].max())
    count = f"{int(far.sum())} of {far.size} numbers"
    return f"{place} differs in {count}, by up to {worst:g}; Family.batch_tolerance is {tolerance:g}"


def _is_numbers(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return True
    if isinstance(value, bool):
        return False
    if isinstance(value, int | float):
        return True
    return _is_sequence(value) and bool(value) and all(_is_number(each) for each in cast("Sequence[object]", value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_sequence(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
