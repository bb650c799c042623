from __future__ import annotations

import asyncio
import errno
import importlib
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from sixfold.core.config import ModelEntry
from sixfold.core.errors import InvalidRequest, NotReady, StepFailed, UsageError, WorkerDied
from sixfold.core.messages import Failed, Increment, Request
from sixfold.core.plugins import load_plugins
from sixfold.core.registry import diff, resolve_entry
from sixfold.core.runtime import worker_replica
from sixfold.core.runtime.host import ModelHost
from sixfold.core.runtime.replica import EventStream
from sixfold.core.serving.directory import ModelState


def entry(files: Path, name: str = "counter", **fields: Any) -> ModelEntry:
    return ModelEntry.model_validate({"name": name, "source": f"here:{files}", **fields})


def new_host(tmp_path: Path) -> ModelHost:
    return ModelHost(load_plugins(), cache_dir=tmp_path / "cache", drain_timeout_s=5.0)


def count(up_to: int, *, trick: str = "", request_id: str = "r") -> Request[Any]:
    module = importlib.import_module("sixfold_count")
    return Request(request_id=request_id, input=module.CountInput(up_to, trick), arrived_s=0.0)


async def events_of(stream: EventStream) -> list[Any]:
    events: list[Any] = []
    async with stream:
        while new := await stream.next_events():
            events.extend(new)
    return events


def only_replica(host: ModelHost, name: str = "counter") -> Any:
    slot = host.find(name)
    assert slot is not None
    (replica,) = slot.replicas
    return replica


async def test_a_strangers_model_counts_in_its_own_process(count_plugin: Path, tmp_path: Path) -> None:
    host = new_host(tmp_path)
    await host.start({"counter": entry(count_plugin, aliases=("other",))})
    try:
        assert host.ready
        assert host.find("other") is host.find("counter")
        replica = only_replica(host)
        assert replica.info.details == {"kind": "count"}
        events = await events_of(replica.submit(count(3)))
        numbers, last = events[:-1], events[-1]
        assert [event.output.value for event in numbers] == [1, 2, 3]
        assert type(last).__name__ == "Finished"
        assert last.result.total == 3
        assert last.result.pid == replica.pid != os.getpid()
        assert last.usage.counts == {"numbers": 3}
        assert last.timing.num_steps == 3
        # Threads that start kernels need the interpreter again and again: none may keep it for the default of 5 ms.
        assert last.result.switch_interval_s == pytest.approx(1e-4)
    finally:
        await host.close(5.0)


async def test_a_model_that_can_not_be_fetched_for_any_reason_does_not_hold_up_the_others(
    count_plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve_or_fail(entry: ModelEntry, *args: Any) -> Any:
        if entry.name == "unlucky":
            raise NotADirectoryError("/dev/null/cache")
        return resolve_entry(entry, *args)

    monkeypatch.setattr("sixfold.core.runtime.model_slot.resolve_entry", resolve_or_fail)
    host = new_host(tmp_path)
    await host.start({name: entry(count_plugin, name) for name in ("unlucky", "counter")})
    try:
        unlucky = host.find("unlucky")
        assert unlucky is not None and unlucky.state is ModelState.FAILED
        assert unlucky.error == "/dev/null/cache"
        assert (await events_of(only_replica(host).submit(count(2))))[-1].result.total == 2
    finally:
        await host.close(5.0)


async def test_a_worker_is_replaced_though_there_were_no_descriptors_for_a_moment(
    count_plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = new_host(tmp_path)
    await host.start({"counter": entry(count_plugin)})
    slot = host.find("counter")
    assert slot is not None
    make = socket.socketpair
    tries: list[int] = []

    def none_at_first() -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return make()

    monkeypatch.setattr(socket, "socketpair", none_at_first)
    try:
        replica = only_replica(host)
        os.kill(replica.pid, signal.SIGKILL)
        async with asyncio.timeout(60.0):
            while not (slot.replicas and slot.replicas[0] is not replica):
                await slot.replaced.wait()
        assert len(tries) == 2
    finally:
        await host.close(5.0)


async def test_announced_models_are_known_as_loading_before_they_start(count_plugin: Path, tmp_path: Path) -> None:
    host = new_host(tmp_path)
    entries = {"counter": entry(count_plugin, aliases=("other",))}
    host.announce(entries)
    slot = host.find("other")
    assert slot is not None and slot.state is ModelState.LOADING
    assert not host.ready
    await host.start(entries)
    try:
        assert host.find("counter") is slot
        assert host.ready
    finally:
        await host.close(5.0)


async def test_equal_request_ids_of_two_clients_do_not_meet(count_plugin: Path, tmp_path: Path) -> None:
    host = new_host(tmp_path)
    await host.start({"counter": entry(count_plugin)})
    try:
        replica = only_replica(host)
        streams = [replica.submit(count(n, request_id="same")) for n in (2, 5)]
        results = await asyncio.gather(*(events_of(stream) for stream in streams))
        assert [events[-1].result.total for events in results] == [2, 5]
    finally:
        await host.close(5.0)


async def test_a_bad_input_fails_with_the_plugins_own_error(count_plugin: Path, tmp_path: Path) -> None:
    host = new_host(tmp_path)
    await host.start({"counter": entry(count_plugin)})
    try:
        (failed,) = await events_of(only_replica(host).submit(count(3, trick="bad")))
        assert isinstance(failed.error, InvalidRequest)
        assert (failed.error.message, failed.error.param) == ("no such number", "up_to")
    finally:
        await host.close(5.0)


async def test_an_output_that_cannot_cross_fails_its_request_and_leaves_the_worker(
    count_plugin: Path, tmp_path: Path
) -> None:
    host = new_host(tmp_path)
    await host.start({"counter": entry(count_plugin)})
    undeclared = "returned what is not of count/aloud's Family.output_type: Invalid value 's'"
    unsendable = "returned what can't be sent: Encoding objects of type object is unsupported"
    try:
        replica = only_replica(host)
        pid = replica.pid
        for trick, num_before, words in (
            ("secret", 0, f"sixfold_count:load: step {undeclared}"),
            ("end secret", 3, f"sixfold_count:load: finish {undeclared}"),
            ("unsendable", 0, f"CountModel.step {unsendable}"),
            ("end unsendable", 3, f"CountModel.finish {unsendable}"),
        ):
            *before, last = await events_of(replica.submit(count(3, trick=trick)))
            assert isinstance(last.error, StepFailed)
            assert words in last.error.message
            assert len(before) == num_before
        while replica.snapshot.metrics.get("held") != 0.0 or replica.snapshot.queued_units:
            await events_of(replica.submit(count(1)))
        assert (replica.pid, replica.num_in_flight) == (pid, 0)
        assert not {"odd", "huge"} & set(replica.snapshot.metrics)
    finally:
        await host.close(5.0)


async def test_a_model_that_does_not_tell_of_itself_fails_to_load_by_name(count_plugin: Path, tmp_path: Path) -> None:
    host = new_host(tmp_path)
    try:
        with pytest.raises(
            UsageError, match=r"CountModel\.info returned None, not a ModelInfo: is a `return` missing\?"
        ):
            await host.start({"counter": entry(count_plugin, options={"silent": True})})
    finally:
        await host.close(5.0)


async def test_leaving_a_stream_frees_what_the_request_held(count_plugin: Path, tmp_path: Path) -> None:
    host = new_host(tmp_path)
    await host.start({"counter": entry(count_plugin)})
    try:
        replica = only_replica(host)
        async with replica.submit(count(1, trick="forever")) as stream:
            assert await stream.next_events()
        while replica.snapshot.metrics.get("held") != 0.0 or replica.snapshot.queued_units:
            await events_of(replica.submit(count(1)))  # its events come with fresh figures
        assert replica.num_in_flight == 0
    finally:
        await host.close(5.0)


async def test_a_killed_worker_fails_its_requests_at_once_and_is_replaced(count_plugin: Path, tmp_path: Path) -> None:
    host = new_host(tmp_path)
    await host.start({"counter": entry(count_plugin)})
    try:
        replica = only_replica(host)
        stream = replica.submit(count(1, trick="forever"))
        await stream.next_events()
        os.kill(replica.pid, signal.SIGKILL)
        events = await events_of(stream)
        assert isinstance(events[-1], Failed)
        assert isinstance(events[-1].error, WorkerDied)
        slot = host.find("counter")
        assert slot is not None
        while slot.replicas:
            await asyncio.sleep(0)
        assert not host.ready
        async with asyncio.timeout(60.0):
            while not (slot.replicas and slot.replicas[0] is not replica):
                await slot.replaced.wait()
        assert slot.state is ModelState.READY and host.ready
        events = await events_of(slot.replicas[0].submit(count(2)))
        assert events[-1].result.total == 2
    finally:
        await host.close(5.0)


async def test_a_worker_fails_its_requests_when_its_end_begins_however_long_that_takes(
    count_plugin: Path, tmp_path: Path
) -> None:
    host = new_host(tmp_path)
    await host.start({"counter": entry(count_plugin)})
    try:
        replica = only_replica(host)
        stream = replica.submit(count(1, trick="forever"))
        await stream.next_events()
        os.kill(replica.pid, signal.SIGUSR2)
        async with asyncio.timeout(10.0):
            events = await events_of(stream)
        assert isinstance(events[-1].error, WorkerDied)
        with pytest.raises(WorkerDied):
            replica.submit(count(1))
        async with asyncio.timeout(60.0):
            await replica.ended.wait()
    finally:
        await host.close(5.0)


@pytest.mark.parametrize(
    ("trick", "reason", "where"),
    [
        ("hang", "a step has not ended for 1 s", "in step"),
        ("hang with the GIL", "nothing was heard of it for 2 s", "in step"),
        ("hang at the end", "making a result has not ended for 1 s", "in finish"),
        ("hang before", "preparing a request has not ended for 1 s", "in prepare"),
    ],
)
async def test_a_worker_that_hangs_says_where_fails_its_requests_and_is_replaced(
    count_plugin: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    trick: str,
    reason: str,
    where: str,
) -> None:
    host = new_host(tmp_path)
    await host.start({"counter": entry(count_plugin, limits={"watchdog_timeout_s": 1.0})})
    try:
        first = only_replica(host)
        events = await events_of(first.submit(count(1, trick=trick)))
        assert isinstance(events[-1].error, WorkerDied)
        assert f"the worker of counter hangs, {reason}" in caplog.text
        assert where in capfd.readouterr().err
        slot = host.find("counter")
        assert slot is not None
        async with asyncio.timeout(60.0):
            while not slot.replicas or slot.replicas[0] is first:
                await asyncio.sleep(0)
        assert (await events_of(only_replica(host).submit(count(2))))[-1].result.total == 2
    finally:
        await host.close(5.0)


async def test_who_loses_the_only_worker_is_told_how_long_the_last_one_took_to_load(
    count_plugin: Path, tmp_path: Path
) -> None:
    host = new_host(tmp_path)
    await host.start({"counter": entry(count_plugin)})
    try:
        slot = host.find("counter")
        assert slot is not None and slot.residence.load_s is not None
        events = await events_of(only_replica(host).submit(count(1, trick="die")))
        assert events[-1].error.retry_after_s == pytest.approx(max(1.0, slot.residence.load_s + 0.2), abs=2.0)
        while slot.replicas:
            await asyncio.sleep(0)
        assert slot.back_in_s <= events[-1].error.retry_after_s
    finally:
        await host.close(5.0)


async def test_who_loses_one_of_two_workers_may_try_the_other(count_plugin: Path, tmp_path: Path) -> None:
    host = new_host(tmp_path)
    await host.start({"counter": entry(count_plugin, replicas=2)})
    try:
        slot = host.find("counter")
        assert slot is not None
        events = await events_of(slot.replicas[0].submit(count(1, trick="die")))
        assert events[-1].error.retry_after_s == 1.0
    finally:
        await host.close(5.0)


async def test_a_request_that_kills_the_process_costs_only_its_own_replica(count_plugin: Path, tmp_path: Path) -> None:
    host = new_host(tmp_path)
    await host.start({"counter": entry(count_plugin), "second": entry(count_plugin, "second")})
    try:
        healthy = only_replica(host, "second").submit(count(1, trick="forever"))
        await healthy.next_events()
        events = await events_of(only_replica(host).submit(count(1, trick="die")))
        assert isinstance(events[-1].error, WorkerDied)
        assert isinstance((await healthy.next_events())[0], Increment)
        healthy.cancel()
    finally:
        await host.close(5.0)


async def test_draining_finishes_what_runs_and_refuses_the_rest(count_plugin: Path, tmp_path: Path) -> None:
    host = new_host(tmp_path)
    await host.start({"counter": entry(count_plugin)})
    replica = only_replica(host)
    stream = replica.submit(count(500))
    first = await stream.next_events()
    closing = asyncio.create_task(host.close(20.0))
    events = [*first, *await events_of(stream)]
    assert events[-1].result.total == 500
    await closing
    with pytest.raises(NotReady):
        replica.submit(count(1))


async def test_a_signal_to_the_whole_group_leaves_the_end_to_the_serving_process(
    count_plugin: Path, tmp_path: Path
) -> None:
    host = new_host(tmp_path)
    await host.start({"counter": entry(count_plugin)})
    try:
        replica = only_replica(host)
        stream = replica.submit(count(50))
        first = await stream.next_events()
        os.kill(replica.pid, signal.SIGTERM)
        os.kill(replica.pid, signal.SIGINT)
        assert [*first, *await events_of(stream)][-1].result.total == 50
    finally:
        await host.close(5.0)


async def test_what_outlives_the_drain_is_answered(count_plugin: Path, tmp_path: Path) -> None:
    host = new_host(tmp_path)
    await host.start({"counter": entry(count_plugin)})
    stream = only_replica(host).submit(count(1, trick="forever"))
    await stream.next_events()
    closing = asyncio.create_task(host.close(0.1))
    events = await events_of(stream)
    assert isinstance(events[-1].error, NotReady)
    await closing


@pytest.mark.parametrize("is_seen_to_end", [False, True])
async def test_a_model_that_cannot_load_says_why(
    count_plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_seen_to_end: bool
) -> None:
    if is_seen_to_end:  # its process ends as soon as it has said so
        monkeypatch.setattr(worker_replica, "is_ending", _seen_to_end)
    host = new_host(tmp_path)
    with pytest.raises(UsageError, match="no such luck"):
        await host.start({"counter": entry(count_plugin, options={"fail_to_load": True})})
    assert not host.ready
    await host.close(1.0)


async def test_a_reload_adds_drains_and_swaps_models(count_plugin: Path, tmp_path: Path) -> None:
    host = new_host(tmp_path)
    old = {"counter": entry(count_plugin), "gone": entry(count_plugin, "gone")}
    await host.start(old)
    try:
        before = only_replica(host)
        new = {"counter": entry(count_plugin, limits={"max_queue_units": 9}), "fresh": entry(count_plugin, "fresh")}
        host.apply(diff(old, new), new)
        assert host.find("gone") is None
        fresh = host.find("fresh")
        assert fresh is not None
        await host.settle()
        assert fresh.state is ModelState.READY
        after = only_replica(host)
        assert after is not before
        assert (await events_of(after.submit(count(2))))[-1].result.total == 2
    finally:
        await host.close(5.0)


async def test_a_changed_entry_that_fails_keeps_the_old_version(count_plugin: Path, tmp_path: Path) -> None:
    host = new_host(tmp_path)
    old = {"counter": entry(count_plugin)}
    await host.start(old)
    try:
        before = only_replica(host)
        new = {"counter": entry(count_plugin, options={"fail_to_load": True})}
        host.apply(diff(old, new), new)
        await host.settle()
        assert only_replica(host) is before
        assert (await events_of(before.submit(count(2))))[-1].result.total == 2
    finally:
        await host.close(5.0)


async def test_changed_aliases_need_no_reload(count_plugin: Path, tmp_path: Path) -> None:
    host = new_host(tmp_path)
    old = {"counter": entry(count_plugin, aliases=("a",))}
    await host.start(old)
    try:
        before = only_replica(host)
        new = {"counter": entry(count_plugin, aliases=("b",))}
        host.apply(diff(old, new), new)
        assert host.find("a") is None
        assert only_replica(host, "b") is before
    finally:
        await host.close(5.0)


def _seen_to_end(_pid: int) -> bool:
    return True
