"""Steps that several processes compute together, one a GPU: sharing tokens, a long prompt, rows; part of multi.py.

    python bench/gpu/multi_ranks.py --steps wan prefill rows --ranks 2 --out FILE [--tiny]

The first rank starts the others. Each step's result is written as soon as it is there; a step that fails ends all ranks,
since they are apart then, and multi.py begins anew with the steps after it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from multi_prefill import share_prefill
from multi_results import Results
from multi_rows import share_rows
from multi_shapes import SHAPES, build, relative_error
from vllm_overhead import import_sixfold

NUM_TIMED = 3
PREFILLS = ("prefill-float32", "prefill")
_JOIN_TIMEOUT_S = 240.0  # ranks wait while the first one computes alone


class Ranks:
    """This process's side of the run: the same calls in the same order in every rank.

    Args:
        rank: Its number.
        count: Of all.
        device: Where it computes.
        folder: Where they meet.
        peers: The others, in the first rank.
    """

    def __init__(self, rank: int, count: int, device: Any, folder: Path, peers: list[Any]) -> None:
        self.rank = rank
        self.count = count
        self.device = device
        self.peers = peers
        self.may_lose = threading.Event()
        self._folder = folder
        self._num_meetings = 0

    @property
    def leads(self) -> bool:
        """Whether this is the first rank, which measures."""
        return self.rank == 0

    @property
    def counts(self) -> list[int]:
        """How many ranks share a step, in turn: 2, 4, 8 and so on, and all of them."""
        powers = [1 << i for i in range(1, self.count.bit_length()) if 1 << i <= self.count]
        return sorted({*powers, self.count} - {1})

    def join(self, degrees: Any) -> Any:
        """A mesh of the first ranks; None in one that has no part in it."""
        from sixfold.core.parallel.mesh import join

        self._num_meetings += 1
        if self.rank >= degrees.num_ranks:
            return None
        store = self._folder / f"store{self._num_meetings}"
        return join(degrees, self.rank, self.device, store, timeout_s=_JOIN_TIMEOUT_S)

    def synchronize(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def release(self) -> None:
        """Gives the memory of what is no longer used back."""
        import gc

        import torch

        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def seconds(self, run: Callable[[], Any]) -> tuple[float, Any]:
        """Median of a few runs after one, and what the last one gave."""
        run()
        times: list[float] = []
        result = None
        for _ in range(NUM_TIMED):
            self.synchronize()
            began_s = time.perf_counter()
            result = run()
            self.synchronize()
            times.append(time.perf_counter() - began_s)
        return statistics.median(times), result

    def say(self, text: str) -> None:
        if self.leads:
            print(text, flush=True)


def splits(count: int) -> dict[str, Any]:
    """The ways of sharing one row's tokens among so many ranks."""
    from sixfold.core.parallel.degrees import Degrees

    found = {"ulysses": Degrees(context=count, ulysses=count), "ring": Degrees(context=count)}
    if count >= 4:
        found["unified"] = Degrees(context=count, ulysses=2)
    return found


def share_tokens(name: str, ranks: Ranks, tiny: bool, keep: Callable[[Any], None]) -> None:
    """Seconds of a step alone and of each way of sharing it, and how far the results are apart."""
    import torch

    from sixfold.core.parallel.modules import RankModule, RankModules
    from sixfold.core.rendezvous.splitting import split_plan

    shape = SHAPES[name](tiny)
    module, arguments = build(shape, ranks.device, rows=shape.rows)
    plan = shape.plan or split_plan(module)
    found: dict[str, Any] = {"shape": shape.name, "rows": shape.rows, "tolerance": shape.tolerance, "ways": []}
    expected = None
    if ranks.leads:
        with torch.no_grad():
            found["alone_s"], expected = ranks.seconds(lambda: module(**arguments)[0])
            found["other_kernels"] = kernel_noise(lambda: module(**arguments)[0], expected)
        keep(found)
    for count in ranks.counts:
        for way, degrees in splits(count).items():
            mesh = ranks.join(degrees)
            if mesh is None:
                continue
            modules = RankModules({"module": RankModule(module=module, plan=plan)}, mesh)
            try:
                step_s, actual = ranks.seconds(lambda modules=modules: modules.run("module", arguments)[0])
            finally:
                modules.close()
                mesh.close()
            if ranks.leads:
                found["ways"].append(judged(found, count, way, step_s, relative_error(expected, actual)))
                ranks.say(f"{shape.name}: {found['ways'][-1]}")
                keep(found)


def judged(found: dict[str, Any], count: int, way: str, step_s: float, error: float) -> dict[str, Any]:
    """One line of a table; ``ok`` says whether the error is within the tolerance."""
    times = found["alone_s"] / step_s
    return {
        "ranks": count,
        "way": way,
        "step_s": step_s,
        "times": times,
        "efficiency": times / count,
        "error": error,
        "ok": error <= found["tolerance"],
    }


def kernel_noise(run: Callable[[], Any], expected: Any) -> dict[str, float]:
    """How far one device is from itself with another kernel of attention: what rounding alone makes of these weights."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    on_gpu = expected.device.type == "cuda"
    kinds = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION if on_gpu else SDPBackend.MATH)
    found: dict[str, float] = {}
    for kind in kinds:
        with contextlib.suppress(RuntimeError), torch.no_grad(), sdpa_kernel(kind):  # not for every type
            found[kind.name] = relative_error(expected, run())
    return found


def start_others(count: int, folder: Path) -> list[Any]:
    """The other ranks' processes."""
    from sixfold.core.parallel.leader import Peer

    peers: list[Any] = []
    for rank in range(1, count):
        ours, theirs = socket.socketpair()
        with theirs:
            own = ["--rank", str(rank), "--fd", str(theirs.fileno()), "--meet", str(folder)]
            process = subprocess.Popen([sys.executable, *sys.argv, *own], pass_fds=(theirs.fileno(),))
        peers.append(Peer(rank=rank, process=process, sock=ours))
    return peers


def watch(ranks: Ranks, on_loss: Callable[[str], None]) -> None:
    """Tells of a rank that ended and should not have."""
    while True:
        time.sleep(0.2)
        lost = [peer.rank for peer in ranks.peers if peer.process.poll() not in (None, 0)]
        if lost and not ranks.may_lose.is_set():
            on_loss(f"rank {lost[0]} ended; its trace is above")
            return


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", required=True, choices=[*SHAPES, *PREFILLS, "rows"])
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--tiny", action="store_true", help="a trial on a CPU")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--site", type=Path, default=None, help="folder with packages")
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--fd", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--meet", type=Path, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def run_step(name: str, ranks: Ranks, args: argparse.Namespace, keep: Callable[[Any], None]) -> None:
    if name in PREFILLS:
        share_prefill(ranks, splits, args.tiny, keep, exact=name == PREFILLS[0])
    elif name == "rows":
        share_rows(ranks, socket.socket(fileno=args.fd) if ranks.rank else None, args.tiny, keep)
    else:
        share_tokens(name, ranks, args.tiny, keep)


def main() -> None:
    args = parse()
    import_sixfold(args.site)
    import torch

    on_gpu = torch.cuda.is_available() and not args.tiny
    device = torch.device(f"cuda:{args.rank}" if on_gpu else "cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    folder = args.meet or Path(tempfile.mkdtemp(prefix="ranks-"))
    ranks = Ranks(args.rank, args.ranks, device, folder, [] if args.rank else start_others(args.ranks, folder))
    results = Results(args.out if ranks.leads else None)
    step = ""

    def fail(reason: str) -> None:
        results.fail(step, reason)
        for peer in ranks.peers:
            peer.process.kill()
        os._exit(1)  # a lost group never ends

    threading.Thread(target=watch, args=(ranks, fail), daemon=True).start()
    for step in args.steps:
        began_s = time.perf_counter()
        try:
            run_step(step, ranks, args, lambda value, step=step: results.keep(step, value))
        except Exception as error:
            traceback.print_exc()
            fail(f"rank {ranks.rank}: {type(error).__name__}: {error}")
        results.done(step, time.perf_counter() - began_s)
        if ranks.may_lose.is_set():
            break  # a device may wait for the lost rank for ever
        ranks.release()
    sys.stdout.flush()
    for peer in ranks.peers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            peer.process.wait(0.0 if ranks.may_lose.is_set() else 10.0)
        peer.process.kill()
    os._exit(0)


if __name__ == "__main__":
    main()
