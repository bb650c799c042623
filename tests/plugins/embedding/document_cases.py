"""Documents that several ranks embed, beside one process; runs in every rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sixfold.core.errors import SixfoldError
from sixfold.core.family import LoadContext
from sixfold.core.parallel.mesh import Mesh
from sixfold.plugins.embedding.loader import load, load_rank
from sixfold.plugins.embedding.options import EmbeddingOptions
from sixfold.plugins.embedding.schema import EmbeddingInput
from tests.core.parallel.orders import FakeLeader, follow
from tests.plugins.embedding.conftest import run_request

MIN_TOKENS = 18


def vectors(folders: dict[str, Path], texts: list[str], mesh: Mesh) -> dict[str, Any]:
    """Vectors of the texts by each model, and how many went over the ranks; or the text of what loading raised."""
    return {name: _vectors(path, texts, mesh) for name, path in folders.items()}


def _vectors(path: Path, texts: list[str], mesh: Mesh) -> Any:
    leader: Any = FakeLeader(mesh) if mesh.rank == 0 else None
    context = LoadContext(
        model_name="tiny",
        path=path,
        device="cpu",
        num_threads=1,
        options=EmbeddingOptions(parallel_tokens=MIN_TOKENS),
        parallel=leader,
    )
    if leader is None:
        try:
            follow(mesh, load_rank(context))
        except SixfoldError:
            follow(mesh, {})
        return None
    try:
        model = load(context)
        before = leader.num_orders
        result = run_request(model, EmbeddingInput(texts=tuple(texts))).result
        return np.frombuffer(result.vectors, "<f4").reshape(len(texts), -1).tolist(), leader.num_orders - before
    except SixfoldError as error:
        return str(error)
    finally:
        leader.close()
