"""What is measured: Sixfold and its peers, each as a command that starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from servers import Target

BENCH = Path(__file__).parent
WORK = BENCH / ".work"
PEERS = BENCH / "peers"
SIXFOLD = Path(sys.executable).with_name("sixfold")

# Nothing may reach the network or report usage while it is measured.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}

INFINITY_REQUIREMENT = "infinity-emb[torch,server]==0.0.78"
TORCH_PIN = "torch==2.13.0"  # the newest torch that infinity's own pins were tried with; the same as Sixfold's


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a table: a model on a server.

    Attributes:
        name: As printed.
        target: The server; rows that share one share its process.
        model: What requests name.
        path: Route of the requests.
        dtype: Type of the weights.
        is_slow: Too slow for every round: with 8 in flight it runs in the first round only, with more never.
    """

    name: str
    target: Target
    model: str
    path: str
    dtype: str
    is_slow: bool = False


def pull_demo_models(config: Path) -> dict[str, Path]:
    """Folders of the demo models by name, downloaded and converted when missing."""
    output = subprocess.run(
        [SIXFOLD, "pull", str(config)], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()
    return {name: Path(rest.rpartition(" (")[0]) for name, _colon, rest in (line.partition(": ") for line in output)}


def sixfold(name: str, source: Path, dtypes: tuple[str, ...]) -> Target:
    """A Sixfold server with the model once per dtype, named after it."""
    config = WORK / f"{name}.yaml"
    models = {dtype: {"source": f"file:{source.resolve()}", "options": {"dtype": dtype}} for dtype in dtypes}
    config.write_text(json.dumps({"models": models}))
    return Target(
        name=name,
        command=lambda port: [str(SIXFOLD), "serve", str(config), "--port", str(port), "--log-level", "warning"],
        env=OFFLINE,
        ready_path="/ready",
        pausable=False,
    )


def embedding_rows(model: Path, dtypes: tuple[str, ...]) -> tuple[Row, ...]:
    """Sixfold first, then LitServe in each dtype, then infinity in float32."""
    ours = sixfold("sixfold-embedding", model, dtypes)
    rows = [Row(name="Sixfold", target=ours, model=dtype, path="/v1/embeddings", dtype=dtype) for dtype in dtypes]
    for dtype in dtypes:
        target = Target(
            name=f"litserve-{dtype}",
            command=_python_peer("litserve_embedding.py", model, dtype),
            env=OFFLINE,
            ready_path="/health",
        )
        rows.append(
            Row(
                name="sentence-transformers on LitServe",
                target=target,
                model="embed",
                path="/v1/embeddings",
                dtype=dtype,
            )
        )
    infinity = Target(
        name="infinity",
        command=lambda port: [
            *[str(_infinity_python().with_name("infinity_emb")), "v2", "--model-id", str(model)],
            *["--served-model-name", "embed", "--url-prefix", "/v1", "--port", str(port), "--host", "127.0.0.1"],
            *["--engine", "torch", "--device", "cpu", "--dtype", "float32", "--batch-size", "32"],
            *["--no-bettertransformer", "--no-model-warmup"],
        ],
        env={**OFFLINE, "INFINITY_ANONYMOUS_USAGE_STATS": "0"},
        ready_path="/health",
    )
    rows.append(Row(name="infinity 0.0.78", target=infinity, model="embed", path="/v1/embeddings", dtype="float32"))
    return tuple(rows)


def chat_rows(model: Path, dtypes: tuple[str, ...]) -> tuple[Row, ...]:
    """Sixfold first, then transformers' continuous batching, then `generate` one by one."""
    ours = sixfold("sixfold-chat", model, dtypes)
    rows = [Row(name="Sixfold", target=ours, model=dtype, path="/v1/completions", dtype=dtype) for dtype in dtypes]
    peers = (
        ("transformers continuous batching", "transformers_cb.py", False),
        ("transformers generate, one by one", "transformers_generate.py", True),
    )
    for name, script, is_slow in peers:
        for dtype in dtypes:
            target = Target(
                name=f"{script.removesuffix('.py')}-{dtype}",
                command=_python_peer(script, model, dtype),
                env=OFFLINE,
                ready_path="/health",
            )
            rows.append(
                Row(name=name, target=target, model="chat", path="/v1/completions", dtype=dtype, is_slow=is_slow)
            )
    return tuple(rows)


def install_infinity() -> None:
    """Makes infinity's own environment in bench/.work: it needs another transformers than Sixfold does."""
    python = _infinity_python()
    done = python.parent.parent / ".installed"
    if done.exists() and done.read_text() == INFINITY_REQUIREMENT:
        return
    print("installing infinity into its own environment (once, a few minutes)", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(python.parent.parent)], check=True)
    constraints = WORK / "constraints-infinity.txt"
    constraints.write_text(f"{TORCH_PIN}\n")
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "-c", str(constraints), INFINITY_REQUIREMENT], check=True
    )
    done.write_text(INFINITY_REQUIREMENT)


def _infinity_python() -> Path:
    return WORK / "venv-infinity" / "bin" / "python"


def _python_peer(script: str, model: Path, dtype: str) -> Callable[[int], list[str]]:
    return lambda port: [sys.executable, str(PEERS / script), str(model), "--dtype", dtype, "--port", str(port)]


def work_folder() -> Path:
    """The git-ignored folder for environments, configurations and logs."""
    os.makedirs(WORK, exist_ok=True)
    return WORK
