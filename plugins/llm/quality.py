"""Measures what quantization does to a decoder: perplexity, agreement on the likeliest next token, and time of a step."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sixfold.core.errors import ConfigError
from sixfold.core.family import LoadContext
from sixfold.core.runtime.jit import set_num_threads
from sixfold.core.runtime.quantization.apply import linear_shapes
from sixfold.core.runtime.quantization.plan import LinearShape
from sixfold.core.runtime.quantization.policy import QuantizationPolicy
from sixfold.core.runtime.quantization.quality import Quality, QualityProbe, read_text, sample_text
from sixfold.plugins.llm.batch_layout import lay_out
from sixfold.plugins.llm.cached_tokens import CachedTokens
from sixfold.plugins.llm.decoder import Decoder
from sixfold.plugins.llm.decoder_loader import DecoderUse, load_decoder
from sixfold.plugins.llm.optimization import components
from sixfold.plugins.llm.options import TransformersOptions
from sixfold.plugins.llm.stock_model import choose_dtype, read_files, read_model
from sixfold.plugins.llm.text_codec import TextCodec

_WINDOW_TOKENS = 256
_MAX_WINDOWS = 16
_NUM_STEPS = 12


class DecoderQuality(QualityProbe):
    """See `QualityProbe`. Inputs are one text file; by default a text of this project, of 1,400 words and ten subjects."""

    def __init__(self, context: LoadContext, inputs: Path | None) -> None:
        super().__init__(context, inputs)
        assert isinstance(context.options, TransformersOptions)
        self._options = context.options.model_copy(update={"kv_cache_bytes": None})
        self._device = torch.device(context.device)
        self._codec: TextCodec = read_files(lambda: TextCodec.load(context.path), "tokenizer")
        text = sample_text() if inputs is None else read_text(inputs)
        token_ids = self._codec.encode(text, add_special_tokens=False)
        whole = len(token_ids) // _WINDOW_TOKENS
        if not whole:
            raise ConfigError(f"--inputs: the text has {len(token_ids)} tokens. Give at least {_WINDOW_TOKENS}.")
        self._windows = [
            token_ids[i * _WINDOW_TOKENS : (i + 1) * _WINDOW_TOKENS] for i in range(min(whole, _MAX_WINDOWS))
        ]
        self._likeliest: Tensor | None = None
        self._perplexity = math.nan
        torch.set_num_threads(context.num_threads)
        set_num_threads(context.num_threads)

    @property
    def inputs_text(self) -> str:
        """See `QualityProbe`."""
        name = "the text that comes with the family" if self.inputs is None else str(self.inputs)
        return f"{len(self._windows) * _WINDOW_TOKENS} tokens of {name}"

    def layers(self) -> Mapping[str, tuple[LinearShape, ...]]:
        """See `QualityProbe`."""
        dtype = choose_dtype(self._options.dtype, self._device)
        model = read_files(lambda: read_model(self.context.path, dtype, self._device), "weights")
        return {name: linear_shapes(part.module) for name, part in components(model).items()}

    def measure(self, policy: QuantizationPolicy | None, *, timed: bool) -> Quality:
        """See `QualityProbe`."""
        loaded = load_decoder(
            self.context.path,
            self._codec,
            self._options,
            DecoderUse(num_blocks=2 + 10 * -(-_WINDOW_TOKENS // self._options.block_size_tokens), quantization=policy),
            device=self._device,
            model_name=self.context.model_name,
            report=lambda _fraction, _what: None,
        )
        decoder = loaded.decoder
        logits = [self._logits(decoder, window) for window in self._windows]
        likeliest = torch.stack([window.argmax(-1) for window in logits])
        losses = [
            torch.nn.functional.cross_entropy(window[:-1], torch.tensor(tokens[1:], device=window.device))
            for window, tokens in zip(logits, self._windows, strict=True)
        ]
        perplexity = math.exp(float(torch.stack(losses).mean()))
        if policy is None:
            self._likeliest, self._perplexity = likeliest, perplexity
        assert self._likeliest is not None, "the first call is without a policy"
        figures = {
            "perplexity": perplexity,
            "perplexity_ratio": perplexity / self._perplexity,
            "top1_agreement": float((likeliest == self._likeliest).float().mean()),
            "cache_token_bytes": decoder.cache.num_bytes / (decoder.cache.pool.num_blocks * decoder.cache.block_size),
        }
        if timed:
            figures |= {f"step_of_{count}_ms": self._step_ms(decoder, count) for count in (1, 8)}
        return Quality(
            figures=figures,
            weight_bytes=loaded.num_bytes - decoder.cache.num_bytes,
        )

    def _logits(self, decoder: Decoder, tokens: list[int]) -> Tensor:
        """[tokens, vocabulary], float32."""
        row = CachedTokens(tokens)
        try:
            decoder.cache.reserve(row, len(tokens))
            layout = lay_out([row], [len(tokens)], block_size=decoder.cache.block_size, device=decoder.device)
            with torch.inference_mode():
                logits = decoder.forward(
                    dataclasses.replace(layout, logit_rows=torch.arange(len(tokens), device=decoder.device))
                )
        finally:
            decoder.cache.free(row)
        assert logits is not None
        return logits.float()

    def _step_ms(self, decoder: Decoder, num_rows: int) -> float:
        """Median time of a step of so many sequences of half a window."""
        rows = [CachedTokens(self._windows[0]) for _ in range(num_rows)]
        times_ms: list[float] = []
        try:
            for row in rows:
                decoder.cache.reserve(row, len(self._windows[0]))
            sizes = [_WINDOW_TOKENS // 2, *[1] * _NUM_STEPS]
            for size in sizes:
                layout = lay_out(rows, [size] * num_rows, block_size=decoder.cache.block_size, device=decoder.device)
                rows_wanted = torch.arange(num_rows, device=decoder.device)
                if size == 1:  # a step samples from every row, which the layout leaves out while tokens are known
                    layout = dataclasses.replace(layout, logit_rows=rows_wanted)
                began_s = time.perf_counter()
                with torch.inference_mode():
                    decoder.forward(layout)
                if decoder.device.type == "cuda":
                    torch.cuda.synchronize()
                times_ms.append((time.perf_counter() - began_s) * 1e3)
                for row in rows:
                    row.num_computed += size
        finally:
            for row in rows:
                decoder.cache.free(row)
        return statistics.median(times_ms[2:])
