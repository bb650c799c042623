"""What ``parallel`` of an entry becomes before anything loads: checks, devices, memory, a plan for people."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import ValidationError

from sixfold.core.cli.plan import plan_lines
from sixfold.core.config import ModelEntry
from sixfold.core.errors import ConfigError
from sixfold.core.family import Family, NoOptions
from sixfold.core.memory.forecast import Forecast, forecast
from sixfold.core.memory.machine import Device, Machine, with_devices
from sixfold.core.memory.need import MemoryKind, MemoryNeed
from sixfold.core.memory.plan import plan_models
from sixfold.core.parallel.degrees import Degrees
from sixfold.core.parallel.planner import ParallelShape
from sixfold.core.registry import ResolvedModel, check_parallel
from sixfold.core.runtime.replica_set import load_message

GIB = 1 << 30
SHAPE = ParallelShape(
    num_heads=12, num_kv_heads=12, head_dim=128, num_layers=30, num_tokens=32_760, num_rows=2, parameters=1_420_000_000
)
FAMILY = Family(
    name="none/fake",
    summary="",
    operations=frozenset(),
    loader="none:none",
    input_type=msgspec.Struct,
    output_type=msgspec.Struct,
    extra="none",
    memory=lambda _question: MemoryNeed(weights_bytes=3 * GIB, cache_bytes=GIB, process_bytes=0),
    parallel=lambda _question: SHAPE,
)


def machine(num_gpus: int) -> Machine:
    host = Machine(devices=(Device(name="cpu", total_bytes=64 * GIB, has_bfloat16=True),))
    return with_devices(host, {f"cuda:{index}": 80 * GIB for index in range(num_gpus)})


def model(parallel: Any, **fields: Any) -> ResolvedModel:
    entry = ModelEntry.model_validate({"name": "a", "source": "file:x", "parallel": parallel, **fields})
    return ResolvedModel(entry=entry, family=FAMILY, path=Path("/nowhere"), options=NoOptions())


def expected(parallel: Any, num_gpus: int, **fields: Any) -> Forecast:
    return forecast(model(parallel, **fields), machine(num_gpus))


def test_ranks_take_the_device_and_those_after_it() -> None:
    found = expected({"context": 2}, 4, device="cuda:1")
    assert found.rank_devices == ("cuda:1", "cuda:2")
    claims = found.claims({f"cuda:{index}": 80 * GIB for index in range(4)})
    assert sorted((c.device, c.kind, c.num_bytes // GIB) for c in claims) == [
        ("cuda:1", MemoryKind.CACHE, 1),
        ("cuda:1", MemoryKind.WEIGHTS, 3),
        ("cuda:2", MemoryKind.WEIGHTS, 3),
    ]


def test_auto_takes_all_devices_that_pay_and_one_process_on_a_host() -> None:
    found = expected("auto", 4).parallel
    assert found is not None and found.degrees == Degrees(cfg=2, context=2, ulysses=2)
    alone = expected("auto", 0).parallel
    assert alone is not None and alone.degrees == Degrees()


def test_more_ranks_than_devices_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"models.a.parallel: 4 ranks need as many devices, and there are 2 from cuda:0"
    ):
        expected({"context": 2, "cfg": 2}, 2)


def test_replicas_on_the_ranks_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match="Set replicas to 1, and 'data'"):
        expected({"context": 2}, 2, replicas=2)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"tensor": 2}, "no family of this version splits weights"),
        ({"context": 4, "ulysses": 3}, r"ulysses \(3\) must divide context \(4\)"),
        ("all", "must be 'auto' or a mapping"),
        ({"contxt": 2}, "contxt"),
    ],
)
def test_what_can_not_be_is_refused(written: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        model(written)


def test_a_worker_is_told_its_ranks_and_nothing_of_them_where_there_is_one() -> None:
    resolved = model({"context": 2, "step_timeout_s": 7})
    choice = forecast(resolved, machine(2)).parallel
    message = load_message(resolved, num_cpus=1, parallel=choice)
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))
    assert sent.ranks is not None
    assert (sent.ranks.degrees, sent.ranks.step_timeout_s) == (Degrees(context=2, ulysses=2), 7.0)
    alone = model("auto")
    assert load_message(alone, num_cpus=1, parallel=forecast(alone, machine(0)).parallel).ranks is None


def test_the_plan_says_how_ranks_divide_a_step_and_why() -> None:
    text = "\n".join(plan_lines(plan_models([model("auto")], machine(2))))
    assert "a runs as cfg 2: all 2 devices; cfg 2 first: the 2 rows of guidance need no exchange within a step." in text


def test_a_family_of_one_process_refuses_ranks() -> None:
    with pytest.raises(ConfigError, match=r"none/fake computes its steps in one process. Remove 'parallel'"):
        check_parallel(model({"context": 2}).entry, dataclasses.replace(FAMILY, parallel=None))
