"""Trains the text-to-video model: ``python -m examples.train_tiny.train_video --out examples/tiny_video``."""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXPipeline
from torch import Tensor

from examples.train_tiny.check_video import check_video
from examples.train_tiny.clips import sample_clip
from examples.train_tiny.evaluate_video import evaluate
from examples.train_tiny.render import draw, pack_clips
from examples.train_tiny.training import (
    Budget,
    compile_blocks,
    drop_prompts,
    pick_device,
    reconstruction_loss,
    sample_sigma,
    save_half,
    seed_everything,
    train,
)
from examples.train_tiny.video_model import (
    FRAME_RATES,
    LATENT_SHAPE,
    SCHEDULER_SHIFT,
    TRAINING_SHIFT,
    VideoDenoiser,
    build_pipeline,
    build_vae,
    normalize,
    pack,
    set_statistics,
)

# The share of clips that teach to go on from a given first frame, for the stock image-to-video pipeline.
FIRST_FRAME_SHARE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Bank:
    """The training set, drawn once: numbers for ``draw`` and the prompts, on the device that trains."""

    items: Tensor
    backgrounds: Tensor
    prompts: tuple[str, ...]


def build_bank(rng: random.Random, num_clips: int, device: torch.device) -> Bank:
    """Draws clips and leaves out the held-out combinations."""
    clips = [clip for clip in (sample_clip(rng) for _ in range(num_clips)) if not clip.is_held_out]
    items, backgrounds = pack_clips(clips)
    return Bank(
        items=items.to(device), backgrounds=backgrounds.to(device), prompts=tuple(clip.prompt for clip in clips)
    )


def draw_clips(items: Tensor, backgrounds: Tensor) -> Tensor:
    """Paints clips: items [batch, frames, 1, 5] give [batch, 3, frames, 64, 64] in -1 to 1."""
    frames = draw(items.flatten(0, 1), backgrounds.flatten())
    return frames.unflatten(0, backgrounds.shape).transpose(1, 2)


def count_kept(clips: Tensor, prompts: Sequence[str]) -> int:
    """How many clips [clips, 3, frames, 64, 64] still show what their prompts say: the most that a denoiser can reach."""
    frames = (clips.permute(0, 2, 3, 4, 1).clamp(-1, 1).float() * 127.5 + 127.5).round().byte().cpu().numpy()
    return sum(not check_video(clip, prompt) for clip, prompt in zip(frames, prompts, strict=False))


def train_vae(vae: AutoencoderKLLTXVideo, bank: Bank, *, budget: Budget, batch_size: int) -> AutoencoderKLLTXVideo:
    """Trains the autoencoder on drawn clips and stores the statistics of its latents; returns it."""

    def loss() -> Tensor:
        index = torch.randint(len(bank.items), (batch_size,), device=bank.items.device)
        clips = draw_clips(bank.items[index], bank.backgrounds[index])
        posterior = vae.encode(clips).latent_dist
        return reconstruction_loss(clips, vae.decode(posterior.sample()).sample, posterior.mean, posterior.logvar)

    train(vae, loss, budget=budget, learning_rate=2e-3, label="video autoencoder")
    with torch.no_grad():
        clips = draw_clips(bank.items[:512], bank.backgrounds[:512])
        latents = torch.cat([vae.encode(part).latent_dist.mode() for part in clips.split(128)])
        decoded = torch.cat([vae.decode(part).sample for part in latents.split(128)])
    print(f"video autoencoder: mean error {float((decoded - clips).abs().mean()) * 127.5:.2f} of 255")
    print(f"video autoencoder: keeps {count_kept(decoded, bank.prompts)} of {len(decoded)} clips", flush=True)
    set_statistics(vae, latents)
    return vae


@torch.no_grad()
def encode_bank(vae: AutoencoderKLLTXVideo, bank: Bank, chunk: int = 512) -> Tensor:
    """Returns the normalized latent tokens [clips, 320, 16] of the whole bank."""
    latents: list[Tensor] = []
    for items, backgrounds in zip(bank.items.split(chunk), bank.backgrounds.split(chunk), strict=True):
        mean = vae.encode(draw_clips(items, backgrounds)).latent_dist.mode()
        latents.append(pack(normalize(mean, vae)).bfloat16())
    return torch.cat(latents)


def train_denoiser(pipeline: LTXPipeline, bank: Bank, *, budget: Budget, batch_size: int, learning_rate: float) -> int:
    """Trains the transformer together with the text encoder by flow matching; returns the number of steps."""
    latents = encode_bank(pipeline.vae, bank)
    device = latents.device

    def tokenize(prompts: list[str]) -> Tensor:
        return pipeline.tokenizer(prompts, padding="max_length", max_length=128, return_tensors="pt").input_ids.to(
            device
        )

    token_ids, empty_ids = tokenize(list(bank.prompts)), tokenize([""])
    print(f"video: {len(latents)} clips, latents deviate by {float(latents.float().std()):.3f}", flush=True)
    model = VideoDenoiser(pipeline)
    compile_blocks(model.transformer.transformer_blocks)
    is_first_frame = torch.arange(latents.shape[1], device=device)[None] < LATENT_SHAPE[1] * LATENT_SHAPE[2]
    frame_rates = torch.tensor(FRAME_RATES, dtype=torch.float32, device=device)

    def loss() -> Tensor:
        index = torch.randint(len(latents), (batch_size,), device=device)
        clean = latents[index].float()
        noise, sigma = torch.randn_like(clean), sample_sigma(batch_size, device, TRAINING_SHIFT)
        gives_first_frame = torch.rand(batch_size, 1, device=device) < FIRST_FRAME_SHARE
        is_given = is_first_frame & gives_first_frame
        counts = (~is_given).float()[..., None]
        token_sigma = sigma[:, None] * counts.squeeze(-1)
        share = token_sigma[..., None]
        predicted = model(
            (1 - share) * clean + share * noise,
            token_sigma,
            drop_prompts(token_ids[index], empty_ids),
            frame_rates[torch.randint(len(frame_rates), (1,), device=device)],
        )
        return (counts * (predicted.float() - (noise - clean)).square()).mean() / counts.mean()

    return train(model, loss, budget=budget, learning_rate=learning_rate, label="video denoiser")


def main() -> None:
    """Trains, writes the pipeline's folder and reports the accuracy on held-out prompts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished pipeline")
    parser.add_argument("--init", type=Path, help="folder of a pipeline to go on from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-clips", type=int, default=120_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--vae-steps", type=int, default=12_000, help="0 with --init: it stays as it is")
    parser.add_argument("--vae-seconds", type=float, default=float("inf"))
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="end earlier, with the best that time allows"
    )
    parser.add_argument("--num-prompts", type=int, default=200, help="held-out prompts of the evaluation")
    args = parser.parse_args()
    rng, device = seed_everything(args.seed), pick_device()
    bank = build_bank(rng, args.num_clips, device)
    vae_budget = Budget(steps=args.vae_steps, seconds=args.vae_seconds)
    if args.init:
        pipeline = LTXPipeline.from_pretrained(args.init).to(device)
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=SCHEDULER_SHIFT)
        if args.vae_steps:
            train_vae(pipeline.vae, bank, budget=vae_budget, batch_size=64)
    else:
        pipeline = build_pipeline(train_vae(build_vae().to(device), bank, budget=vae_budget, batch_size=64)).to(device)
    train_denoiser(
        pipeline,
        bank,
        budget=Budget(steps=args.steps, seconds=args.seconds),
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
    )
    save_half(pipeline, args.out)
    evaluate(args.out, num_prompts=args.num_prompts, steps=20, guidance_scale=3.0)


if __name__ == "__main__":
    main()
