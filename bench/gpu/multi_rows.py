"""The branches of guidance on two groups of ranks, by a served model's leader; then a rank killed; part of multi.py."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from multi_shapes import SHAPES, build, relative_error, row_of

NAMES = ("wan", "flux", "qwen-1328")
ROWS = 2
_LOSS_TIMEOUT_S = 60.0


def share_rows(ranks: Any, sock: socket.socket | None, tiny: bool, keep: Callable[[Any], None]) -> None:
    """Rank 0 leads, the others follow until it stops; the last one is killed at the end.

    Args:
        ranks: All of them.
        sock: To the first rank; None in it.
        tiny: For a trial.
        keep: Given what is known.
    """
    from sixfold.core.parallel.degrees import Degrees

    context = ranks.count // ROWS
    degrees = Degrees(cfg=ROWS, context=context, ulysses=context)
    if sock is not None:
        _follow(ranks, degrees, sock, tiny)
        return
    found: dict[str, Any] = {"way": str(degrees), "shapes": []}
    lost = threading.Event()
    leader, calls = _lead(ranks, degrees, lost, tiny)
    for name in NAMES:
        module, arguments = calls[name]
        found["shapes"].append(_measure(name, module, arguments, leader, ranks, tiny))
        ranks.say(f"{found['shapes'][-1]}")
        keep(found)
    module, arguments = calls[NAMES[0]]
    parts = [row_of(arguments, row, ROWS) for row in range(ROWS)]
    found["killed_rank"] = _kill_one(leader, module, parts, ranks, found["shapes"][0]["step_s"], lost)
    ranks.say(f"a rank killed in mid-step: {found['killed_rank']}")
    keep(found)


def _build(ranks: Any, tiny: bool) -> dict[str, tuple[Any, dict[str, Any]]]:
    return {name: build(SHAPES[name](tiny), ranks.device, rows=ROWS) for name in NAMES}


def _modules(calls: dict[str, tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    from sixfold.core.parallel.modules import RankModule
    from sixfold.core.rendezvous.splitting import split_plan

    return {name: RankModule(module=module, plan=split_plan(module)) for name, (module, _) in calls.items()}


def _lead(ranks: Any, degrees: Any, lost: threading.Event, tiny: bool) -> tuple[Any, dict[str, Any]]:
    """The leader of the others, which have all loaded, and the modules with a call of each."""
    from sixfold.core.parallel.leader import Leader

    leader = Leader(
        degrees,
        ranks.peers,
        lambda: ranks.join(degrees),
        step_timeout_s=_LOSS_TIMEOUT_S,
        load_timeout_s=120.0,
        on_lost=lost.set,
    )
    calls = _build(ranks, tiny)
    leader.share(_modules(calls))
    return leader, calls


def _follow(ranks: Any, degrees: Any, sock: socket.socket, tiny: bool) -> None:
    from sixfold.core.parallel.follower import Follower, Orders
    from sixfold.core.parallel.messages import Loaded
    from sixfold.core.parallel.modules import RankModules

    orders = Orders(sock)
    modules = _modules(_build(ranks, tiny))
    orders.send(Loaded())
    mesh = ranks.join(degrees)
    Follower(orders, RankModules(modules, mesh), mesh).run()


def _measure(name: str, module: Any, arguments: dict[str, Any], leader: Any, ranks: Any, tiny: bool) -> dict[str, Any]:
    """All inside the time: arguments sent, both rows computed, answers taken."""
    import torch

    shape = SHAPES[name](tiny)
    parts = [row_of(arguments, row, ROWS) for row in range(ROWS)]
    with torch.no_grad():
        alone_s, expected = ranks.seconds(lambda: module(**arguments)[0])
    step_s, answers = ranks.seconds(lambda: leader.run(module, parts))
    error = relative_error(expected, torch.cat([answer[0] for answer in answers]))
    times = alone_s / step_s
    return {
        "shape": f"{shape.name}, {ROWS} rows",
        "ranks": ranks.count,
        "alone_s": alone_s,
        "step_s": step_s,
        "times": times,
        "efficiency": times / ranks.count,
        "error": error,
        "tolerance": shape.tolerance,
        "ok": error <= shape.tolerance,
    }


def _kill_one(
    leader: Any, module: Any, parts: list[Any], ranks: Any, step_s: float, lost: threading.Event
) -> dict[str, Any]:
    """Kills the last rank half a step after steps began; says when and how the leader knew."""
    from sixfold.core.batching.model import DeviceLost

    ranks.may_lose.set()
    ended = threading.Event()
    outcome = ""
    killed_s = 0.0

    def kill() -> None:
        nonlocal killed_s
        time.sleep(step_s / 2)
        killed_s = time.perf_counter()
        os.kill(ranks.peers[-1].process.pid, signal.SIGKILL)

    def step() -> None:
        nonlocal outcome
        try:
            while not lost.is_set():
                leader.run(module, parts)
                ranks.synchronize()
        except DeviceLost as error:
            outcome = f"DeviceLost: {error}"
            ended.set()

    for each in (kill, step):
        threading.Thread(target=each, daemon=True).start()
    until_s = time.perf_counter() + 2 * _LOSS_TIMEOUT_S
    while not ended.is_set() and not lost.is_set():
        if time.perf_counter() > until_s:
            raise TimeoutError("a rank was killed and nobody has noticed")
        ended.wait(0.005)
    known_s = time.perf_counter() - killed_s
    how = outcome if ended.is_set() else "the leader's watch, which ends the process"
    return {"known_after_s": known_s, "how": how}
