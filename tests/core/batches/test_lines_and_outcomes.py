"""What an input file may hold, and the store that keeps one outcome a line."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.core.batches.answers import UsageSum
from sixfold.core.batches.lines import MAX_ERRORS, Scan, read_line, scan
from sixfold.core.batches.outcomes import Outcome, OutcomeStore
from sixfold.core.errors import UsageError
from sixfold.core.files import FileStore
from tests.core.faulty_sqlite import Faults


def text(**changes: object) -> str:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/echo", "body": {"model": "parrot", "input": "é"}}
    return json.dumps({key: value for key, value in {**line, **changes}.items() if value is not None})


def scanned(folder: Path, content: str | bytes, *, max_lines: int = 100, max_line_bytes: int = 650) -> Scan:
    path = folder / "lines.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return scan(path, endpoint="/v1/echo", max_lines=max_lines, max_line_bytes=max_line_bytes)


@pytest.mark.parametrize(
    ("content", "code", "line", "param"),
    [
        ("", "empty_file", None, None),
        ("\n \n", "empty_file", None, None),
        ("[1]", "invalid_line", 1, None),
        ("{", "invalid_json_line", 1, None),
        (b"\xff\xfe", "invalid_json_line", 1, None),
        ('{"body":' + "[" * 350, "invalid_json_line", 1, None),
        (text(custom_id=None), "invalid_line", 1, "custom_id"),
        (text(custom_id=7), "invalid_line", 1, "custom_id"),
        (text(custom_id=""), "invalid_custom_id", 1, "custom_id"),
        (text(method="GET"), "invalid_method", 1, "method"),
        (text(url="/v1/other"), "mismatched_url", 1, "url"),
        (text(urll="x"), "invalid_line", 1, None),
        (text(body=None), "invalid_line", 1, "body"),
        (text(body=[1]), "invalid_body", 1, "body"),
        (text(body={"input": "a"}), "invalid_body", 1, "body"),
        (text(body={"model": "parrot", "stream": True}), "stream_unsupported", 1, "body.stream"),
        (text() + "\n\n" + text(body={"model": "x" * 700}), "line_too_long", 3, None),
        (text(body={"model": "x" * 513}), "invalid_body", 1, "body.model"),
        (text() + "\r\n" + text(), "duplicate_custom_id", 2, "custom_id"),
    ],
)
def test_each_mistake_is_told_with_its_line(
    tmp_path: Path, content: str | bytes, code: str, line: int | None, param: str | None
) -> None:
    (error,) = scanned(tmp_path, content).errors
    assert (error.code, error.line, error.param) == (code, line, param)
    assert error.message.endswith(".")


def test_only_the_first_mistakes_are_told_and_long_files_are_refused(tmp_path: Path) -> None:
    assert len(scanned(tmp_path, "x\n" * 500).errors) == MAX_ERRORS
    many = "\n".join(text(custom_id=str(number)) for number in range(6))
    (error,) = scanned(tmp_path, many, max_lines=5).errors
    assert (error.code, error.line) == ("too_many_lines", 6)


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.text(min_size=1, max_size=20), unique=True, min_size=1, max_size=8),
    end=st.sampled_from(("\n", "\r\n", "\n\n")),
)
def test_every_line_is_found_again_where_it_was_seen(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str], end: str
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    found = scanned(folder, end.join(text(custom_id=each) for each in ids))
    assert found.errors == ()
    assert [read_line(folder / "lines.jsonl", ref).custom_id for ref in found.lines] == ids
    assert found.model == "parrot"


@settings(max_examples=25, deadline=None)
@given(
    adds=st.lists(
        st.lists(st.tuples(st.integers(1, 12), st.booleans(), st.binary(max_size=6)), min_size=1, max_size=4),
        max_size=12,
    )
)
def test_the_first_outcome_of_a_line_stays_and_files_have_them_in_order(
    tmp_path_factory: pytest.TempPathFactory, adds: list[list[tuple[int, bool, bytes]]]
) -> None:
    asyncio.run(_add_and_write(tmp_path_factory.mktemp("outcomes"), adds))


async def _add_and_write(folder: Path, adds: list[list[tuple[int, bool, bytes]]]) -> None:
    expected: dict[int, tuple[bool, bytes]] = {}
    store = OutcomeStore(folder / "outcomes.sqlite3")
    await store.open()
    await store.add("other", [Outcome(line=1, succeeded=True, data=b"other")])
    for several in adds:
        await store.add("mine", [Outcome(line=line, succeeded=ok, data=data) for line, ok, data in several])
        for line, ok, data in several:
            expected.setdefault(line, (ok, data))
    await store.close()

    store = OutcomeStore(folder / "outcomes.sqlite3")  # a later server
    await store.open()
    assert store.num_bytes == 5 + sum(len(data) for _, data in expected.values())
    assert await store.lines("mine") == frozenset(expected)
    files = FileStore(folder / "files", None)
    for sort in (True, False):
        wanted = [data for _line, (ok, data) in sorted(expected.items()) if ok is sort]
        written = await store.write("mine", files, succeeded=sort, on_line=lambda _line: None)
        if written is None:
            assert wanted == []
        else:
            path = files.path(written[0])
            assert path is not None
            assert path.read_bytes() == b"".join(data + b"\n" for data in wanted)
    await store.delete("mine")
    assert store.num_bytes == 5
    await store.close()


@pytest.mark.parametrize("ends_transaction", [False, True])
async def test_outcomes_that_a_full_disk_refused_count_for_nothing_and_the_next_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends_transaction: bool
) -> None:
    faults = Faults(monkeypatch)
    faults.ends_transaction = ends_transaction
    store = OutcomeStore(tmp_path / "outcomes.sqlite3")
    await store.open()
    faults.num_commits = 1
    with pytest.raises(sqlite3.OperationalError, match="full"):
        await store.add("mine", [Outcome(line=1, succeeded=True, data=b"abc")])
    assert (store.num_bytes, await store.lines("mine")) == (0, frozenset())
    await store.add("mine", [Outcome(line=1, succeeded=True, data=b"abc")])
    assert (store.num_bytes, await store.lines("mine")) == (3, frozenset((1,)))
    await store.close()


async def test_an_outcome_whose_caller_is_cancelled_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Faults(monkeypatch)
    store = OutcomeStore(tmp_path / "outcomes.sqlite3")
    await store.open()
    faults.may_begin.clear()
    adds = [
        asyncio.create_task(store.add("mine", [Outcome(line=line, succeeded=True, data=b"abc")])) for line in (1, 2)
    ]
    await asyncio.to_thread(faults.waits.wait, 20.0)
    for add in adds:
        add.cancel()
    await asyncio.gather(*adds, return_exceptions=True)
    faults.may_begin.set()
    assert await store.lines("mine") == frozenset((1, 2))
    assert store.num_bytes == 6
    await store.close()


async def test_what_is_deleted_gives_its_room_back_to_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.sqlite3"
    store = OutcomeStore(path)
    await store.open()
    for line in range(24):
        await store.add("mine", [Outcome(line=line, succeeded=True, data=b"x" * 1_000_000)])
    await store.add("other", [Outcome(line=1, succeeded=True, data=b"kept")])
    await store.delete("mine")
    assert await store.lines("other") == frozenset((1,))
    await store.close()
    assert path.stat().st_size < 100_000


async def test_a_file_that_is_no_database_is_the_operators_error(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.sqlite3"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(UsageError, match="Repair or remove"):
        await OutcomeStore(path).open()


def test_tokens_are_added_up_under_old_and_new_names() -> None:
    usage = UsageSum()
    for body in (
        {"usage": {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}}},
        {"usage": {"input_tokens": 5, "output_tokens": 6, "total_tokens": 11}},
        {"usage": "none"},
        {"text": "no usage"},
        [1],
    ):
        usage.add(json.dumps({"response": {"body": body}}).encode())
    total = usage.total
    assert (total.input_tokens, total.output_tokens, total.total_tokens) == (8, 10, 18)
    assert total.input_tokens_details == {"cached_tokens": 2}
