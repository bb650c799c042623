"""Several GPUs of one host: is a shared step that of one GPU, how much faster is it, and what do roles and dying ranks do?

    python bench/gpu/multi.py --out multi.json            # all GPUs of the machine; about 7 minutes on two H200
    python bench/gpu/multi.py --tiny --ranks 2            # processes on a CPU, to try it; also with --ranks 4

- ``tokens``: transformers of Wan 2.1 1.3B, Flux.1-dev and Qwen-Image and the encoder of Whisper large-v3 (multi_shapes.py),
  their tokens shared by 2, 4, 8, ... ranks: Ulysses, ring and, from 4 on, both.
- ``bursts``, ``equal``: prompts computed on one GPU and answered on another, beside replicas that do both (multi_split.py).
- ``death``: a rank of a served model killed in mid-step (multi_death.py).
- ``prefill``: a prompt of 128k tokens of Llama 3 8B over ranks, handed over to decoding in the first (multi_prefill.py).
- ``rows``: the branches of guidance on two groups of ranks, by the leader of a served model (multi_rows.py).

All at their real sizes with random weights. Each part is a process group of its own with a time of its own; what it has found
stays when it fails or is cut off. A machine without Sixfold needs the wheels of bench/gpu/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from multi_results import Results, read
from multi_table import table
from vllm_overhead import import_sixfold

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {
    # Multicast over NVLink can put a host that others share out of service.
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
    "NCCL_SOCKET_IFNAME": "lo",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
}
_FACTS = """
import json, torch
from sixfold.core.parallel.link import measure
count = torch.cuda.device_count()
name = torch.cuda.get_device_name() if count else "CPU"
link = measure(count) if count > 1 else None
print(json.dumps({"devices": count, "device": name, "torch": torch.__version__, "link_bytes_per_s": link}))
"""
_PREPARE_S = 150.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process group.

    Attributes:
        name: On the command line.
        script: That runs it.
        steps: That it ends.
        cap_s: After which it is ended.
        serves_llama: Whether it needs the folder of multi_llama.py.
        beside_next: Whether it and the part after it run at once: of both what comes out counts, not how fast.
    """

    name: str
    script: str
    steps: tuple[str, ...]
    cap_s: float
    serves_llama: bool = False
    beside_next: bool = False

    @property
    def takes_steps(self) -> bool:
        """Whether the script is told which."""
        return self.script != "multi_death.py"


PARTS = (
    Part(
        name="tokens",
        script="multi_ranks.py",
        steps=("wan-float32", "wan", "flux", "whisper", "qwen-1328", "qwen-2048"),
        cap_s=200.0,
    ),
    Part(name="prefill", script="multi_ranks.py", steps=("prefill-float32", "prefill"), cap_s=150.0),
    Part(name="rows", script="multi_ranks.py", steps=("rows",), cap_s=110.0),
    Part(name="bursts", script="multi_split.py", steps=("split-bursts",), cap_s=150.0, serves_llama=True),
    Part(
        name="equal",
        script="multi_split.py",
        steps=("split-equal",),
        cap_s=160.0,
        serves_llama=True,
        beside_next=True,
    ),
    Part(
        name="death",
        script="multi_death.py",
        steps=("death-tokens", "death-guidance", "death-film"),
        cap_s=160.0,
    ),
)


class Run:
    """One run of all parts.

    Args:
        args: Of the command line.
        folder: For files of the parts.
        ranks: GPUs, or processes on a CPU.
        results: Of all parts.
    """

    def __init__(self, args: argparse.Namespace, folder: Path, ranks: int, results: Results) -> None:
        self._flags = [*(["--tiny"] if args.tiny else []), *(["--site", str(args.site)] if args.site else [])]
        self._until_s = time.perf_counter() + args.budget_s
        self._folder = folder
        self._ranks = ranks
        self._results = results
        self._preparing: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Makes the folder of the model beside what else runs."""
        tiny = [flag for flag in self._flags if flag == "--tiny"]
        command = [sys.executable, str(HERE / "multi_llama.py"), "--folder", str(self._folder / "llama"), *tiny]
        self._preparing = subprocess.Popen(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})

    def parts(self, parts: Sequence[Part]) -> None:
        """Runs them in their order."""
        beside: list[threading.Thread] = []
        for part in parts:
            if part.beside_next and part is not parts[-1]:
                beside.append(threading.Thread(target=self.part, args=(part,)))
                beside[-1].start()
                continue
            self.part(part)
            while beside:
                beside.pop().join()

    def part(self, part: Part) -> None:
        """Runs a part to its end, again with the steps after one that failed; its steps never stay without a word."""
        try:
            if part.serves_llama and self._preparing is not None:
                status = self._preparing.wait(min(_PREPARE_S, self._left_s()))
                if status:
                    raise RuntimeError(f"multi_llama.py ended with status {status}")
            until_s = time.perf_counter() + part.cap_s
            while left := [step for step in part.steps if step not in self._results.ended]:
                self._once(part, left, min(until_s - time.perf_counter(), self._left_s()))
        except Exception as error:  # the other parts must not be lost
            for step in part.steps:
                if step not in self._results.ended:
                    self._results.fail(step, f"{type(error).__name__}: {error}")

    def _left_s(self) -> float:
        return max(self._until_s - time.perf_counter(), 0.0)

    def _once(self, part: Part, steps: Sequence[str], timeout_s: float) -> None:
        out = self._folder / f"{part.name}-{steps[0]}.json"
        own = ["--steps", *steps] if part.takes_steps else []
        own += ["--folder", str(self._folder / "llama")] if part.serves_llama else []
        command = [sys.executable, str(HERE / part.script), "--ranks", str(self._ranks), "--out", str(out), *own]
        print(f"--- {part.name}: {' '.join(steps)}, at most {timeout_s:.0f} s", flush=True)
        status = run_group([*command, *self._flags], timeout_s, lambda: self._results.add(read(out)))
        left = [step for step in steps if step not in self._results.ended]
        if status is not None and len(left) < len(steps):
            return  # one has failed, and those after it may do better in new processes
        reason = "its time was over" if status is None else f"its process ended with status {status}"
        for step in left:
            self._results.fail(step, reason)


def run_group(command: Sequence[str], timeout_s: float, look: Callable[[], None]) -> int | None:
    """Runs a command, and ends all that it has started; returns its status, None after too long.

    Args:
        command: What to run.
        timeout_s: For all of it.
        look: Called every now and then, and at the end.
    """
    if timeout_s <= 0:
        return None
    until_s = time.perf_counter() + timeout_s
    process = subprocess.Popen(command, start_new_session=True)
    try:
        while time.perf_counter() < until_s:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(1.0)
            look()
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        look()


def look(tiny: bool) -> dict[str, Any]:
    """Facts of the machine, by a process that ends: nobody must hold a context on the GPUs."""
    if tiny:
        return {"devices": 0, "device": "CPU, tiny"}
    try:
        done = subprocess.run([sys.executable, "-c", _FACTS], capture_output=True, text=True, timeout=90.0, check=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:  # the link's speed is not worth the run
        print(f"the machine could not be looked at: {error}", flush=True)
        return {"devices": len(list(Path("/dev").glob("nvidia[0-9]*"))), "device": "unknown GPU"}
    return found


def parse() -> argparse.Namespace:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a trial on a CPU")
    parser.add_argument("--ranks", type=int, default=0, help="processes; all GPUs unless given")
    parser.add_argument("--parts", nargs="+", default=names, choices=names)
    parser.add_argument("--budget-s", type=float, default=530.0, help="for all parts together")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")) / "multi.json")
    parser.add_argument("--site", type=Path, default=None, help="folder with packages")
    return parser.parse_args()


def main() -> None:
    args = parse()
    began_s = time.perf_counter()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the running part must not outlive this
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import_sixfold(args.site)
    folder = Path(tempfile.mkdtemp(prefix="multi-"))
    wanted = [part for part in PARTS if part.name in args.parts]
    facts = {"command": " ".join(sys.argv), **look(args.tiny), "weights": "random"}
    ranks = args.ranks or facts["devices"]
    if ranks < 2:
        raise SystemExit("there is one device; give --tiny --ranks 2 to try this on a CPU")
    results = Results(args.out, facts | {"ranks": ranks})
    run = Run(args, folder, ranks, results)
    if any(part.serves_llama for part in wanted):
        run.prepare()
    run.parts(wanted)
    try:
        print(table(read(args.out)), flush=True)
    except (
        KeyError,
        TypeError,
        AttributeError,
    ) as error:  # what was cut off may lack anything; the file has what there is
        print(f"no table: {type(error).__name__}: {error}", flush=True)
    print(f"{time.perf_counter() - began_s:.0f} s in all", flush=True)
    raise SystemExit(1 if results.failures else 0)


if __name__ == "__main__":
    main()
