"""Whisper's encoder over ranks beside the library's; runs in every rank."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from sixfold.core.parallel.mesh import Mesh
from sixfold.plugins.asr.encoder_ranks import EncoderRanks, rank_modules
from tests.core.parallel.orders import FakeLeader, follow


def whisper() -> Any:
    """A tiny one with random weights, the same in every rank."""
    transformers.set_seed(5)
    config = transformers.WhisperConfig(
        d_model=48,
        encoder_layers=3,
        decoder_layers=1,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_mel_bins=16,
        max_source_positions=75,
        vocab_size=50,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        init_std=0.2,
    )
    model: Any = transformers.WhisperForConditionalGeneration
    return model(config).eval()


def difference(mesh: Mesh) -> float | None:
    """The largest difference of encoded windows, in rank 0."""
    model = whisper()
    if mesh.rank > 0:
        follow(mesh, rank_modules(model))
        return None
    leader: Any = FakeLeader(mesh)
    try:
        ranks = EncoderRanks(model, leader)
        ranks.meet(model, "models.a.parallel")
        windows = torch.randn(3, 16, 150, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            expected = model.model.encoder(windows).last_hidden_state
            return max(
                float((ranks.encode(windows[:n]) - expected[:n]).abs().max() / expected.abs().max()) for n in (3, 1, 2)
            )
    finally:
        leader.close()
