"""What a model does not honour is refused by name, and never ignored."""

from __future__ import annotations

import msgspec
import pytest

from sixfold.core.errors import InvalidRequest
from sixfold.core.refusal import refuse_others


class Asked(msgspec.Struct, frozen=True):
    text: str
    n: int = 1
    stop: tuple[str, ...] = ()
    bias: dict[str, float] = {}
    num_choices: int = 1


def test_what_is_required_left_at_its_default_or_honoured_passes() -> None:
    refuse_others(Asked("a"), ())
    refuse_others(Asked("a", n=1, bias={}), ())
    refuse_others(Asked("a", n=2), {"n"})


@pytest.mark.parametrize(
    ("given", "param"),
    [
        (Asked("a", n=2), "n"),
        (Asked("a", stop=("x",)), "stop"),
        (Asked("a", bias={"1": 1.0}), "bias"),
        (Asked("a", num_choices=2), "n_choices"),
    ],
)
def test_what_is_set_and_not_honoured_is_refused_by_the_name_that_clients_use(given: Asked, param: str) -> None:
    with pytest.raises(InvalidRequest, match=f"does not know '{param}'") as caught:
        refuse_others(given, {"text"}, params={"num_choices": "n_choices"})
    assert caught.value.param == param
