"""Ids that say which store holds an object."""

from __future__ import annotations

import pytest

from sixfold.core.object_ids import STORE_ID, new_object_id, new_store_id, object_id, store_of


def test_an_id_names_its_store_and_no_two_are_the_same() -> None:
    store_id = new_store_id()
    made = {new_object_id(prefix, store_id) for prefix in ("resp_", "video_", "file-", "batch_") for _ in range(10)}
    assert len(made) == 40
    assert STORE_ID.fullmatch(store_id)
    assert {store_of(each) for each in made} == {store_id}


def test_an_id_without_a_store_is_as_openais() -> None:
    assert store_of(new_object_id("resp_", "")) is None
    assert object_id("file-", "", "0" * 32) == "file-" + "0" * 32


@pytest.mark.parametrize(
    "other",
    ["", "resp_1", "resp_" + "0" * 32, "resp_abcdefgh_" + "0" * 31, "x/resp_abcdefgh_" + "0" * 32, "chatcmpl-1"],
)
def test_ids_of_other_makers_name_no_store(other: str) -> None:
    assert store_of(other) is None
