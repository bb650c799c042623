"""Embeddings: what tokenizing and laying out beside the steps gives the traffic, in turns; see `alone.py`."""

from __future__ import annotations

import asyncio
import copy
import json
import random
import statistics
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alone_timing import Notes
from embedding import encode_ours, text


def measure_traffic(notes: Notes, name: str, folder: Path, *, tiny: bool, lengths: Sequence[int]) -> None:
    """Tokens a second in requests of 64, with tokenization and laying out beside the steps and not."""
    from sixfold.core.batching.manager import Limits
    from sixfold.core.family import LoadContext
    from sixfold.core.runtime.local_replica import LocalReplica
    from sixfold.plugins.embedding.loader import load
    from sixfold.plugins.embedding.options import EmbeddingOptions

    device = "cpu" if tiny else "cuda:0"
    options = EmbeddingOptions(dtype="bfloat16")
    loaded = load(LoadContext(model_name=name, path=folder, device=device, num_threads=2, options=options))
    loaded.warm_up()
    source = random.Random(1)
    texts = [text(length, source) for length in (lengths[:64] if tiny else lengths)]
    tokens = sum(lengths[: len(texts)])

    async def measure() -> dict[str, list[float]]:
        limits = Limits(max_queue_units=1 << 30, max_running_sequences=4096)
        models = {"in turn": one_at_a_time(loaded), "tokenized beside": copy.copy(loaded), "all": copy.copy(loaded)}
        for kind, model in models.items():
            model.flies = kind == "all" and device != "cpu"
        replicas = {kind: LocalReplica(model, limits=limits, num_pool_threads=2) for kind, model in models.items()}
        found: dict[str, list[float]] = {kind: [] for kind in models}
        for number in range(2 if tiny else 10):
            for kind, replica in replicas.items():
                seconds = await encode_ours(replica, texts)
                if number:  # the step budget finds its place in the first
                    found[kind].append(seconds)
        for replica in replicas.values():
            await replica.close()
        return found

    found = {kind: tokens / statistics.median(each) for kind, each in asyncio.run(measure()).items()}
    print(name, json.dumps(found), flush=True)
    place = f"{name}, {len(texts)} texts in requests of 64"
    beside, every = found["tokenized beside"], found["all"]
    notes.add(
        "embedding.tokenization", place, off=found["in turn"], on=beside, unit="tokens/s", base="graphs, own kernels"
    )
    notes.add("embedding.flights", place, off=beside, on=every, unit="tokens/s", base="tokenized beside")


def one_at_a_time(model: Any) -> Any:
    """A model that tokenizes and computes in turn, as a server does that has one thread for both."""
    turned, lock = copy.copy(model), threading.Lock()

    def turn(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with lock:
                return call(*args)

        return run

    turned.prepare, turned.step = turn(turned.prepare), turn(turned.step)
    return turned
