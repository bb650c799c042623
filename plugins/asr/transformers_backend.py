"""Whisper through transformers, driven in batches that mix requests: see `WhisperBackend`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    AutoFeatureExtractor,
    AutoTokenizer,
    GenerationMixin,
    LogitsProcessorList,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperForConditionalGeneration,
)
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor
from transformers.modeling_outputs import BaseModelOutput

from sixfold.core.parallel.leader import Leader
from sixfold.plugins.asr.alignment import align_tokens
from sixfold.plugins.asr.backend import Alignment, Hypothesis, Mel, padded
from sixfold.plugins.asr.encoder_ranks import EncoderRanks

_LIBRARY: Any = WhisperForConditionalGeneration  # the library is typed in part only
_GENERATE: Any = cast("Any", GenerationMixin).generate


class TransformersBackend:
    """A row is a tensor [1500, width] on the device.

    Args:
        path: A folder that ``save_pretrained`` wrote, with tokenizer and feature extractor.
        device: "cpu" or "cuda:N".
        dtype: Of the weights.
        beam_size: At temperature 0.
        best_of: Above it.
        prepare: Called with the model before it is used.
    """

    is_multilingual: bool

    def __init__(
        self,
        path: Path,
        *,
        device: str,
        dtype: torch.dtype,
        beam_size: int,
        best_of: int,
        prepare: Callable[[Any], object] = lambda _model: None,
    ) -> None:
        model: Any = _LIBRARY.from_pretrained(path, dtype=dtype, local_files_only=True)
        self._model = model.to(device).eval()
        prepare(self._model)
        self._device = device
        self._dtype = dtype
        self._ranks: EncoderRanks | None = None
        self._beam_size = beam_size
        self._best_of = best_of
        extractor: Any = AutoFeatureExtractor
        tokenizer: Any = AutoTokenizer
        self._extractor = extractor.from_pretrained(path, local_files_only=True)
        self.tokenizer: Any = tokenizer.from_pretrained(path, local_files_only=True).backend_tokenizer
        self._config = model.generation_config
        self.is_multilingual = bool(self.tokenizer.token_to_id("<|yue|>") or getattr(self._config, "lang_to_id", None))
        self.max_length_tokens: int = model.config.max_target_positions
        self._start: int = self._token("<|startoftranscript|>")
        self._end: int = self._token("<|endoftext|>")
        self._no_timestamps: int = self._token("<|notimestamps|>")
        self._languages: dict[int, str] = {
            token: name[2:-2]
            for name, token in cast("dict[str, int]", getattr(self._config, "lang_to_id", None) or {}).items()
        }

    def divide(self, leader: Leader, place: str) -> None:
        """Lets the other ranks of the replica encode along from now on.

        Raises:
            ConfigError: They give something else, or can't load the model.
            SixfoldError: A rank ended, or did not load in time.
        """
        ranks = EncoderRanks(self._model, leader)
        ranks.meet(self._model, place)
        self._ranks = ranks

    def features(self, samples: NDArray[np.float32]) -> Mel:
        """See `WhisperBackend`."""
        padding = self._extractor(samples, sampling_rate=16_000, return_tensors="np", padding="max_length")
        frames = -(-len(samples) // self._extractor.hop_length)
        return np.ascontiguousarray(padding.input_features[0][:, :frames], dtype=np.float32)

    @torch.inference_mode()
    def encode(self, mels: Sequence[Mel]) -> list[Any]:
        """See `WhisperBackend`."""
        batch = torch.tensor(padded(mels)).to(self._device, self._dtype)
        ranks = self._ranks
        hidden: Tensor = self._model.model.encoder(batch).last_hidden_state if ranks is None else ranks.encode(batch)
        return [row.clone() for row in hidden]

    @torch.inference_mode()
    def detect_language(self, rows: Sequence[Any]) -> list[tuple[str, float]]:
        """See `WhisperBackend`."""
        start = torch.full((len(rows), 1), self._start, device=self._device)
        logits: Tensor = self._logits(torch.stack(list(rows)), start)[:, -1].float()
        ids = list(self._languages)
        probs = logits[:, ids].softmax(dim=-1)
        best = cast("list[int]", probs.argmax(dim=-1).tolist())  # pyright: ignore[reportUnknownMemberType] - torch's own hole
        return [(self._languages[ids[i]], float(row[i])) for i, row in zip(best, probs, strict=True)]

    @torch.inference_mode()
    def generate(
        self, rows: Sequence[Any], prompts: Sequence[Sequence[int]], *, temperature: float, suppressed: Sequence[int]
    ) -> list[Hypothesis]:
        """See `WhisperBackend`."""
        hidden = torch.stack(list(rows))
        given = torch.tensor([list(prompt) for prompt in prompts], device=self._device)
        num_samples = self._best_of if temperature > 0 else 1
        search: dict[str, Any] = {"num_beams": self._beam_size, "do_sample": False}
        if temperature > 0:
            search = {"do_sample": True, "temperature": temperature, "top_k": 0, "num_return_sequences": num_samples}
        generated: Tensor = _GENERATE(
            self._model,
            encoder_outputs=BaseModelOutput(last_hidden_state=cast("Any", hidden)),
            decoder_input_ids=given,
            logits_processor=self._processors(given.shape[1], suppressed),
            max_length=self.max_length_tokens,
            eos_token_id=self._end,
            pad_token_id=self._end,
            **search,
        )
        candidates = self._judged(hidden.repeat_interleave(num_samples, dim=0), generated, given.shape[1])
        return [
            max(candidates[i : i + num_samples], key=lambda one: one.avg_logprob)
            for i in range(0, len(candidates), num_samples)
        ]

    @torch.inference_mode()
    def align(
        self, rows: Sequence[Any], start: Sequence[int], texts: Sequence[Sequence[int]], num_frames: Sequence[int]
    ) -> list[Alignment]:
        """See `WhisperBackend`."""
        heads: list[tuple[int, int]] = [tuple(pair) for pair in self._config.alignment_heads]
        prefix = [*start, self._no_timestamps]
        longest = max(len(text) for text in texts)
        ids = torch.full((len(rows), len(prefix) + longest + 1), self._end, device=self._device)
        for row, text in zip(ids, texts, strict=True):
            row[: len(prefix) + len(text)] = torch.tensor([*prefix, *text])
        implementation: str = self._model.config._attn_implementation
        self._model.set_attn_implementation("eager")  # the others don't tell where they look
        try:
            out = self._model(
                decoder_input_ids=ids,
                encoder_outputs=BaseModelOutput(last_hidden_state=cast("Any", torch.stack(list(rows)))),
                output_attentions=True,
            )
        finally:
            self._model.set_attn_implementation(implementation)
        weights = torch.stack([out.cross_attentions[layer][:, head] for layer, head in heads], dim=1).float().cpu()
        probs = out.logits.float().softmax(dim=-1)
        found: list[Alignment] = []
        for row, (text, frames) in enumerate(zip(texts, num_frames, strict=True)):
            first = len(start)
            mine = weights[row, :, first : first + len(text) + 1, : max(1, frames // 2)].numpy()
            at = torch.arange(len(prefix) - 1, len(prefix) - 1 + len(text))
            token_probs = probs[row, at, torch.tensor(list(text))].tolist()
            found.append(Alignment(align_tokens(mine), tuple(token_probs)))
        return found

    def close(self) -> None:
        """See `WhisperBackend`."""
        del self._model

    def _token(self, text: str) -> int:
        token: int = self.tokenizer.token_to_id(text)
        return token

    def _logits(self, hidden: Tensor, ids: Tensor) -> Tensor:
        encoded = BaseModelOutput(last_hidden_state=cast("Any", hidden))
        logits: Tensor = self._model(decoder_input_ids=ids, encoder_outputs=encoded).logits
        return logits

    def _processors(self, num_prompt: int, suppressed: Sequence[int]) -> LogitsProcessorList:
        blank = [self.tokenizer.encode(" ", add_special_tokens=False).ids[0], self._end]
        suppress: Any = SuppressTokensLogitsProcessor
        at_begin: Any = SuppressTokensAtBeginLogitsProcessor
        times: Any = WhisperTimeStampLogitsProcessor
        return LogitsProcessorList(
            [
                suppress([*suppressed], device=self._device),
                at_begin(blank, num_prompt, device=self._device),
                times(self._config, begin_index=num_prompt),
            ]
        )

    def _judged(self, hidden: Tensor, ids: Tensor, num_prompt: int) -> list[Hypothesis]:
        """How sure the model is of finished texts, by one more pass over all of them."""
        logprobs = self._logits(hidden, ids).float().log_softmax(dim=-1)
        silence = self.tokenizer.token_to_id("<|nospeech|>") or self.tokenizer.token_to_id("<|nocaptions|>")
        at_start = int((ids[0] == self._start).nonzero()[0, 0])
        found: list[Hypothesis] = []
        rows = cast("list[list[int]]", ids.tolist())  # pyright: ignore[reportUnknownMemberType] - torch's own hole
        for row, its_logprobs in zip(rows, logprobs, strict=True):
            text = row[num_prompt:]
            length = text.index(self._end) if self._end in text else len(text)
            ended = [*text[:length], self._end][: len(text)]
            at = torch.arange(num_prompt - 1, num_prompt - 1 + len(ended))
            total = float(its_logprobs[at, torch.tensor(ended)].sum())
            no_speech = float(its_logprobs[at_start, silence].exp()) if silence is not None else 0.0
            found.append(Hypothesis(tuple(text[:length]), total / (length + 1), no_speech))
        return found
