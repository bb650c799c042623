"""Clips of many clients at once: Sixfold's batch manager against the stock diffusers pipeline behind a lock, in one run.

    python bench/video.py                     # a tiny Wan on the CPU, about a minute
    python bench/gpu/video.py                 # Wan 1.3B on one GPU

Both sides run the same pipeline object with random weights (`normal(0, 0.02)`) and a text encoder of one layer, on the
same jobs (mixed steps, guidance and seeds, Poisson arrivals from one seed), and both write mp4 files. The stock side takes
the jobs in the order of their arrival, one at a time, as servers around diffusers do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


def find_sixfold() -> None:
    """Makes this checkout importable where it is not installed."""
    try:
        import sixfold.plugins  # noqa: F401
    except ImportError:
        root, site = Path(__file__).resolve().parents[1], Path(tempfile.mkdtemp())
        (site / "sixfold").mkdir()
        for name in ("core", "plugins"):
            (site / "sixfold" / name).symlink_to(root / name)
        sys.path.insert(0, str(site))


find_sixfold()

import diffusers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402

from sixfold.core.batching.manager import Limits  # noqa: E402
from sixfold.core.batching.model import ModelInfo  # noqa: E402
from sixfold.core.messages import Failed, Finished, Increment, Request  # noqa: E402
from sixfold.core.runtime.local_replica import LocalReplica  # noqa: E402
from sixfold.plugins.video import model as _model  # noqa: E402
from sixfold.plugins.video.encoding import choose_format, encode  # noqa: E402
from sixfold.plugins.video.inspection import inspect_pipeline  # noqa: E402
from sixfold.plugins.video.loader import plan_of  # noqa: E402
from sixfold.plugins.video.messages import VideoInput, VideoProgress  # noqa: E402
from sixfold.plugins.video.model import VideoModel, to_frames  # noqa: E402
from sixfold.plugins.video.options import VideoOptions  # noqa: E402
from sixfold.plugins.video.stills import spritesheet, thumbnail  # noqa: E402

video_model: Any = _model


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A pipeline to build and the clips to ask of it."""

    name: str
    layers: int
    heads: int
    head_dim: int
    ffn_dim: int
    text_dim: int
    vae_dim: int
    width: int
    height: int
    steps: tuple[int, int]


TINY = Size(
    name="tiny", layers=4, heads=4, head_dim=24, ffn_dim=256, text_dim=64, vae_dim=8, width=64, height=64, steps=(8, 30)
)
WAN_1_3B = Size(
    name="wan2.1-1.3b",
    layers=30,
    heads=12,
    head_dim=128,
    ffn_dim=8960,
    text_dim=4096,
    vae_dim=96,
    width=832,
    height=480,
    steps=(10, 30),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A clip and when its client comes."""

    at_s: float
    wanted: VideoInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Seconds from the arrival of a job."""

    first_progress_s: float
    done_s: float
    ended_at_s: float


def build(size: Size, device: str, dtype: torch.dtype) -> Any:
    """The pipeline, with random weights on the device; its VAE in float32, as Wan's is served."""
    diffusers_: Any = diffusers
    transformers_: Any = transformers
    with torch.device(device):
        transformer = diffusers_.WanTransformer3DModel(
            num_layers=size.layers,
            num_attention_heads=size.heads,
            attention_head_dim=size.head_dim,
            ffn_dim=size.ffn_dim,
            text_dim=size.text_dim,
        ).to(dtype)
        vae = diffusers_.AutoencoderKLWan(base_dim=size.vae_dim)
        text_encoder = transformers_.UMT5EncoderModel(
            transformers_.UMT5Config(d_model=size.text_dim, d_kv=8, d_ff=64, num_layers=1, num_heads=4, vocab_size=300)
        ).to(dtype)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for module in (transformer, vae, text_encoder):
            module.eval()
            for parameter in module.parameters():
                parameter.normal_(0, 0.02, generator=generator)
    pipeline = diffusers_.WanPipeline(
        vae=vae,
        transformer=transformer,
        scheduler=diffusers_.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
        ),
        text_encoder=text_encoder,
        tokenizer=byte_tokenizer(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def byte_tokenizer() -> Any:
    """One id a byte."""
    vocab = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {
        letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 3)
    }
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def make_jobs(size: Size, count: int, num_frames: int, mean_gap_s: float, seed: int) -> list[Job]:
    """Jobs of mixed steps and guidance, arriving at random."""
    source = random.Random(seed)
    at_s = 0.0
    jobs: list[Job] = []
    for index in range(count):
        wanted = VideoInput(
            prompt=f"clip {index}: a red ball moving right",
            width=size.width,
            height=size.height,
            num_frames=num_frames,
            fps=16,
            num_inference_steps=source.randint(*size.steps),
            guidance_scale=source.choice([1.0, 4.0, 6.0]),
            seed=index,
        )
        jobs.append(Job(at_s=at_s, wanted=wanted))
        at_s += source.expovariate(1 / mean_gap_s) if mean_gap_s else 0.0
    return jobs


def new_model(pipeline: Any, device: str, num_threads: int) -> VideoModel:
    """The pipeline as a served model."""
    form = choose_format("auto")
    can = inspect_pipeline(pipeline, VideoOptions(), dtype="any", codec=form.codec)
    return VideoModel(
        info=ModelInfo(),
        pipeline=pipeline,
        plan=plan_of(pipeline),
        can=can,
        form=form,
        caches={},
        max_cache_bytes=0,
        device=torch.device(device),
        num_threads=num_threads,
        call_arguments={},
    )


async def run_sixfold(replica: LocalReplica, jobs: Sequence[Job]) -> list[Result]:
    """All jobs through the batch manager."""
    start_s = time.monotonic()

    async def film(job: Job) -> Result:
        await asyncio.sleep(job.at_s)
        arrived_s = time.monotonic()
        stream = replica.submit(
            Request(request_id=f"{start_s}-{job.wanted.seed}", input=job.wanted, arrived_s=arrived_s)
        )
        first_s = 0.0
        while True:
            for event in await stream.next_events():
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Increment) and isinstance(event.output, VideoProgress) and not first_s:
                    first_s = time.monotonic()
                if isinstance(event, Finished):
                    now_s = time.monotonic()
                    return Result(
                        first_progress_s=first_s - arrived_s,
                        done_s=now_s - arrived_s,
                        ended_at_s=now_s - start_s,
                    )

    return list(await asyncio.gather(*map(film, jobs)))


def run_stock(pipeline: Any, jobs: Sequence[Job], num_threads: int) -> list[Result]:
    """One job after another, in the order of their arrival."""
    form = choose_format("auto")
    start_s = time.monotonic()
    results: list[Result] = []
    for job in jobs:
        arrived_s = start_s + job.at_s
        time.sleep(max(0.0, arrived_s - time.monotonic()))
        first_s: list[float] = []

        def note(_pipeline: Any, _step: int, _time: Any, values: Any, first_s: list[float] = first_s) -> Any:
            first_s.append(time.monotonic())
            return values

        frames = to_frames(stock_video(pipeline, job.wanted, note))
        encode(iter(frames), fps=16, form=form, num_threads=num_threads)
        thumbnail(frames)
        spritesheet(frames)
        now_s = time.monotonic()
        results.append(
            Result(first_progress_s=first_s[0] - arrived_s, done_s=now_s - arrived_s, ended_at_s=now_s - start_s)
        )
    return results


def stock_video(pipeline: Any, wanted: VideoInput, callback: Any = None) -> torch.Tensor:
    """What the stock pipeline returns for a job."""
    video: torch.Tensor = pipeline(
        prompt=wanted.prompt,
        width=wanted.width,
        height=wanted.height,
        num_frames=wanted.num_frames,
        num_inference_steps=wanted.num_inference_steps,
        guidance_scale=wanted.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(wanted.seed),
        output_type="pt",
        callback_on_step_end=callback,
    ).frames[0]
    return video


def seconds_per_forward(
    pipeline: Any, size: Size, num_frames: int, rows: Sequence[int], device: str
) -> dict[str, float]:
    """Seconds of one forward of the denoiser, by the number of rows."""
    transformer = pipeline.transformer
    latent = (16, (num_frames - 1) // 4 + 1, size.height // 8, size.width // 8)
    found: dict[str, float] = {}
    for count in rows:
        hidden = torch.randn(count, *latent, device=device, dtype=transformer.dtype)
        text = torch.randn(count, 512, size.text_dim, device=device, dtype=transformer.dtype)
        times = torch.linspace(900, 100, count, device=device)
        best_s = float("inf")
        for _ in range(4):
            began_s = time.perf_counter()
            with torch.no_grad():
                transformer(hidden_states=hidden, timestep=times, encoder_hidden_states=text)
            if device != "cpu":
                torch.cuda.synchronize()
            best_s = min(best_s, time.perf_counter() - began_s)
        found[str(count)] = best_s
    return found


async def difference(pipeline: Any, replica: LocalReplica, jobs: Sequence[Job]) -> dict[str, float]:
    """How far frames made together are from the stock pipeline's, in steps of 255; the worst of the jobs."""
    made: list[Any] = []
    convert = video_model.to_frames

    def keep(video: torch.Tensor) -> Any:
        made.append(convert(video))
        return made[-1]

    video_model.to_frames = keep
    try:
        await run_sixfold(replica, jobs)
    finally:
        video_model.to_frames = convert
    worst, mean = 0.0, 0.0
    for job in jobs:
        expected = to_frames(stock_video(pipeline, job.wanted)).astype("int16")
        # Clips of other seeds are far away: the nearest is the job's own.
        nearest = min((abs(frames - expected) for frames in made), key=lambda distance: float(distance.mean()))
        worst, mean = max(worst, float(nearest.max())), max(mean, float(nearest.mean()))
    return {"max": worst, "mean": mean}


def summary(results: Sequence[Result]) -> dict[str, float]:
    """Of one side of one round."""
    firsts = sorted(result.first_progress_s for result in results)
    done = sorted(result.done_s for result in results)
    return {
        "first_progress_p50_s": statistics.median(firsts),
        "first_progress_max_s": firsts[-1],
        "done_p50_s": statistics.median(done),
        "done_p95_s": done[min(len(done) - 1, round(0.95 * (len(done) - 1)))],
        "clips_per_minute": 60 * len(results) / max(result.ended_at_s for result in results),
    }


async def compare(
    pipeline: Any, size: Size, arguments: argparse.Namespace, num_frames: int, count: int
) -> dict[str, Any]:
    """All rounds of one length of clips. The replica is idle while the stock side runs, and the event loop may wait."""
    if count == 0:
        per_forward = seconds_per_forward(pipeline, size, num_frames, arguments.rows, arguments.device)
        return {"frames": num_frames, "seconds_per_forward": per_forward}
    threads = arguments.threads
    model = new_model(pipeline, arguments.device, threads)
    replica = LocalReplica(model, limits=Limits(max_queue_units=1 << 60))
    warm = make_jobs(size, 2, num_frames, 0.0, seed=99)
    await run_sixfold(replica, warm)
    run_stock(pipeline, warm[:1], threads)
    one_s = run_stock(pipeline, warm[:1], threads)[0].done_s
    # The load is relative to what the stock pipeline can do: queues form, and empty again below 1.
    gap_s = one_s * statistics.mean(size.steps) / warm[0].wanted.num_inference_steps / arguments.load
    found: dict[str, Any] = {
        "frames": num_frames,
        "jobs": count,
        "mean_gap_s": gap_s,
        "seconds_per_forward": seconds_per_forward(pipeline, size, num_frames, arguments.rows, arguments.device),
        "difference_in_steps_of_255": await difference(pipeline, replica, make_jobs(size, 2, num_frames, 0.0, seed=7)),
        "rounds": [],
    }
    for number in range(arguments.rounds):
        jobs = make_jobs(size, count, num_frames, gap_s, seed=number)
        forwards, rows = model.num_forwards, model.num_rows
        sixfold = summary(await run_sixfold(replica, jobs))
        sixfold["rows_per_forward"] = (model.num_rows - rows) / (model.num_forwards - forwards)
        stock = summary(run_stock(pipeline, jobs, threads))
        found["rounds"].append({"sixfold": sixfold, "stock": stock})
        print(json.dumps({"frames": num_frames, "round": number, "sixfold": sixfold, "stock": stock}), flush=True)
    await replica.close()
    return found


def main(size: Size, lengths: Sequence[tuple[int, int]], default_device: str) -> None:
    """Runs and prints a table; ``--out`` keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU, to try the script")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--load", type=float, default=0.8, help="arrivals, as a share of the stock pipeline's capacity")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lengths", nargs="+", metavar="FRAMES:JOBS", help="0 jobs: seconds of a forward only")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    tiny = arguments.tiny or size is TINY
    size, lengths = (TINY, ((9, 8),)) if tiny else (size, lengths)
    if arguments.lengths:
        lengths = [(int(frames), int(jobs)) for frames, jobs in (each.split(":") for each in arguments.lengths)]
    arguments.device = "cpu" if tiny else default_device
    dtype = torch.float32 if arguments.device == "cpu" else torch.bfloat16
    torch.set_num_threads(arguments.threads)
    pipeline = build(size, arguments.device, dtype)
    device_name = torch.cuda.get_device_name() if arguments.device != "cpu" else "CPU"
    document = {
        "size": asdict(size),
        "device": device_name,
        "dtype": str(dtype),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "runs": [asyncio.run(compare(pipeline, size, arguments, frames, count)) for frames, count in lengths],
    }
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    print_table(document)


def print_table(document: dict[str, Any]) -> None:
    """Medians over the rounds, as markdown."""
    print(f"\n{document['size']['name']}, {document['device']}, {document['dtype']}, random weights\n")
    for run in document["runs"]:
        if "rounds" not in run:
            print(f"{run['frames']} frames, seconds per forward by rows:", run["seconds_per_forward"])
            continue
        print(f"{run['frames']} frames, {run['jobs']} jobs, one every {run['mean_gap_s']:.2f} s")
        print("seconds per forward by rows:", run["seconds_per_forward"])
        print("together against alone, in steps of 255:", run["difference_in_steps_of_255"])
        columns = [*run["rounds"][0]["sixfold"]]
        print("| side | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
        for side in ("stock", "sixfold"):
            cells = [
                f"{statistics.median(each[side][column] for each in run['rounds']):.2f}"
                if column in run["rounds"][0][side]
                else ""
                for column in columns
            ]
            print(f"| {side} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(TINY, ((9, 8),), "cpu")
