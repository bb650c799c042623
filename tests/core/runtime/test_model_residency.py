"""Models that come and go with the memory, with real worker processes and a clock that a test moves."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sixfold.core.errors import NotReady, UsageError
from sixfold.core.memory.machine import Device, Machine
from sixfold.core.memory.occupancy import wait_for_place
from sixfold.core.plugins import load_plugins
from sixfold.core.registry import diff
from sixfold.core.runtime.host import ModelHost
from sixfold.core.runtime.model_slot import ModelSlot
from sixfold.core.serving.directory import ModelState
from sixfold.core.serving.memory_metrics import MemoryCollector
from tests.core.runtime.test_model_host import count, entry, events_of
from tests.fakes import FakeClock

# Each test starts processes; what differs between loops is tested with the host itself.
pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

_GIB = 1 << 30
_MACHINE = Machine(devices=(Device(name="cpu", total_bytes=4 * _GIB, has_bfloat16=False),))


@pytest.fixture(autouse=True)
def _small_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests before these have left in this process would take the models' place."""

    def small(_pid: int) -> int:
        return 256 << 20

    monkeypatch.setattr("sixfold.core.runtime.host.process_bytes", small)


class Hosted:
    """A host of models of three GiB each on a machine of four, without a server around it."""

    def __init__(self, files: Path, tmp_path: Path) -> None:
        self.files = files
        self.clock = FakeClock()
        self.host = ModelHost(
            load_plugins(), cache_dir=tmp_path / "cache", drain_timeout_s=5.0, machine=_MACHINE, clock=self.clock
        )

    def entry(self, name: str, *, options: dict[str, Any] | None = None, **fields: Any) -> Any:
        return entry(self.files, name, options={"weights_bytes": 3 * _GIB, **(options or {})}, **fields)

    def slot(self, name: str) -> ModelSlot:
        found = self.host.find(name)
        assert found is not None
        return found

    async def enter(self, name: str) -> ModelSlot:
        """As a request does."""
        slot = self.slot(name)
        place = slot.enter()
        if place is not None:
            await wait_for_place(place, None, slot.leave)
        return slot

    def metric(self, name: str, **labels: str) -> float | None:
        """One sample of what Prometheus reads."""
        samples = (sample for metric in MemoryCollector(self.host).collect() for sample in metric.samples)
        return next((s.value for s in samples if s.name == name and labels.items() <= s.labels.items()), None)

    async def total(self, name: str, up_to: int) -> int:
        """Serves one request from its arrival to its end."""
        slot = await self.enter(name)
        try:
            (replica,) = slot.replicas
            total: int = (await events_of(replica.submit(count(up_to))))[-1].result.total
            return total
        finally:
            slot.leave()


async def test_a_model_on_demand_is_loaded_by_its_first_request(count_plugin: Path, tmp_path: Path) -> None:
    hosted = Hosted(count_plugin, tmp_path)
    await hosted.host.start({"a": hosted.entry("a", load="on_demand")})
    try:
        assert hosted.host.ready
        assert (hosted.slot("a").state, hosted.slot("a").replicas) == (ModelState.UNLOADED, ())
        assert await asyncio.gather(*(hosted.total("a", n) for n in (1, 2, 3))) == [1, 2, 3]
        assert hosted.slot("a").state is ModelState.READY
    finally:
        await hosted.host.close(5.0)


async def test_an_idle_model_is_unloaded_and_comes_back_for_a_request_in_mid_unload(
    count_plugin: Path, tmp_path: Path
) -> None:
    hosted = Hosted(count_plugin, tmp_path)
    await hosted.host.start({"a": hosted.entry("a", idle_unload_s=60.0)})
    try:
        slot = hosted.slot("a")
        (first,) = slot.replicas
        hosted.clock.advance(59.0)
        assert await hosted.total("a", 1) == 1  # it begins to be idle anew
        hosted.clock.advance(59.0)
        slot.change(slot.entry)  # anything that makes the host look
        assert not slot.residence.num_unloads["idle"]
        hosted.clock.advance(1.0)
        slot.change(slot.entry)
        assert slot.state is ModelState.UNLOADED
        assert first.pid is not None  # it is ending
        assert await hosted.total("a", 2) == 2
        (second,) = slot.replicas
        assert second is not first and first.pid is None
    finally:
        await hosted.host.close(5.0)


async def test_a_model_in_use_is_waited_for_and_the_others_request_is_served_after_it(
    count_plugin: Path, tmp_path: Path
) -> None:
    hosted = Hosted(count_plugin, tmp_path)
    await hosted.host.start({"a": hosted.entry("a"), "b": hosted.entry("b")})
    try:
        # There is no room for both: the second waits until it is asked for.
        assert (hosted.slot("a").state, hosted.slot("b").state) == (ModelState.READY, ModelState.UNLOADED)
        hosted.clock.advance(1000.0)
        slot = await hosted.enter("a")
        (replica,) = slot.replicas
        stream = replica.submit(count(1, trick="forever"))
        await stream.next_events()
        waiting = asyncio.create_task(hosted.total("b", 3))
        for _ in range(3):
            await asyncio.sleep(0)
        assert slot.residence.is_leaving and not waiting.done()
        stream.cancel()
        slot.leave()
        assert await waiting == 3
        assert (hosted.slot("a").state, hosted.slot("b").state) == (ModelState.UNLOADED, ModelState.READY)
        assert hosted.host.ready
        assert hosted.metric("sixfold:memory_bytes", model_name="a") is None
        assert hosted.metric("sixfold:memory_bytes", model_name="b", device="cpu", kind="weights") == 3 * _GIB
        assert hosted.metric("sixfold:memory_capacity_bytes", device="cpu") == 4 * _GIB
        free = hosted.metric("sixfold:memory_free_bytes", device="cpu")
        assert free is not None and 0 < free < _GIB
        measured = hosted.metric("sixfold:memory_measured_bytes", model_name="b", device="cpu")
        assert measured is not None and measured > 1 << 20
        assert hosted.metric("sixfold:model_unloads_total", model_name="a", reason="room") == 1
        assert hosted.metric("sixfold:model_loads_total", model_name="b") == 1
    finally:
        await hosted.host.close(5.0)


async def test_a_client_that_leaves_while_its_model_loads_leaves_nothing_behind(
    count_plugin: Path, tmp_path: Path
) -> None:
    hosted = Hosted(count_plugin, tmp_path)
    await hosted.host.start({"a": hosted.entry("a", load="on_demand")})
    try:
        waiting = asyncio.create_task(hosted.total("a", 1))
        for _ in range(3):
            await asyncio.sleep(0)
        assert hosted.slot("a").state is ModelState.LOADING
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert await hosted.total("a", 2) == 2  # waits for the same load
        assert hosted.slot("a").residence.num_users == 0
    finally:
        await hosted.host.close(5.0)


async def test_a_load_that_dies_of_memory_is_answered_and_tried_again_after_a_while(
    count_plugin: Path, tmp_path: Path
) -> None:
    hosted = Hosted(count_plugin, tmp_path)
    flag = tmp_path / "flag"
    flag.touch()
    await hosted.host.start({"a": hosted.entry("a", load="on_demand", options={"flag": str(flag)})})
    try:
        with pytest.raises(NotReady) as caught:
            await hosted.total("a", 1)
        assert (caught.value.code, caught.value.retry_after_s) == ("load_failed", 1.0)
        before = hosted.host.ledger.free()["cpu"]
        with pytest.raises(NotReady) as caught:  # at once, without another try
            await hosted.total("a", 1)
        assert caught.value.code == "load_failed"
        assert before == hosted.host.ledger.free()["cpu"] > 3 * _GIB
        flag.unlink()
        hosted.clock.advance(1.0)
        assert await hosted.total("a", 2) == 2
    finally:
        await hosted.host.close(5.0)


async def test_a_model_larger_than_the_machine_fails_and_says_what_there_is(count_plugin: Path, tmp_path: Path) -> None:
    hosted = Hosted(count_plugin, tmp_path)
    with pytest.raises(UsageError, match=r"models\.a does not fit: it needs 5\.0 GiB of cpu.*the server itself"):
        await hosted.host.start({"a": hosted.entry("a", options={"weights_bytes": 5 * _GIB})})
    assert hosted.slot("a").state is ModelState.FAILED
    await hosted.host.close(1.0)


async def test_the_more_important_model_loads_first_and_takes_the_place_of_the_less_important(
    count_plugin: Path, tmp_path: Path
) -> None:
    hosted = Hosted(count_plugin, tmp_path)
    await hosted.host.start({"low": hosted.entry("low"), "high": hosted.entry("high", priority=1)})
    try:
        assert (hosted.slot("low").state, hosted.slot("high").state) == (ModelState.UNLOADED, ModelState.READY)
        with pytest.raises(NotReady) as caught:
            await hosted.total("low", 1)
        assert (caught.value.code, caught.value.retry_after_s) == ("no_memory", 10.0)
    finally:
        await hosted.host.close(5.0)


async def test_a_changed_model_that_does_not_fit_beside_its_old_version_takes_its_place(
    count_plugin: Path, tmp_path: Path
) -> None:
    hosted = Hosted(count_plugin, tmp_path)
    old = {"a": hosted.entry("a")}
    await hosted.host.start(old)
    try:
        (before,) = hosted.slot("a").replicas
        new = {"a": hosted.entry("a", limits={"max_queue_units": 9})}
        hosted.host.apply(diff(old, new), new)
        await hosted.host.settle()
        assert await hosted.total("a", 2) == 2
        assert before.pid is None
    finally:
        await hosted.host.close(5.0)


async def test_priorities_and_idle_times_change_without_a_reload(count_plugin: Path, tmp_path: Path) -> None:
    hosted = Hosted(count_plugin, tmp_path)
    old = {"a": hosted.entry("a")}
    await hosted.host.start(old)
    try:
        (before,) = hosted.slot("a").replicas
        new = {"a": hosted.entry("a", priority=3, idle_unload_s=5.0)}
        hosted.host.apply(diff(old, new), new)
        assert tuple(hosted.slot("a").replicas) == (before,)
        hosted.clock.advance(5.0)
        hosted.slot("a").change(new["a"])
        assert hosted.slot("a").state is ModelState.UNLOADED
    finally:
        await hosted.host.close(5.0)
