"""Whisper's encoder over the ranks of a replica: windows are divided among them, or the tokens of each window."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sixfold.core.errors import ConfigError
from sixfold.core.parallel.leader import Leader
from sixfold.core.parallel.modules import RankModule
from sixfold.core.parallel.plan import GatherOutput, SplitInput, SplitPlan
from sixfold.core.parallel.tokens import even_lengths

_MODULE = "encoder"
_MAX_DIFFERENCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 2e-2}

# The convolutions before the layers are a hundredth of the work: every rank computes them for all tokens.
PLAN = SplitPlan(
    parts={"layers.0": [SplitInput(name="hidden_states", dim=1)], "layer_norm": [GatherOutput(index=0, dim=1)]},
    splits_text=False,
)


def rank_modules(model: Any) -> dict[str, RankModule]:
    """What all ranks have of a Whisper of transformers."""
    return {_MODULE: RankModule(module=model.model.encoder, plan=PLAN)}


class EncoderRanks:
    """Rank 0's side. Used by the device thread alone.

    Args:
        model: A Whisper of transformers.
        leader: Of the ranks.
    """

    def __init__(self, model: Any, leader: Leader) -> None:
        self._encoder = model.model.encoder
        self._leader = leader

    def encode(self, mels: Tensor) -> Tensor:
        """Encodes windows.

        Args:
            mels: [windows, bins, frames].

        Returns:
            [windows, tokens, width].

        Raises:
            DeviceLost: A rank is gone or hangs.
        """
        counts = even_lengths(len(mels), self._leader.num_row_groups)
        parts = [{"input_features": part} if len(part) else None for part in torch.split(mels, list(counts))]
        answers = self._leader.run(self._encoder, parts)
        return torch.cat([answer.last_hidden_state for answer in answers])

    def meet(self, model: Any, place: str) -> None:
        """Meets the others, and proves that they give what this process gives alone.

        Raises:
            ConfigError: They do not, or one can't load the model.
            SixfoldError: A rank ended, or did not load in time.
        """
        self._leader.share(rank_modules(model))
        config, weight = model.config, self._encoder.conv1.weight
        shape = (2, config.num_mel_bins, 2 * config.max_source_positions)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
        with torch.inference_mode():
            alone: Tensor = self._encoder(noise).last_hidden_state.float()
            over_ranks = self.encode(noise).float()
        difference = float((over_ranks - alone).abs().max() / alone.abs().max())
        allowed = _MAX_DIFFERENCE[weight.dtype]
        if not difference <= allowed:
            raise ConfigError(
                f"{place}: divided as {self._leader.degrees}, the encoder gives something else than in one process (relative "
                f"difference {difference:.2g}, allowed {allowed:g}), so it is not served. Remove 'parallel', and please report "
                "this model."
            )
