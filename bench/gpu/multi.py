"""Several GPUs of one host on one step: is the result that of one GPU, how much faster is it, what happens when a rank dies.

    python bench/gpu/multi.py --out multi.json            # all GPUs of the machine; about 3 minutes on two H100
    python bench/gpu/multi.py --tiny --ranks 2            # two processes on a CPU, to try it; also with --ranks 4

Transformers of Wan 2.1 1.3B and Flux.1-dev, the encoder of Whisper large-v3 and a prompt of Llama 3 8B (multi_prefill.py), at
their real sizes with random weights. A machine without Sixfold needs the wheels of bench/gpu/README.md for image.py.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from image import import_sixfold
from multi_prefill import prefill_shape, share_prefill

NUM_TIMED = 3
TOLERANCE = {"bfloat16": 2e-2, "float32": 1e-4}  # of the norm of the difference to one device, over the norm


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A transformer and one call of it.

    Attributes:
        name: For the table.
        build: Makes the module on the current default device.
        arguments: Makes a call of so many rows.
        dtype: Of weights and activations.
        rows: Of a call whose tokens are shared.
        plan: How the module is split; None asks for the denoiser's.
    """

    name: str
    build: Callable[[], Any]
    arguments: Callable[[int], dict[str, Any]]
    dtype: str = "bfloat16"
    rows: int = 1
    plan: Any = None


def wan(tiny: bool, frames: int, dtype: str = "bfloat16") -> Shape:
    """Wan 2.1 1.3B at 832x480."""
    import diffusers
    import torch

    sizes = {"num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 12, "ffn_dim": 32} if tiny else {}
    real = {"num_layers": 30, "num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960}
    latents = (16, 3, 10, 14) if tiny else (16, (frames - 1) // 4 + 1, 60, 104)

    def arguments(rows: int) -> dict[str, Any]:
        return {
            "hidden_states": torch.randn(rows, *latents),
            "timestep": torch.linspace(500, 900, rows),
            "encoder_hidden_states": torch.randn(rows, 40 if tiny else 512, 4096),
            "return_dict": False,
        }

    name = f"Wan 1.3B, 480p, {frames} frames, {dtype}"
    return Shape(
        name=name,
        build=lambda: diffusers.WanTransformer3DModel(**{**real, **sizes}),
        arguments=arguments,
        dtype=dtype,
    )


def flux(tiny: bool, pixels: int) -> Shape:
    """Flux.1-dev."""
    import diffusers
    import torch

    sizes = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 4} if tiny else {}
    side = 6 if tiny else pixels // 16

    def arguments(rows: int) -> dict[str, Any]:
        grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).reshape(-1, 2)
        image_ids = torch.nn.functional.pad(grid, (1, 0))
        num_text = 9 if tiny else 512
        return {
            "hidden_states": torch.randn(rows, side * side, 64),
            "encoder_hidden_states": torch.randn(rows, num_text, 4096),
            "pooled_projections": torch.randn(rows, 768),
            "timestep": torch.linspace(0.5, 0.9, rows),
            "img_ids": image_ids.to(torch.float32),
            "txt_ids": torch.zeros(num_text, 3),
            "guidance": torch.full((rows,), 3.5),
            "return_dict": False,
        }

    return Shape(
        name=f"Flux.1-dev, {pixels} px, bfloat16",
        build=lambda: diffusers.FluxTransformer2DModel(guidance_embeds=True, **sizes),
        arguments=arguments,
    )


def whisper(tiny: bool) -> Shape:
    """The encoder of Whisper large-v3 over 8 windows."""
    import torch
    import transformers
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from sixfold.plugins.asr.encoder_ranks import PLAN

    sizes = {"encoder_layers": 2, "d_model": 64, "encoder_attention_heads": 8, "encoder_ffn_dim": 96} if tiny else {}
    real = {"encoder_layers": 32, "d_model": 1280, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120}
    config = transformers.WhisperConfig(**{**real, **sizes}, num_mel_bins=128, attn_implementation="sdpa")
    return Shape(
        name="Whisper large-v3, encoder, 8 windows, bfloat16",
        build=lambda: WhisperEncoder(config),
        arguments=lambda rows: {"input_features": torch.randn(rows, 128, 3000)},
        rows=2 if tiny else 8,
        plan=PLAN,
    )


class Ranks:
    """This process's side of the run: the same calls in the same order in every rank.

    Args:
        rank: Its number.
        count: Of all.
        device: Where it computes.
        folder: Where they meet.
    """

    def __init__(self, rank: int, count: int, device: Any, folder: Path) -> None:
        self.rank = rank
        self.count = count
        self.device = device
        self._folder = folder
        self._num_meetings = 0

    def join(self, degrees: Any) -> Any:
        """A mesh of all ranks."""
        from sixfold.core.parallel.mesh import join

        self._num_meetings += 1
        return join(degrees, self.rank, self.device, self._folder / f"store{self._num_meetings}", timeout_s=120.0)

    def synchronize(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], Any]) -> float:
        """Median of a few runs after one."""
        run()
        times: list[float] = []
        for _ in range(NUM_TIMED):
            self.synchronize()
            began_s = time.perf_counter()
            run()
            self.synchronize()
            times.append(time.perf_counter() - began_s)
        return statistics.median(times)


def build(shape: Shape, ranks: Ranks, rows: int) -> tuple[Any, dict[str, Any]]:
    """The module and a call, equal in all ranks: drawn from one seed on devices of one kind."""
    import torch

    dtype = getattr(torch, shape.dtype)
    torch.manual_seed(0)
    with torch.device(ranks.device), torch.no_grad():
        torch.set_default_dtype(dtype)
        try:
            module = shape.build().eval().requires_grad_(False)
            arguments = shape.arguments(rows)
        finally:
            torch.set_default_dtype(torch.float32)
    torch.manual_seed(1)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 0.02)
    return module, {
        name: value.to(dtype) if hasattr(value, "to") and value.is_floating_point() and "ids" not in name else value
        for name, value in arguments.items()
    }


def splits(count: int) -> dict[str, Any]:
    """The ways of sharing one row's tokens among so many ranks."""
    from sixfold.core.parallel.degrees import Degrees

    found = {"ulysses": Degrees(context=count, ulysses=count), "ring": Degrees(context=count)}
    if count >= 4:
        found["unified"] = Degrees(context=count, ulysses=2)
    return found


def relative_error(expected: Any, actual: Any) -> float:
    expected, actual = expected.double(), actual.double()
    return float((expected - actual).norm() / expected.norm())


def share_tokens(shape: Shape, ranks: Ranks) -> dict[str, Any]:
    """Seconds of a step alone and of each way of sharing it, and how far the results are apart."""
    import torch

    from sixfold.core.parallel.modules import RankModule, RankModules
    from sixfold.core.rendezvous.splitting import split_plan

    module, arguments = build(shape, ranks, rows=shape.rows)
    plan = shape.plan or split_plan(module)
    found: dict[str, Any] = {"shape": shape.name, "ranks": ranks.count, "ways": {}}
    with torch.no_grad():
        alone_s = ranks.seconds(lambda: module(**arguments))
        expected = module(**arguments)[0]
    found["alone_s"] = alone_s
    for name, degrees in splits(ranks.count).items():
        mesh = ranks.join(degrees)
        modules = RankModules({"denoiser": RankModule(module=module, plan=plan)}, mesh)
        try:
            step_s = ranks.seconds(lambda modules=modules: modules.run("denoiser", arguments))
            error = relative_error(expected, modules.run("denoiser", arguments)[0])
        finally:
            modules.close()
            mesh.close()
        assert error <= TOLERANCE[shape.dtype], f"{shape.name}, {name}: {error:.1e} from one device"
        efficiency = alone_s / step_s / ranks.count
        found["ways"][name] = {"step_s": step_s, "efficiency": efficiency, "relative_error": error}
        report(
            ranks, f"{shape.name}: alone {alone_s:.3f} s, {name} {step_s:.3f} s ({efficiency:.0%}), {error:.1e} apart"
        )
    return found


def report(ranks: Ranks, text: str) -> None:
    if ranks.rank == 0:
        print(text, flush=True)


def lead(shape: Shape, ranks: Ranks, peers: list[Any]) -> dict[str, Any]:
    """Rank 0 of the real leader and followers: rows shared as guidance shares them, then a rank killed in mid-step."""
    import torch

    from sixfold.core.batching.model import DeviceLost
    from sixfold.core.parallel.degrees import Degrees
    from sixfold.core.parallel.leader import Leader
    from sixfold.core.parallel.modules import RankModule

    module, arguments = build(shape, ranks, rows=ranks.count)
    degrees = Degrees(cfg=ranks.count)
    lost = threading.Event()
    leader = Leader(
        degrees,
        peers,
        lambda: ranks.join(degrees),
        step_timeout_s=60.0,
        load_timeout_s=120.0,
        on_lost=lost.set,
    )
    leader.share({"denoiser": RankModule(module=module, plan=None)})
    parts = [
        {name: value[r : r + 1] if _has_rows(value, ranks.count, name) else value for name, value in arguments.items()}
        for r in range(ranks.count)
    ]
    with torch.no_grad():
        alone_s = ranks.seconds(lambda: module(**arguments))
        expected = module(**arguments)[0]
    step_s = ranks.seconds(lambda: leader.run(module, parts))
    actual = torch.cat([answer[0] for answer in leader.run(module, parts)])
    error = relative_error(expected, actual)
    assert error <= TOLERANCE[shape.dtype], f"{shape.name}, cfg: {error:.1e} from one device"
    found = {
        "shape": f"{shape.name}, {ranks.count} rows",
        "alone_s": alone_s,
        "cfg": {"step_s": step_s, "efficiency": alone_s / step_s / ranks.count, "relative_error": error},
    }
    report(ranks, f"{found['shape']}: alone {alone_s:.3f} s, cfg {step_s:.3f} s, {error:.1e} apart")

    def kill() -> None:
        time.sleep(step_s / 2)
        os.kill(peers[-1].process.pid, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    began_s = time.perf_counter()
    outcome = "completed before the rank was gone"
    ended = threading.Event()

    def step() -> None:
        nonlocal outcome
        try:
            while not lost.is_set():
                leader.run(module, parts)
                ranks.synchronize()
        except DeviceLost as error:
            outcome = f"DeviceLost: {error}"
        ended.set()

    threading.Thread(target=step, daemon=True).start()
    while not ended.is_set() and not lost.is_set():
        ended.wait(0.05)
    found["killed_rank"] = {
        "seconds_until_known": time.perf_counter() - began_s - step_s / 2,
        "how": outcome if ended.is_set() else "the leader's watch ends the process",
    }
    report(ranks, f"a rank killed in mid-step: {found['killed_rank']}")
    return found


def _has_rows(value: Any, rows: int, name: str) -> bool:
    return hasattr(value, "shape") and value.ndim > 0 and value.shape[0] == rows and "ids" not in name


def follow(shape: Shape, ranks: Ranks, sock: socket.socket) -> None:
    """The other ranks of `lead`."""
    from sixfold.core.parallel.degrees import Degrees
    from sixfold.core.parallel.follower import Follower, Orders
    from sixfold.core.parallel.messages import Loaded
    from sixfold.core.parallel.modules import RankModule, RankModules

    module, _ = build(shape, ranks, rows=1)
    orders = Orders(sock)
    orders.send(Loaded())
    mesh = ranks.join(Degrees(cfg=ranks.count))
    Follower(orders, RankModules({"denoiser": RankModule(module=module, plan=None)}, mesh), mesh).run()


def shapes(tiny: bool) -> list[Shape]:
    return [wan(tiny, 9, "float32"), wan(tiny, 81), flux(tiny, 2048), whisper(tiny)]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="a trial on a CPU")
    parser.add_argument("--ranks", type=int, default=0, help="processes; all GPUs unless given")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--site", type=Path, default=None, help="folder with packages")
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--fd", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--meet", type=Path, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    import_sixfold(args.site)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    import torch

    on_gpu = torch.cuda.is_available() and not args.tiny
    count = args.ranks or torch.cuda.device_count()
    if count < 2:
        raise SystemExit("there is one device; give --tiny --ranks 2 to try this on a CPU")
    if not on_gpu:
        torch.set_num_threads(1)
    device = torch.device(f"cuda:{args.rank}" if on_gpu else "cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    folder = args.meet or Path(tempfile.mkdtemp())
    peers = start_others(count, folder) if args.rank == 0 else []
    ranks = Ranks(args.rank, count, device, folder)
    results: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "device": torch.cuda.get_device_name(device) if on_gpu else "CPU, tiny",
        "ranks": count,
        "torch": torch.__version__,
        "weights": "random",
        "tokens_shared": [],
    }

    if on_gpu and args.rank == 0:
        from sixfold.core.parallel.link import measure

        results["link_bytes_per_s"] = measure(count)

    def write() -> None:
        if args.out is not None and args.rank == 0:
            args.out.write_text(json.dumps(results, indent=1))

    for shape in shapes(args.tiny):
        results["tokens_shared"].append(share_tokens(shape, ranks))
        write()
        if on_gpu:
            torch.cuda.empty_cache()
    prompt = prefill_shape(args.tiny)
    results["prompt_shared"] = share_prefill(
        prompt, ranks, splits(count), lambda text: report(ranks, text), TOLERANCE[prompt.dtype]
    )
    write()
    if on_gpu:
        torch.cuda.empty_cache()
    shape = wan(args.tiny, 81)
    if args.rank > 0:
        follow(shape, ranks, socket.socket(fileno=args.fd))
        os._exit(0)
    results["rows_shared"] = lead(shape, ranks, peers)
    write()
    print(json.dumps(results, indent=1), flush=True)
    for peer in peers:
        peer.process.kill()
    os._exit(0)  # a lost group never ends


def start_others(count: int, folder: Path) -> list[Any]:
    """The other ranks' processes."""
    from sixfold.core.parallel.leader import Peer

    peers: list[Any] = []
    for rank in range(1, count):
        ours, theirs = socket.socketpair()
        with theirs:
            command = [
                sys.executable,
                *sys.argv,
                "--rank",
                str(rank),
                "--fd",
                str(theirs.fileno()),
                "--meet",
                str(folder),
            ]
            process = subprocess.Popen([*command, "--ranks", str(count)], pass_fds=(theirs.fileno(),))
        peers.append(Peer(rank=rank, process=process, sock=ours))
    return peers


if __name__ == "__main__":
    main()
