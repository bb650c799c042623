"""Options that a running model takes over: names that a family offers come and go without a new process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sixfold.core.errors import InvalidRequest, NotReady
from sixfold.core.registry import diff
from sixfold.core.runtime.host import ModelHost
from sixfold.core.serving.directory import ModelState, OptionsChange
from tests.core.runtime.test_model_host import count, entry, events_of, new_host

# The server's own loop: what the loops differ in, the transport, has its tests beside.
pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])


def saying(*voices: str) -> OptionsChange:
    return lambda options: options.model_copy(update={"voices": voices})


async def can_say(host: ModelHost, voice: str) -> list[bool]:
    """Of each replica."""
    slot = host.find("counter")
    assert slot is not None
    ends = [(await events_of(replica.submit(count(1, trick=f"say {voice}"))))[-1] for replica in slot.replicas]
    return [type(end).__name__ == "Finished" for end in ends]


def pids(host: ModelHost) -> list[int | None]:
    slot = host.find("counter")
    assert slot is not None
    return [replica.pid for replica in slot.replicas]


async def test_names_come_and_go_in_all_replicas_while_they_serve(count_plugin: Path, tmp_path: Path) -> None:
    host = new_host(tmp_path)
    await host.start({"counter": entry(count_plugin, options={"voices": ["low"]}, replicas=2)})
    try:
        slot = host.find("low")
        assert slot is not None and slot is host.find("counter") and slot.variants == ("low",)
        before = pids(host)
        await slot.adjust(saying("low", "high"))
        assert host.find("high") is slot
        assert await can_say(host, "high") == [True, True]
        await slot.adjust(saying("high"))
        assert host.find("low") is None
        assert await can_say(host, "low") == [False, False]
        assert pids(host) == before
    finally:
        await host.close(5.0)


@pytest.mark.parametrize(("voice", "message"), [("hoarse", "can't be had"), ("mad", "RuntimeError: no such luck")])
async def test_options_that_the_model_refuses_change_nothing(
    voice: str, message: str, count_plugin: Path, tmp_path: Path
) -> None:
    host = new_host(tmp_path)
    await host.start({"counter": entry(count_plugin, options={"voices": ["low"]})})
    try:
        slot = host.find("counter")
        assert slot is not None
        with pytest.raises(InvalidRequest, match=message):
            await slot.adjust(saying("low", voice))
        with pytest.raises(InvalidRequest, match="can't change these options"):
            await slot.adjust(lambda options: options.model_copy(update={"fail_to_load": True}))
        assert slot.variants == ("low",)
        assert host.find(voice) is None
        assert await can_say(host, "low") == [True]
    finally:
        await host.close(5.0)


async def test_a_worker_that_dies_of_new_options_is_replaced_by_one_that_has_them(
    count_plugin: Path, tmp_path: Path
) -> None:
    host = new_host(tmp_path)
    await host.start({"counter": entry(count_plugin)})
    try:
        slot = host.find("counter")
        assert slot is not None
        replaced = slot.replaced
        await slot.adjust(saying("deadly"))
        await replaced.wait()
        assert slot.variants == ("deadly",)
        assert await can_say(host, "deadly") == [True]
    finally:
        await host.close(5.0)


async def test_a_name_belongs_to_one_model(count_plugin: Path, tmp_path: Path) -> None:
    host = new_host(tmp_path)
    others: dict[str, Any] = {"options": {"voices": ["low"]}}
    await host.start(
        {
            "counter": entry(count_plugin, aliases=("c",)),
            "first": entry(count_plugin, "first", **others),
            "second": entry(count_plugin, "second", **others),
        }
    )
    try:
        second = host.find("second")
        assert second is not None and second.state is ModelState.FAILED
        assert second.error is not None and "the name 'low' is that of the model 'first' already" in second.error
        slot = host.find("counter")
        assert slot is not None
        for taken in ("low", "first", "counter", "c"):
            with pytest.raises(InvalidRequest, match="already"):
                await slot.adjust(saying(taken))
        with pytest.raises(NotReady):
            await second.adjust(saying("free"))
    finally:
        await host.close(5.0)


async def test_a_changed_file_is_taken_over_without_a_new_process_where_the_family_can(
    count_plugin: Path, tmp_path: Path
) -> None:
    host = new_host(tmp_path)
    first = {"counter": entry(count_plugin, options={"voices": ["low"]})}
    await host.start(first)
    try:
        before = pids(host)
        second = {"counter": entry(count_plugin, options={"voices": ["high"]}, aliases=("c",))}
        host.apply(diff(first, second), second)
        await host.settle()
        assert pids(host) == before
        assert host.find("low") is None
        assert host.find("high") is host.find("c") is not None
        third = {"counter": entry(count_plugin, options={"voices": ["hoarse"]}, aliases=("c",))}
        host.apply(diff(second, third), third)
        await host.settle()
        assert (host.find("high"), host.find("hoarse")) == (host.find("counter"), None)
        assert pids(host) == before
        fourth = {"counter": entry(count_plugin, options={"voices": ["high"]}, limits={"max_running_sequences": 3})}
        host.apply(diff(second, fourth), fourth)
        await host.settle()
        assert pids(host) != before
        assert await can_say(host, "high") == [True]
    finally:
        await host.close(5.0)
