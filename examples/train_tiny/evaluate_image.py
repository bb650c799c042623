"""Measures held-out accuracy: ``python -m examples.train_tiny.evaluate_image examples/tiny_image``."""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from numpy.typing import NDArray

from examples.train_tiny.check_image import check_image
from examples.train_tiny.scenes import sample_scene

EVALUATION_SEED = 1_000_003


def held_out_prompts(num_prompts: int, seed: int = EVALUATION_SEED) -> list[str]:
    """Returns prompts, all different, about combinations that training never shows.

    All name their background: without it a prompt can fit a combination that training does show.
    """
    rng, prompts = random.Random(seed), dict[str, None]()
    while len(prompts) < num_prompts:
        scene = sample_scene(rng)
        if scene.is_held_out and "background" in scene.prompt:
            prompts[scene.prompt] = None
    return list(prompts)


def generate(
    pipeline: StableDiffusion3Pipeline, prompts: list[str], *, steps: int, guidance_scale: float, batch_size: int = 100
) -> NDArray[np.uint8]:
    """Runs the stock pipeline, prompt number i with seed i; returns [prompts, 64, 64, 3]."""
    parts: list[NDArray[np.uint8]] = []
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        generators = [torch.Generator().manual_seed(start + index) for index in range(len(part))]
        images = pipeline(
            part, num_inference_steps=steps, guidance_scale=guidance_scale, generator=generators, output_type="np"
        ).images
        parts.append((images * 255).round().astype(np.uint8))
    return np.concatenate(parts)


def evaluate(folder: Path, *, num_prompts: int, steps: int, guidance_scale: float) -> float:
    """Prints the failures and returns the share of held-out prompts whose picture passes the pixel check."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(disable=True)
    prompts = held_out_prompts(num_prompts)
    pictures = generate(pipeline, prompts, steps=steps, guidance_scale=guidance_scale)
    num_right = 0
    for prompt, picture in zip(prompts, pictures, strict=True):
        problems = check_image(picture, prompt)
        num_right += not problems
        if problems:
            print(f"  {prompt}: {problems[0]}"[:300])
    print(f"image, {steps} steps, guidance {guidance_scale}: {num_right} of {num_prompts} held-out prompts", flush=True)
    return num_right / num_prompts


def main() -> None:
    """Evaluates one folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-prompts", type=int, default=400)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=5.0)
    args = parser.parse_args()
    evaluate(args.folder, num_prompts=args.num_prompts, steps=args.steps, guidance_scale=args.guidance_scale)


if __name__ == "__main__":
    main()
