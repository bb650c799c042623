"""What the steps of a speaking decoder read and write for each sentence, at fixed places: so a step can be a CUDA graph."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

DROPS_AHEAD = 32
"""Frames whose numbers have a place."""


class SpeechSlots:
    """Owner: the device thread.

    Args:
        count: Most sentences.
        speaker: Values of a voice.
        frame: Frames of a spectrogram that are spoken at once, and mel bins of each.
        drops: Layers of the input, and units of each.
        like: Of their type and place.

    Attributes:
        everyone: [slots], the numbers from 0.
        lengths: [slots], frames that were spoken.
        ends: [slots], whether the frame of the last step is a sentence's last.
        speakers: [slots, values].
        frames: [slots, frames, at once, mel bins]; grows.
        kept: [slots, frames ahead, layers, units], what the input keeps for a frame, at its number modulo those ahead.
    """

    def __init__(
        self, count: int, *, speaker: int, frame: tuple[int, int], drops: tuple[int, int], like: Tensor
    ) -> None:
        device = like.device
        self.everyone = torch.arange(count, device=device)
        self.lengths = torch.zeros(count, dtype=torch.long, device=device)
        self.ends = torch.zeros(count, dtype=torch.bool, device=device)
        self.speakers = like.new_zeros(count, speaker)
        self.frames = like.new_zeros(count, 0, *frame)
        self.kept = torch.zeros(count, DROPS_AHEAD, *drops, dtype=torch.bool, device=device)

    def make_room(self, num_frames: int) -> None:
        """For at least so many frames in each slot."""
        more = num_frames - self.frames.shape[1]
        if more > 0:
            self.frames = F.pad(self.frames, (0, 0, 0, 0, 0, more))

    def forget_frames(self) -> None:
        """Gives back the room of all slots."""
        self.frames = self.frames.new_zeros(len(self.frames), 0, *self.frames.shape[2:])
