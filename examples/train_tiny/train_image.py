"""Trains the text-to-image model: ``python -m examples.train_tiny.train_image --out examples/tiny_image``."""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from torch import Tensor

from examples.train_tiny.evaluate_image import evaluate
from examples.train_tiny.image_model import (
    T5_PAD_TOKENS,
    T5_PADS_EACH,
    CountedPadding,
    ImageDenoiser,
    build_pipeline,
    build_vae,
    tokenize,
)
from examples.train_tiny.render import draw, pack_scenes
from examples.train_tiny.scenes import sample_scene
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Bank:
    """The training set, drawn once: numbers for ``draw`` and the prompts, on the device that trains."""

    items: Tensor
    backgrounds: Tensor
    prompts: tuple[str, ...]


def build_bank(rng: random.Random, num_scenes: int, device: torch.device) -> Bank:
    """Draws scenes and leaves out the held-out combinations."""
    scenes = [scene for scene in (sample_scene(rng) for _ in range(num_scenes)) if not scene.is_held_out]
    items, backgrounds = pack_scenes(scenes)
    prompts = tuple(scene.prompt for scene in scenes)
    return Bank(items=items.to(device), backgrounds=backgrounds.to(device), prompts=prompts)


def train_vae(bank: Bank, *, budget: Budget, batch_size: int) -> AutoencoderKL:
    """Trains the autoencoder on drawn pictures and sets its scale so that latents have mean 0 and deviation 1."""
    vae = build_vae().to(bank.items.device)

    def loss() -> Tensor:
        index = torch.randint(len(bank.items), (batch_size,), device=bank.items.device)
        pictures = draw(bank.items[index], bank.backgrounds[index])
        posterior = vae.encode(pictures).latent_dist
        return reconstruction_loss(pictures, vae.decode(posterior.sample()).sample, posterior.mean, posterior.logvar)

    train(vae, loss, budget=budget, learning_rate=2e-3, label="image autoencoder")
    with torch.no_grad():
        pictures = draw(bank.items[:1024], bank.backgrounds[:1024])
        latents = vae.encode(pictures).latent_dist.mode()
        error = (vae.decode(latents).sample - pictures).abs().mean()
    print(f"image autoencoder: mean error {float(error) * 127.5:.2f} of 255")
    vae.register_to_config(shift_factor=float(latents.mean()), scaling_factor=1 / float(latents.std()))
    return vae


def refine_decoder(vae: AutoencoderKL, bank: Bank, *, budget: Budget, batch_size: int) -> None:
    """Trains the decoder on, behind an encoder that stays as it is, so that latents keep their meaning."""
    vae.encoder.requires_grad_(False)

    def loss() -> Tensor:
        index = torch.randint(len(bank.items), (batch_size,), device=bank.items.device)
        pictures = draw(bank.items[index], bank.backgrounds[index])
        with torch.no_grad():
            mean = vae.encode(pictures).latent_dist.mode()
        decoded = vae.decode(mean + 0.03 * torch.randn_like(mean)).sample
        return reconstruction_loss(pictures, decoded, mean, torch.zeros_like(mean))

    train(vae, loss, budget=budget, learning_rate=1e-3, label="image decoder")
    vae.encoder.requires_grad_(True)


@torch.no_grad()
def encode_bank(vae: AutoencoderKL, bank: Bank, chunk: int = 1024) -> Tensor:
    """Returns the normalized latents [scenes, 8, 16, 16] of the whole bank, so that no step pays for the encoder."""
    latents: list[Tensor] = []
    for items, backgrounds in zip(bank.items.split(chunk), bank.backgrounds.split(chunk), strict=True):
        mean = vae.encode(draw(items, backgrounds)).latent_dist.mode()
        latents.append(((mean - vae.config.shift_factor) * vae.config.scaling_factor).bfloat16())
    return torch.cat(latents)


def train_denoiser(
    pipeline: StableDiffusion3Pipeline, bank: Bank, *, budget: Budget, batch_size: int, learning_rate: float
) -> int:
    """Trains the transformer together with the text encoders by flow matching; returns the number of steps."""
    latents = encode_bank(pipeline.vae, bank)
    device = latents.device
    token_ids, empty_ids = (tokenize(pipeline, prompts).to(device) for prompts in (list(bank.prompts), [""]))
    print(f"image: {len(latents)} scenes, latents deviate by {float(latents.float().std()):.3f}", flush=True)
    model = ImageDenoiser(pipeline)
    stock = model.transformer.attn_processors
    model.transformer.set_attn_processor(
        CountedPadding(num_counted=T5_PAD_TOKENS, times=T5_PADS_EACH)  # pyright: ignore[reportArgumentType]
    )
    # Not the text encoders: transformers collects their hidden states by patching layers anew in every call, so compiled
    # layers would be compiled again each step, which also breaks the capture of a CUDA graph.
    compile_blocks(model.transformer.transformer_blocks)

    def loss() -> Tensor:
        index = torch.randint(len(latents), (batch_size,), device=device)
        clean = latents[index].float()
        noise, sigma = torch.randn_like(clean), sample_sigma(batch_size, device)
        share = sigma[:, None, None, None]
        predicted = model((1 - share) * clean + share * noise, sigma, drop_prompts(token_ids[index], empty_ids))
        return (predicted.float() - (noise - clean)).square().mean()

    steps = train(model, loss, budget=budget, learning_rate=learning_rate, label="image denoiser")
    model.transformer.set_attn_processor(stock)
    return steps


def main() -> None:
    """Trains, writes the pipeline's folder and reports the accuracy on held-out prompts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished pipeline")
    parser.add_argument("--init", type=Path, help="folder of a pipeline to go on from; its encoder stays as it is")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-scenes", type=int, default=200_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--vae-steps", type=int, default=3000)
    parser.add_argument("--vae-seconds", type=float, default=float("inf"))
    parser.add_argument(
        "--decoder-seconds", type=float, default=0, help="with --init, train the decoder on for so long"
    )
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="end earlier, with the best that time allows"
    )
    parser.add_argument("--num-prompts", type=int, default=400, help="held-out prompts of the evaluation")
    args = parser.parse_args()
    rng, device = seed_everything(args.seed), pick_device()
    bank = build_bank(rng, args.num_scenes, device)
    if args.init:
        pipeline = StableDiffusion3Pipeline.from_pretrained(args.init).to(device)
        if args.decoder_seconds:
            decoder_budget = Budget(steps=1_000_000, seconds=args.decoder_seconds)
            refine_decoder(pipeline.vae, bank, budget=decoder_budget, batch_size=256)
    else:
        vae_budget = Budget(steps=args.vae_steps, seconds=args.vae_seconds)
        pipeline = build_pipeline(train_vae(bank, budget=vae_budget, batch_size=256)).to(device)
    train_denoiser(
        pipeline,
        bank,
        budget=Budget(steps=args.steps, seconds=args.seconds),
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
    )
    save_half(pipeline, args.out)
    evaluate(args.out, num_prompts=args.num_prompts, steps=20, guidance_scale=5.0)


if __name__ == "__main__":
    main()
