"""The training loop that both models share: a step or time budget, warm-up and cosine, averaged weights, flow matching."""

import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

WARMUP_STEPS = 200
REPORT_EVERY_S = 20.0
SYNCHRONIZE_EVERY = 20
EMA_DECAY = 0.998


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """When a training stage ends: after so many steps or so many seconds, whichever comes first.

    The learning rate follows the budget that ends it, so only a run bounded by steps repeats exactly.
    """

    steps: int
    seconds: float

    def spent(self, step: int, elapsed_s: float) -> float:
        """Returns the part of the budget that is used up, 1 or more at its end."""
        return max(step / self.steps, elapsed_s / self.seconds)


def pick_device() -> torch.device:
    """Returns the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seed_everything(seed: int) -> random.Random:
    """Seeds torch and returns the generator from which scenes are drawn."""
    torch.manual_seed(seed)
    torch.set_float32_matmul_precision("high")
    return random.Random(seed)


def compile_blocks(blocks: nn.ModuleList) -> None:
    """Compiles repeated blocks in place: one compilation serves them all, and fuses what eager mode spends its time on."""
    if torch.cuda.is_available():
        for block in blocks:
            block.compile(dynamic=False)


class Step:
    """One training step: loss, gradients, AdamW and the moving average of the weights; owns all that changes in it.

    On a GPU the step becomes one CUDA graph after a few plain runs, since such small models spend most of a step on launching
    kernels. ``loss`` must therefore draw its randomness from torch on the device, and move nothing between host and device.
    """

    def __init__(self, parameters: list[nn.Parameter], loss: Callable[[], Tensor], learning_rate: float) -> None:
        device = parameters[0].device
        self.parameters, self.loss, self.device = parameters, loss, device
        self.average = [parameter.detach().clone() for parameter in parameters]
        self.learning_rate = torch.tensor(learning_rate, device=device)
        self.total = torch.zeros((), device=device)
        on_gpu = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            parameters, lr=self.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True, capturable=on_gpu
        )
        self.graph: torch.cuda.CUDAGraph | None = None

    def run(self) -> None:
        """Takes one step and adds its loss to ``total``."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda", cache_enabled=False):
            value = self.loss()
        value.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list[Tensor](self.parameters), 1 - EMA_DECAY)
            self.total += value.detach()

    def warm_up(self) -> None:
        """Takes a few plain steps, which compile what there is to compile, and records the graph on a GPU."""
        if self.device.type != "cuda":
            return
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(4):
                self.optimizer.zero_grad(set_to_none=True)
                self.run()
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.run()
        except RuntimeError as error:
            print(f"No CUDA graph, so training is several times slower: {error}", flush=True)
        else:
            self.graph = graph

    def __call__(self) -> None:
        """Takes one step."""
        if self.graph is not None:
            self.graph.replay()
            return
        self.optimizer.zero_grad(set_to_none=True)
        self.run()


def train(model: nn.Module, loss: Callable[[], Tensor], *, budget: Budget, learning_rate: float, label: str) -> int:
    """Minimizes ``loss()`` over the parameters of ``model``, which ends with their moving average.

    Returns:
        The number of steps taken.
    """
    model.train()
    take_step = Step([parameter for parameter in model.parameters() if parameter.requires_grad], loss, learning_rate)
    started_s = reported_s = time.monotonic()
    take_step.learning_rate.fill_(learning_rate / WARMUP_STEPS)
    take_step.warm_up()
    print(f"{label}: first steps took {time.monotonic() - started_s:.0f} s", flush=True)
    step = since_report = 0
    while (spent := budget.spent(step, time.monotonic() - started_s)) < 1:
        rate = min(1.0, (step + 1) / WARMUP_STEPS) * (0.01 + 0.99 * math.cos(spent * math.pi / 2))
        take_step.learning_rate.fill_(learning_rate * rate)
        take_step()
        step, since_report = step + 1, since_report + 1
        if step % SYNCHRONIZE_EVERY == 0 and take_step.graph is not None:
            torch.cuda.synchronize()  # else the host runs ahead, and the clock measures launches only
        if (now_s := time.monotonic()) - reported_s > REPORT_EVERY_S:
            mean = float(take_step.total) / since_report
            print(f"{label}: step {step}, {now_s - started_s:.0f} s, loss {mean:.4f}", flush=True)
            take_step.total.zero_()
            since_report, reported_s = 0, now_s
    with torch.no_grad():
        for parameter, mean_weight in zip(take_step.parameters, take_step.average, strict=True):
            parameter.copy_(mean_weight)
    model.eval()
    print(f"{label}: {step} steps in {time.monotonic() - started_s:.0f} s", flush=True)
    return step


def reconstruction_loss(pictures: Tensor, decoded: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """Autoencoder loss: absolute and squared error, and a slight pull of the latents towards a standard normal.

    Args:
        pictures: [batch, 3, ..., height, width] in -1 to 1, with background in the top left corner.
        decoded: What the autoencoder made of them.
        mean: Of the latents' distribution.
        logvar: Of the latents' distribution.
    """
    # Shapes cover a few per cent of a picture. Without this weight the autoencoder first learns to paint backgrounds only.
    is_shape = (pictures - pictures[..., :1, :1]).abs().amax(1, keepdim=True) > 0.05
    weight = 1 + 9 * is_shape.float()
    error = decoded.float() - pictures
    divergence = 0.5 * (mean.float().square() + logvar.float().exp() - 1 - logvar.float()).mean()
    return (weight * (error.abs() + error.square())).mean() / weight.mean() + 2e-5 * divergence


def sample_sigma(batch_size: int, device: torch.device, shift: float = 1.0) -> Tensor:
    """Draws noise levels in 0 to 1: one half uniform, one half crowded around the middle, then shifted towards 1.

    Args:
        batch_size: How many.
        device: Where they are drawn.
        shift: Above 1 for many latents that say the same (a plain background): what they show together, its colour, is
            visible through noise that hides each of them, so it is decided in the noisiest steps and must be learned there.

    Source: Esser et al. 2024, sections 3.1 (logit-normal sampling) and 5.3.2 (shifting).
    """
    middle = torch.randn(batch_size, device=device).sigmoid()
    sigma = torch.where(torch.rand(batch_size, device=device) < 0.5, middle, torch.rand(batch_size, device=device))
    return shift * sigma / (1 + (shift - 1) * sigma)


def drop_prompts(token_ids: Tensor, empty_ids: Tensor, share: float = 0.1) -> Tensor:
    """Replaces a share of the prompts [batch, tokens] by the empty one, as classifier-free guidance needs."""
    dropped = torch.rand(len(token_ids), 1, device=token_ids.device) < share
    return torch.where(dropped, empty_ids, token_ids)


def save_half(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Writes the pipeline with 16-bit weights that load as 32-bit ones by default."""
    pipeline.to(torch.float16)
    pipeline.save_pretrained(folder)
    for config_path in (folder / "model_index.json", *folder.glob("*/config.json")):
        config = json.loads(config_path.read_text())
        config.pop("_name_or_path", None)  # the folder of a pipeline that this run went on from
        config_path.write_text(json.dumps(config, indent=2) + "\n")
    # transformers loads in the type that the configuration names, diffusers in float32: without this they would differ.
    for config_path in folder.glob("text_encoder*/config.json"):
        config = json.loads(config_path.read_text())
        config["dtype"] = "float32"
        config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    pipeline.to(torch.float32)
