"""CTC models (wav2vec 2.0 and its kin) as the core sees them: a window is heard in one step."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sixfold.core.batching.model import Granted, ModelInfo, Outcome, StepRange
from sixfold.core.errors import InvalidRequest
from sixfold.core.messages import Cost
from sixfold.plugins.asr.backend import Mel
from sixfold.plugins.asr.job import Job
from sixfold.plugins.asr.schema import SAMPLE_RATE_HZ, AsrOutput, Segment, TranscribeInput, Word
from sixfold.plugins.asr.speakers import SpeakerModel
from sixfold.plugins.asr.window_model import WindowModel, WindowSequence, window_done
from sixfold.plugins.asr.windows import AudioWindow

_HOP = 160
"""Samples of one frame of cost, 10 ms."""


class CtcModel(WindowModel[WindowSequence]):
    """A loaded CTC model.

    Args:
        network: Of transformers, on its device.
        processor: Its feature extractor and tokenizer.
        info: What the loader found out.
        max_audio_s: Longest audio of one request.
        speakers: Tells voices apart, or None.
    """

    def __init__(
        self, network: Any, processor: Any, *, info: ModelInfo, max_audio_s: float, speakers: SpeakerModel | None
    ) -> None:
        super().__init__(info=info, max_audio_s=max_audio_s, speakers=speakers)
        self._network = network
        self._extractor = processor.feature_extractor
        self._tokenizer = processor.tokenizer
        # A group norm runs over the whole row, padding included: only equal lengths may share a batch then.
        self._pads = bool(self._extractor.return_attention_mask)

    @property
    def step_range(self) -> StepRange:
        """From half a minute to what still fits any memory."""
        return StepRange(min_units=3_000, initial_units=12_000, max_units=96_000)

    def window_units(self, num_frames: int) -> int:
        """See `WindowModel`: the window's own frames."""
        return max(1, num_frames)

    def check(self, wanted: TranscribeInput) -> None:
        """See `WindowModel`: these models know neither prompts nor temperatures nor translation."""
        if wanted.task == "translate":
            raise InvalidRequest("A CTC model can't translate. Use a Whisper model.", param="model")
        if wanted.prompt:
            raise InvalidRequest("A CTC model takes no prompt. Leave it out.", param="prompt")
        if wanted.temperature:
            raise InvalidRequest("A CTC model does not sample. Leave the temperature out.", param="temperature")
        if wanted.wants_logprobs:
            raise InvalidRequest("A CTC model gives no token probabilities.", param="include")
        self._check_diarization(wanted)

    def features(self, samples: NDArray[np.float32]) -> Mel:
        """See `WindowModel`: the samples themselves, as the model normalizes them, 160 a frame."""
        whole = np.pad(samples, (0, -len(samples) % _HOP))
        values = self._extractor(whole, sampling_rate=SAMPLE_RATE_HZ, return_tensors="np").input_values[0]
        return np.ascontiguousarray(values, dtype=np.float32).reshape(-1, _HOP).T

    def make_sequence(self, job: Job, index: int, window: AudioWindow, mel: Mel) -> WindowSequence:
        """See `WindowModel`."""
        job.language = job.wanted.language
        return WindowSequence(job, index, window, mel)

    def cost(self, sequence: WindowSequence) -> Cost:
        """See `StepModel`: a window can't be cut."""
        units = max(1, sequence.num_frames)
        return Cost(units=units, min_units=units, batch_key=None if self._pads else sequence.num_frames)

    def step(self, batch: Sequence[Granted[WindowSequence]]) -> Sequence[Outcome[AsrOutput]]:
        """Hears all windows; each is done."""
        began_s = time.perf_counter()
        windows = [granted.sequence for granted in batch]
        real = [window for window in windows if window.num_frames]
        heard = self._hear(real) if real else []
        if self._speakers is not None and any(window.voices for window in real):
            self._speakers.embed_regions([(window.samples, window.voices) for window in real if window.voices])
        for window, segments in zip(real, heard, strict=True):
            window.segments = segments
        self._count(real, time.perf_counter() - began_s)
        return [Outcome(output=window_done(window), done=True) for window in windows]

    def release(self, sequence: WindowSequence) -> None:
        """See `StepModel`."""
        sequence.mel = np.zeros((1, 0), dtype=np.float32)
        sequence.samples = None

    @torch.inference_mode()
    def _hear(self, windows: Sequence[WindowSequence]) -> list[list[Segment]]:
        rows = [torch.tensor(window.mel.T.reshape(-1)) for window in windows]
        device = self._network.device
        values = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device, self._network.dtype)
        mask = None
        if self._pads:
            lengths = torch.tensor([len(row) for row in rows])
            mask = (torch.arange(values.shape[1]) < lengths[:, None]).to(device)
        logits: Tensor = self._network(values, attention_mask=mask).logits.float().cpu()
        found: list[list[Segment]] = []
        for window, row, its_logits in zip(windows, rows, logits, strict=True):
            num_frames = int(self._network._get_feat_extract_output_lengths(torch.tensor(len(row))))
            found.append(self._segments(window, its_logits[:num_frames]))
        return found

    def _segments(self, window: WindowSequence, logits: Tensor) -> list[Segment]:
        probs, ids = logits.softmax(dim=-1).max(dim=-1)
        decoded = self._tokenizer.decode(ids, output_word_offsets=True)
        frame_s = self._network.config.inputs_to_logits_ratio / SAMPLE_RATE_HZ
        words = tuple(
            Word(
                text=" " + offset["word"],
                start_s=round(window.start_s + offset["start_offset"] * frame_s, 3),
                end_s=round(window.start_s + offset["end_offset"] * frame_s, 3),
                probability=float(probs[offset["start_offset"] : offset["end_offset"]].mean()),
            )
            for offset in decoded.word_offsets
        )
        if not words:
            return []
        sure = [max(word.probability, 1e-10) for word in words]
        return [
            Segment(
                text="".join(word.text for word in words),
                start_s=words[0].start_s,
                end_s=words[-1].end_s,
                avg_logprob=sum(map(math.log, sure)) / len(sure),
                words=words,
            )
        ]
