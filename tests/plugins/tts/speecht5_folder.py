"""A tiny SpeechT5 with random weights, its letters, its vocoder and three voices, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from transformers import (
    SpeechT5Config,
    SpeechT5ForTextToSpeech,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    SpeechT5Tokenizer,
)

_Network: Any = SpeechT5ForTextToSpeech  # all without types
_Vocoder: Any = SpeechT5HifiGan
_Tokenizer: Any = SpeechT5Tokenizer
_Config: Any = SpeechT5Config
_VocoderConfig: Any = SpeechT5HifiGanConfig
_Trainer: Any = sentencepiece.SentencePieceTrainer

NUM_SPEAKER_VALUES = 6


def save_speecht5(folder: Path) -> Path:
    """Writes the folder; sentences end after some frames, or are cut at ten a letter."""
    text = folder / "letters.txt"
    text.write_text("the quick brown fox jumps over the lazy dog, isn't it? yes! no; so: well.\n" * 3)
    _Trainer.train(
        input=str(text),
        model_prefix=str(folder / "spm_char"),
        model_type="char",
        vocab_size=36,
        character_coverage=1.0,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer: Any = _Tokenizer(str(folder / "spm_char.model"))
    tokenizer.save_pretrained(folder)
    torch.default_generator.manual_seed(5)
    config: Any = _Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=24,
        num_mel_bins=8,
        speech_decoder_prenet_units=12,
        speech_decoder_postnet_units=8,
        speech_decoder_postnet_layers=2,
        speaker_embedding_dim=NUM_SPEAKER_VALUES,
        max_speech_positions=400,
        max_text_positions=100,
        conv_dim=(4,),
        conv_stride=(5,),
        conv_kernel=(10,),
    )
    network: Any = _Network(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0 if "prob_out" not in name else 30.0)
        network.speech_decoder_postnet.prob_out.bias.fill_(-5.0)
    network.save_pretrained(folder)
    vocoder: Any = _Vocoder(
        _VocoderConfig(
            model_in_dim=8,
            upsample_initial_channel=16,
            upsample_rates=[4, 4],
            upsample_kernel_sizes=[8, 8],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1, 3]],
        )
    )
    with torch.no_grad():
        for parameter in vocoder.parameters():
            parameter.mul_(4.0)
    vocoder.save_pretrained(folder / "vocoder")
    random = np.random.default_rng(3)
    voices: Any = {name: random.normal(size=NUM_SPEAKER_VALUES).astype(np.float32) for name in ("anna", "bert", "cleo")}
    np.savez(folder / "voices.npz", **voices)
    return folder
