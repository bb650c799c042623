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

_TIMEOUT_S = 240.0


def run_ranks(work: Callable[[Mesh], Any], *meshes: Degrees, timeout_s: float = _TIMEOUT_S) -> list[list[Any]]:
    """What `work`, a function of a module, returns in each rank of each mesh; one after another in the same processes."""
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    found: dict[int, list[Any]] = {}
    count = max(degrees.num_ranks for degrees in meshes)
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_run, args=(work, meshes, rank, Path(folder), answers, timeout_s), daemon=True)
            for rank in range(count)
        ]
        try:
            for process in processes:
                process.start()
            while len(found) < count:
                rank, values, error = answers.get(timeout=timeout_s)
                assert error is None, error
                found[rank] = values
        except queue.Empty:
            raise AssertionError(f"only the ranks {sorted(found)} answered within {timeout_s} s") from None
        finally:
            for process in processes:
                process.join(5.0 if len(found) == count else 0.0)
                process.kill()
                process.join()
            answers.close()
            answers.join_thread()
    return [[found[rank][i] for rank in range(degrees.num_ranks)] for i, degrees in enumerate(meshes)]


def _run(
    work: Callable[[Mesh], Any], meshes: tuple[Degrees, ...], rank: int, folder: Path, answers: Any, timeout_s: float
) -> None:
    torch.set_num_threads(1)
    values: list[Any] = []
    try:
        for index, degrees in enumerate(meshes):
            if rank >= degrees.num_ranks:
                values.append(None)
                continue
            mesh = join(degrees, rank, torch.device("cpu"), folder / f"store{index}", timeout_s=timeout_s)
            with torch.no_grad():
                values.append(work(mesh))
            mesh.close()
        answers.put((rank, values, None))
    except Exception:
        answers.put((rank, values, traceback.format_exc()))
