"""Runs a function in several processes that form a mesh, within a time, and leaves none behind."""

from __future__ import annotations

import multiprocessing
import queue
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sixfold.core.parallel.degrees import Degrees
from sixfold.core.parallel.mesh import Mesh, join

_TIMEOUT_S = 90.0


def run_ranks(work: Callable[[Mesh], Any], degrees: Degrees, *, timeout_s: float = _TIMEOUT_S) -> list[Any]:
    """What `work`, a function of a module, returns in each rank."""
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    found: dict[int, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        processes = [
            context.Process(target=_run, args=(work, degrees, rank, store, answers), daemon=True)
            for rank in range(degrees.num_ranks)
        ]
        try:
            for process in processes:
                process.start()
            while len(found) < len(processes):
                rank, value, error = answers.get(timeout=timeout_s)
                assert error is None, error
                found[rank] = value
        except queue.Empty:
            raise AssertionError(f"only the ranks {sorted(found)} answered within {timeout_s} s") from None
        finally:
            for process in processes:
                process.join(5.0 if len(found) == len(processes) else 0.0)
                process.kill()
                process.join()
            answers.close()
            answers.join_thread()
    return [found[rank] for rank in range(len(found))]


def _run(work: Callable[[Mesh], Any], degrees: Degrees, rank: int, store: Path, answers: Any) -> None:
    torch.set_num_threads(1)
    try:
        mesh = join(degrees, rank, torch.device("cpu"), store, timeout_s=30.0)
        with torch.no_grad():
            answers.put((rank, work(mesh), None))
        mesh.close()
    except Exception:
        answers.put((rank, None, traceback.format_exc()))
