"""Speech synthesis: recorded beside computed and together beside one by one, each alone, in turns; see `alone.py`."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch
from alone_timing import Notes
from tts import RATIO, ask, load_ours, save_speecht5, save_vits, sentence

PAIRS = (
    ("graphs", ("computed", "one by one"), ("replayed", "one by one")),
    ("graphs", ("computed", "together"), ("replayed", "together")),
    ("batch", ("computed", "one by one"), ("computed", "together")),
    ("batch", ("replayed", "one by one"), ("replayed", "together")),
)


@contextlib.contextmanager
def capturing(owner: Any, capture: Any) -> Generator[None]:
    """What owns the recordings replays them inside, or computes all for None."""
    kept = owner._capture
    owner._capture = capture
    try:
        yield
    finally:
        owner._capture = kept


async def _rates(
    model: Any, owner: Any, texts: Sequence[str], few: Sequence[str], rounds: int
) -> dict[tuple[str, str], list[float]]:
    """Seconds of sound a second by way and round; what is recorded is recorded before."""
    from sixfold.core.batching.manager import Limits
    from sixfold.core.runtime.local_replica import LocalReplica

    replica = LocalReplica(
        model, limits=Limits(max_queue_units=1 << 30, max_running_sequences=4096), num_pool_threads=4
    )
    number = 0

    async def together() -> float:
        nonlocal number
        number += len(texts)
        began_s = time.monotonic()
        found = await asyncio.gather(*(ask(replica, number + i, each) for i, each in enumerate(texts)))
        return sum(sound for _, _, sound in found) / (time.monotonic() - began_s)

    async def one_by_one() -> float:
        nonlocal number
        began_s, sound_s = time.monotonic(), 0.0
        for each in few:
            number += 1
            sound_s += (await ask(replica, number, each))[2]
        return sound_s / (time.monotonic() - began_s)

    found: dict[tuple[str, str], list[float]] = {}
    capture = owner._capture
    try:
        for _ in range(3):  # lengths are recorded when they come again
            await together()
        for _ in range(rounds):
            for name, kind in (("replayed", capture), ("computed", None)):
                with capturing(owner, kind):
                    found.setdefault((name, "together"), []).append(await together())
                    found.setdefault((name, "one by one"), []).append(await one_by_one())
        if capture is not None and owner._capture is None:
            print("the capture was refused: replayed is computed", flush=True)
    finally:
        await replica.close()
    return found


def measure(notes: Notes, *, tiny: bool, kinds: Sequence[str] = ("vits", "speecht5")) -> None:
    """Both architectures in float32, as they are published."""
    from sixfold.plugins.tts.speecht5_decoder import SpeechT5Decoder

    SpeechT5Decoder.MAX_RATIO = RATIO
    for kind in kinds:
        folder = Path(tempfile.mkdtemp(prefix=f"{kind}-"))
        torch.manual_seed(0)
        {"vits": save_vits, "speecht5": save_speecht5}[kind](folder, tiny)
        model = load_ours(folder, "cpu" if tiny else "cuda:0")
        model.warm_up()
        owner = model._text if kind == "vits" else model._decoder
        count, rounds = (3, 1) if tiny else (32, 5) if kind == "vits" else (32, 3)
        texts = [sentence(i, shortest=20 if tiny else 60, longest=40 if tiny else 120) for i in range(count)]
        few = texts[: 2 if tiny else 8 if kind == "vits" else 3]
        rates = asyncio.run(_rates(model, owner, texts, few, rounds))
        found = {way: statistics.median(each) for way, each in rates.items()}
        for key, off, on in PAIRS:
            sizes = {"together": f"{count} sentences at once", "one by one": "one sentence after another"}
            place = sizes[on[1]] if off[1] == on[1] else f"{count} sentences at once, not one after another"
            notes.add(
                f"tts.{kind}-{key}",
                f"{ {'vits': 'VITS (MMS)', 'speecht5': 'SpeechT5'}[kind] }, float32, {place}",
                off=found[off],
                on=found[on],
                unit="s of sound/s",
                base=" ".join(off),
            )
        del model
