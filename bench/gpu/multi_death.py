"""A rank of a served model killed in mid-step: what its client sees, and when the replica is back; part of multi.py.

    python bench/gpu/multi_death.py --ranks 2 --out FILE [--tiny]

The tiny trained models of examples/, served as users serve them: pictures whose tokens all ranks share, and such whose
guidance two ranks share, as streams; and, where PyAV is, a film as a job. A rank is killed (SIGKILL) while steps run. Each
wait has an end.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import importlib.util
import io
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from multi_results import Results
from multi_servers import Server, running, until
from vllm_overhead import ROOT, import_sixfold

_RETURN_TIMEOUT_S = 90.0
_RANK_MODULE = b"sixfold.core.runtime.rank"
_LONG_STEPS = 100
_NOTICED = ("the replica is started anew", "is ending", "ended with status")
"""Who sees it first says it: rank 0, whose step fails, or the server, whose worker ends."""


class Picture:
    """A picture as a stream of events: its client sees the replica die.

    Args:
        server: Serves it.
        name: Of the model.
    """

    tolerance = 0.0

    def __init__(self, server: Server, name: str) -> None:
        self.name = name
        self._server = server

    def make(self) -> Any:
        """Pixels of a picture."""
        import numpy as np
        from PIL import Image

        answer = self._server.ask("/v1/images/generations", self._body(20))
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))))

    def begin_long(self) -> Callable[[], str]:
        """Returns while steps run; what it returns waits for the outcome."""
        events = self._events()
        for _ in range(3):
            event = next(events)
            assert event["type"].endswith("progress"), event

        def outcome() -> str:
            last: dict[str, Any] = {}
            try:
                for event in events:
                    last = event
            except (OSError, ValueError) as error:
                return f"the stream broke off: {error}"
            return json.dumps(last.get("error") or last)[:300]

        return outcome

    def _body(self, steps: int) -> dict[str, Any]:
        body = {"model": self.name, "prompt": "a red circle", "size": "64x64", "seed": 5}
        return {**body, "num_inference_steps": steps, "guidance_scale": 5.0}

    def _events(self) -> Generator[dict[str, Any]]:
        body = {**self._body(_LONG_STEPS), "stream": True, "progress": True}
        url, headers = f"{self._server.url}/v1/images/generations", {"Content-Type": "application/json"}
        request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers)
        with urllib.request.urlopen(request, timeout=_RETURN_TIMEOUT_S) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])


class Film:
    """A clip by the jobs API: a job whose replica dies is run again, once.

    Args:
        server: Serves it.
        name: Of the model.
    """

    tolerance = 1.5  # levels of 255: a lossy encoder makes up to 1.2 of a rounding that turns one of its choices

    def __init__(self, server: Server, name: str) -> None:
        self.name = name
        self._server = server

    def make(self) -> Any:
        """Frames of a small clip."""
        import av
        import numpy as np

        job = self._finish(self._begin(8))
        if job["status"] != "completed":
            raise RuntimeError(f"the clip is {job['status']}: {job.get('error')}")
        with av.open(io.BytesIO(self._server.read(f"/v1/videos/{job['id']}/content"))) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])

    def begin_long(self) -> Callable[[], str]:
        """Returns while steps run; what it returns waits for the outcome."""
        job = self._begin(_LONG_STEPS)
        until(lambda: bool(self._look(job)["progress"]), "the first steps", 60.0, 0.01)

        def outcome() -> str:
            found = self._finish(job)
            return found["status"] + (f": {found['error']['message']}" if found.get("error") else "")

        return outcome

    def _begin(self, steps: int) -> str:
        body = {"model": self.name, "prompt": "a red circle moves right", "num_inference_steps": steps, "seed": 3}
        job: str = self._server.ask("/v1/videos", body)["id"]
        return job

    def _look(self, job: str) -> dict[str, Any]:
        return self._server.ask(f"/v1/videos/{job}")

    def _finish(self, job: str) -> dict[str, Any]:
        waiting = ("queued", "in_progress")
        until(lambda: self._look(job)["status"] not in waiting, "the clip", _RETURN_TIMEOUT_S)
        return self._look(job)


def ranks_of(server: Server) -> list[int]:
    """Process ids of the ranks of a server's workers, the oldest first: models load in the order of the configuration."""
    found: list[tuple[int, int]] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                state, parent, started = _status(entry.name)
                is_rank = _RANK_MODULE in (entry / "cmdline").read_bytes().split(b"\0")
                if is_rank and state != "Z" and _status(parent)[1] == str(server.process.pid):
                    found.append((int(started), int(entry.name)))
    return [pid for _, pid in sorted(found)]


def _status(pid: str) -> tuple[str, str, str]:
    """State, parent and start of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return fields[0], fields[1], fields[19]


def kill_one(server: Server, subject: Any, victim: int) -> dict[str, Any]:
    """What came of a request in whose steps a rank was killed, and when the same result as before came again."""
    import numpy as np

    before = subject.make()
    others = len(ranks_of(server)) - 1
    outcome = subject.begin_long()
    seen = len(server.log)
    killed_s = time.perf_counter()
    os.kill(victim, signal.SIGKILL)
    ended: dict[str, Any] = {}

    def wait() -> None:
        ended["request"] = outcome()
        ended["request_ended_after_s"] = time.perf_counter() - killed_s

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    known_s = until(lambda: any(each in server.log[seen:] for each in _NOTICED), "noticing", 60.0, 0.01)
    after = _make_again(subject, killed_s + _RETURN_TIMEOUT_S)
    back_s = time.perf_counter() - killed_s
    waiting.join(_RETURN_TIMEOUT_S)
    difference = float(np.abs(before.astype(int) - after.astype(int)).mean()) if before.shape == after.shape else 255.0
    return {
        "known_after_s": known_s,
        **(ended or {"request": "hangs"}),
        "same_result_after_s": back_s,
        "difference_levels": difference,
        "ranks_before_and_after": [others + 1, len(ranks_of(server))],
        "ok": bool(ended) and difference <= subject.tolerance,
    }


def _make_again(subject: Any, until_s: float) -> Any:
    while True:
        try:
            return subject.make()
        except (RuntimeError, OSError):  # not up yet
            if time.perf_counter() > until_s:
                raise
            time.sleep(0.1)


def serve(num_ranks: int, *, films: bool) -> Server:
    """A server of the models."""
    small = {
        "default_width": 64,
        "default_height": 64,
        "default_frames": 17,
        "default_fps": 8,
        "default_guidance_scale": 3.0,
    }
    bounds = {"step_timeout_s": 20, "load_timeout_s": 100}
    picture, film = (f"file:{ROOT / 'examples' / name}" for name in ("tiny_image", "tiny_video"))
    tokens = {"context": num_ranks, **bounds}
    models: dict[str, Any] = {
        "tokens": {"source": picture, "parallel": tokens},
        "guidance": {"source": picture, "parallel": {"cfg": 2, **bounds}},
    }
    if films:
        models["film"] = {"source": film, "options": small, "parallel": tokens}
    return Server("parallel", {"models": models}, Path(tempfile.mkdtemp(prefix="death-")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--tiny", action="store_true", help="changes nothing: these models are tiny")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--site", type=Path, default=None, help="folder with packages")
    args = parser.parse_args()
    has_films = importlib.util.find_spec("av") is not None
    import_sixfold(args.site, ("sources", "image", *(["video"] if has_films else [])))
    results = Results(args.out)
    server = serve(args.ranks, films=has_films)
    with running([server]):
        subjects = [
            Picture(server, "tokens"),
            Picture(server, "guidance"),
            *([Film(server, "film")] if has_films else []),
        ]
        for subject in subjects:
            step, began_s = f"death-{subject.name}", time.perf_counter()
            try:
                # The oldest rank is this subject's: those of the subjects before it were started anew.
                results.keep(step, kill_one(server, subject, ranks_of(server)[0]))
                print(f"{step}: {results.steps[step]}", flush=True)
                results.done(step, time.perf_counter() - began_s)
            except Exception as error:  # the others must not be lost
                traceback.print_exc()
                print(server.log[-3000:], file=sys.stderr, flush=True)
                results.fail(step, f"{type(error).__name__}: {error}")
    if not has_films:
        results.keep("death-film", "not run: PyAV is not here")
        results.done("death-film", 0.0)
    raise SystemExit(1 if results.failures else 0)


if __name__ == "__main__":
    main()
