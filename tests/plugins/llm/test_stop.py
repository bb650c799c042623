"""Stop strings end an answer wherever their characters arrive, and none of them is ever shown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sixfold.plugins.llm.stop import StopMatcher


def feed(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    shown = ""
    for piece in pieces:
        text, stopped = matcher.push(piece)
        shown += text
        if stopped:
            return shown, True
        assert not any(stop in shown for stop in stops)
    return shown + matcher.flush(), False


@given(
    st.lists(st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.text("ab<", max_size=4), max_size=12),
)
def test_pieces_give_what_the_whole_text_would(stops: list[str], pieces: list[str]) -> None:
    # Fed character by character: in pieces, an earlier match may already be out when a piece holds two.
    whole = "".join(pieces)
    shown, stopped = feed(stops, list(whole))
    ends = [whole.find(stop) + len(stop) for stop in stops if stop in whole]
    assert stopped == bool(ends)
    if not stopped:
        assert shown == whole
    else:
        first_end = min(ends)
        starts = [whole.find(stop, 0, first_end) for stop in stops]
        assert shown == whole[: min(start for start in starts if start >= 0)]
    assert feed(stops, pieces)[1] == stopped


def test_text_that_may_begin_a_stop_string_is_held_back_until_it_can_not() -> None:
    matcher = StopMatcher(["<end>"])
    assert matcher.push("a<e") == ("a", False)
    assert matcher.push("x") == ("<ex", False)
    assert matcher.push("<end") == ("", False)
    assert matcher.push(">b") == ("", True)


def test_nothing_stops_before_the_minimum() -> None:
    matcher = StopMatcher(["ab"])
    assert matcher.push("xab", may_stop=False) == ("xab", False)
    assert matcher.push("ab") == ("", True)
