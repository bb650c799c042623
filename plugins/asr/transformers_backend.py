"""Whisper through transformers, driven in batches that mix requests: see `WhisperBackend`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoTokenizer, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from sixfold.core.parallel.leader import Leader
from sixfold.core.runtime.cuda_graphs import Capture
from sixfold.plugins.asr.alignment import align_tokens
from sixfold.plugins.asr.backend import Alignment, Hypothesis, Mel, padded
from sixfold.plugins.asr.decoded import Decoded
from sixfold.plugins.asr.encoder_ranks import EncoderRanks
from sixfold.plugins.asr.static_decoder import StaticDecoder
from sixfold.plugins.asr.token_search import Search, TokenRules

_LIBRARY: Any = WhisperForConditionalGeneration  # the library is typed in part only


class TransformersBackend:
    """A row is a tensor [1500, width] on the device.

    Args:
        path: A folder that ``save_pretrained`` wrote, with tokenizer and feature extractor.
        device: "cpu" or "cuda:N".
        dtype: Of the weights.
        beam_size: At temperature 0.
        best_of: Above it.
        prepare: Called with the model before it is used.
        capture: Makes the decoder's steps repeatable; None computes each anew.
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
        capture: Capture | None = None,
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
        self._search: Search = "beams" if beam_size > 1 else "likeliest"
        self._decoder = self._static_decoder(capture)
        with torch.inference_mode():
            self._decoder.record(self._search, beam_size)

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
        before = torch.get_num_threads()  # of this thread of the pool: all of them compute beside each other
        torch.set_num_threads(1)
        try:
            padding = self._extractor(samples, sampling_rate=16_000, return_tensors="np", padding="max_length")
        finally:
            torch.set_num_threads(before)
        frames = -(-len(samples) // self._extractor.hop_length)
        return np.ascontiguousarray(padding.input_features[0][:, :frames], dtype=np.float32)

    @torch.inference_mode()
    def encode(self, mels: Sequence[Mel]) -> list[Any]:
        """See `WhisperBackend`."""
        batch = torch.as_tensor(padded(mels)).to(self._device, self._dtype)
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
        found: list[Hypothesis] = []
        most = self._decoder.max_windows
        for first in range(0, len(rows), most):
            windows = self._decoder.decode(
                torch.stack(list(rows[first : first + most])),
                prompts[first : first + most],
                start=list(prompts[0]).index(self._start),
                limit=self.max_length_tokens,
                search=self._search if temperature == 0 else "drawn",
                beams=self._beam_size if temperature == 0 else self._best_of,
                temperature=temperature,
                never=(*suppressed, self._no_timestamps),
            )
            found += [max(map(_hypothesis, texts), key=lambda one: one.avg_logprob) for texts in windows]
        return found

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
        del self._model, self._decoder

    def _token(self, text: str) -> int:
        token: int = self.tokenizer.token_to_id(text)
        return token

    def _logits(self, hidden: Tensor, ids: Tensor) -> Tensor:
        encoded = BaseModelOutput(last_hidden_state=cast("Any", hidden))
        logits: Tensor = self._model(decoder_input_ids=ids, encoder_outputs=encoded).logits
        return logits

    def _static_decoder(self, capture: Capture | None) -> StaticDecoder:
        first_time = self._no_timestamps + 1
        begins_within: int | None = getattr(self._config, "max_initial_timestamp_index", None)
        rules = TokenRules(
            end=self._end,
            first_time=first_time,
            max_first_time=None if begins_within is None else first_time + begins_within,
            vocabulary=self._model.proj_out.out_features,
            device=torch.device(self._device),
        )
        return StaticDecoder(
            self._model,
            rules,
            no_speech=self.tokenizer.token_to_id("<|nospeech|>") or self.tokenizer.token_to_id("<|nocaptions|>"),
            max_beams=max(self._beam_size, self._best_of),
            capture=capture,
        )


def _hypothesis(text: Decoded) -> Hypothesis:
    return Hypothesis(text.token_ids, text.total_logprob / (len(text.token_ids) + 1), text.silence)
