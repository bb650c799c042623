"""A third-party plugin as a stranger would install it: a module and a dist-info folder on the import path."""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop

_MODULE = '''
"""A model that counts aloud, one number a step; some inputs misbehave."""
import ctypes
import os
import signal
import sys
import threading
import msgspec
from pathlib import Path
from pydantic import BaseModel, ConfigDict
from sixfold.core.batching.model import Finish, ModelInfo, Outcome, StepModel
from sixfold.core.errors import ConfigError, InvalidRequest
from sixfold.core.family import Family, MetricKind, MetricSpec
from sixfold.core.hookspecs import hookimpl
from sixfold.core.memory.need import MemoryNeed
from sixfold.core.messages import Cost, Usage

class CountInput(msgspec.Struct, frozen=True, tag="in"):
    up_to: int
    trick: str = ""

class Number(msgspec.Struct, frozen=True, tag="n"):
    value: int

class Total(msgspec.Struct, frozen=True, tag="t"):
    total: int
    pid: int
    switch_interval_s: float

class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    fail_to_load: bool = False
    weights_bytes: int = 0
    flag: str = ""  # a file: while it is there, loading dies as for want of memory
    voices: tuple[str, ...] = ()
    silent: bool = False

class Secret(msgspec.Struct, frozen=True, tag="s"):
    """No output that the family declares."""

class Count:
    def __init__(self, input):
        self.input, self.done = input, 0

class Odd(float):
    """As numpy's: a number that msgspec does not encode."""

MADE = {"secret": lambda done: Secret(), "unsendable": lambda done: Number(object())}

class CountModel(StepModel):
    def __init__(self, options):
        self.held = 0
        self.voices = options.voices
        self.silent = options.silent
    def adjust(self, options):
        if "hoarse" in options.voices:
            raise ConfigError("the voice 'hoarse' can't be had")
        if "mad" in options.voices:
            raise RuntimeError("no such luck")
        if "deadly" in options.voices:
            os._exit(9)
        self.voices = options.voices
    @property
    def info(self):
        if self.silent:
            return None
        return ModelInfo(max_model_len=1000, parameters=7, memory_bytes=8, details={"kind": "count"})
    def estimate_units(self, request):
        return request.input.up_to
    def prepare(self, request, piece):
        if request.input.trick == "hang before":
            threading.Event().wait()
        if request.input.trick == "bad":
            raise InvalidRequest("no such number", param="up_to")
        if request.input.trick.startswith("say ") and request.input.trick[4:] not in self.voices:
            raise InvalidRequest("no such voice", param="voice")
        self.held += 1
        return (Count(request.input),)
    def cost(self, sequence):
        return Cost(units=1, min_units=1)
    def step(self, batch):
        if any(g.sequence.input.trick == "die" for g in batch):
            os._exit(9)
        if any(g.sequence.input.trick == "hang" for g in batch):
            threading.Event().wait()
        if any(g.sequence.input.trick == "hang with the GIL" for g in batch):
            ctypes.PyDLL(None).pause()
        outcomes = []
        for granted in batch:
            if granted.sequence.input.trick != "forever":
                granted.sequence.done += 1
            outcomes.append(Outcome(output=MADE.get(granted.sequence.input.trick, Number)(granted.sequence.done),
                                    done=granted.sequence.done >= granted.sequence.input.up_to))
        return outcomes
    def release(self, sequence):
        self.held -= 1
    def stats(self):
        return {"held": Odd(self.held), "voices": len(self.voices), "odd": "no number", "huge": 10**400}
    def finish(self, request, sequences):
        if request.input.trick == "hang at the end":
            threading.Event().wait()
        if (made := MADE.get(request.input.trick.removeprefix("end "))) is not None:
            return Finish(result=made(0), usage=Usage())
        total = Total(sequences[0].done, os.getpid(), sys.getswitchinterval())
        return Finish(result=total, usage=Usage(counts={"numbers": sequences[0].done}))

def load(context):
    if context.options.fail_to_load:
        raise RuntimeError("no such luck")
    if context.options.flag and os.path.exists(context.options.flag):
        os.kill(os.getpid(), 9)
    libc = ctypes.CDLL(None)
    libc.signal(signal.SIGUSR2, libc.pthread_exit)  # ends the first thread alone: the process lingers as one that dies slowly
    context.report(0.5, "counting")
    return CountModel(context.options)

class HereSource:
    scheme = "here"
    def resolve(self, reference, *, cache_dir, progress):
        return Path(reference)

@hookimpl
def register_families(register):
    register(Family(name="count/aloud", summary="counts", operations=frozenset({"count"}), extra="count",
                    loader="sixfold_count:load", input_type=CountInput, output_type=Number | Total, options=Options,
                    detect=lambda files: 100 if files.has("count.json") else 0,
                    memory=lambda q: MemoryNeed(weights_bytes=q.options.weights_bytes, process_bytes=0),
                    variants=lambda options: options.voices,
                    adjusts=lambda old, new: old.fail_to_load == new.fail_to_load,
                    metrics=(MetricSpec(name="held", kind=MetricKind.GAUGE, help="Held sequences."),
                             MetricSpec(name="voices", kind=MetricKind.GAUGE, help="Voices."))))

@hookimpl
def register_sources(register):
    register(HereSource())
'''


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Both loops: the server runs on uvloop, whose transports and processes differ in details."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs processes is tested on the server's own loop each time, and on the other one in the slow tests."""
    for item in items:
        if item.path.name == "test_model_host.py" and re.search(r"\[asyncio\b", item.name):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def count_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Installs the plugin for this process and for workers; returns the folder of its model's files."""
    site = tmp_path / "site"
    (site / "sixfold_count-1.0.dist-info").mkdir(parents=True)
    (site / "sixfold_count.py").write_text(_MODULE)
    (site / "sixfold_count-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: sixfold-count\nVersion: 1.0\n"
    )
    (site / "sixfold_count-1.0.dist-info" / "entry_points.txt").write_text("[sixfold]\ncount = sixfold_count\n")
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(site))
    importlib.invalidate_caches()
    files = tmp_path / "files"
    files.mkdir()
    (files / "count.json").write_text("{}")
    yield files
    sys.modules.pop("sixfold_count", None)
