"""Our index of caches finds what Dynamo's RadixTree finds, for the same events and prompts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from sixfold.scaling.route.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent
from sixfold.scaling.route.kv_index import KvIndex

pytestmark = pytest.mark.slow

SIZE = 4
NUM_WORKERS = 3
PYTHON = Path.home() / ".cache" / "sixfold-dynamo" / "bin" / "python"


@pytest.fixture(scope="module")
def dynamo_python() -> Path:
    """An environment with ai-dynamo-runtime (Apache-2.0, 217 MB); built once, as bench/dynosim.py describes it."""
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PYTHON.parents[1])], check=True)
        subprocess.run([str(PYTHON), "-m", "pip", "install", "-q", "ai-dynamo-runtime==1.6.1"], check=True)
    return PYTHON


class Fleet:
    """Random but possible caches: prompts that share beginnings, blocks that go from their ends."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        trunk = [self.random.randrange(1000) for _token in range(6 * SIZE)]
        self.prompts = [
            trunk[: self.random.randrange(5) * SIZE] + [self.random.randrange(1000) for _token in range(6 * SIZE)]
            for _prompt in range(6)
        ]
        self.held: list[set[tuple[int, ...]]] = [set() for _worker in range(NUM_WORKERS)]
        self.names: dict[tuple[int, ...], int] = {}

    def step(self) -> dict[str, Any]:
        worker = self.random.randrange(NUM_WORKERS)
        held = self.held[worker]
        kind = self.random.choices(("store", "remove", "clear", "find"), (6, 4, 0.3, 6))[0]
        prompt = self.random.choice(self.prompts)
        if kind == "find":
            return {"kind": kind, "tokens": prompt[: self.random.randrange(SIZE, len(prompt))]}
        if kind == "clear":
            held.clear()
            return {"kind": kind, "worker": worker}
        if kind == "store":
            chains = [tuple(prompt[: end + SIZE]) for end in range(0, self.random.randrange(SIZE, len(prompt)), SIZE)]
            new = [chain for chain in chains if chain not in held]
            if new:
                held.update(new)
                return {
                    "kind": kind, "worker": worker, "names": [self.name(chain) for chain in new],
                    "parent": self.name(new[0][:-SIZE]) if len(new[0]) > SIZE else None,
                    "tokens": list(new[-1][len(new[0]) - SIZE :]),
                }  # fmt: skip
        ends = [chain for chain in held if not any(other[:-SIZE] == chain for other in held)]
        gone = self.random.choice(sorted(ends)) if ends else None
        held.discard(gone or ())
        return {"kind": "remove", "worker": worker, "names": [] if gone is None else [self.name(gone)]}

    def name(self, chain: tuple[int, ...]) -> int:
        return self.names.setdefault(chain, 1000 + len(self.names))


def event_of(step: dict[str, Any]) -> KvEvent:
    if step["kind"] == "clear":
        return AllBlocksCleared()
    if step["kind"] == "remove":
        return BlockRemoved(block_hashes=tuple(step["names"]))
    return BlockStored(
        block_hashes=tuple(step["names"]),
        parent_block_hash=step["parent"],
        token_ids=tuple(step["tokens"]),
        block_size=SIZE,
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_same_events_give_the_same_matches(seed: int, dynamo_python: Path) -> None:
    fleet = Fleet(seed)
    steps = [fleet.step() for _step in range(600)]
    lines = "\n".join(json.dumps(step) for step in steps)
    oracle = Path(__file__).with_name("dynamo_oracle.py")
    output = subprocess.run(
        [str(dynamo_python), str(oracle), str(SIZE)],
        input=lines,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout.splitlines()
    theirs = [{worker: blocks * SIZE for worker, blocks in json.loads(line).items()} for line in output]
    index = KvIndex()
    workers = [str(worker) for worker in range(NUM_WORKERS)]
    ours: list[dict[str, float]] = []
    for step in steps:
        if step["kind"] == "find":
            found = index.cached_tokens(step["tokens"], workers)
            ours.append({worker: tokens for worker, tokens in found.items() if tokens})
        else:
            index.apply(str(step["worker"]), [event_of(step)])
    assert ours == theirs
    assert sum(map(len, ours)) > 100
    assert index.num_orphans == 0
