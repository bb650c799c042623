"""Who speaks: voice embeddings by the GE2E network of Resemblyzer's weights, clustered by average linkage.

Imports torch only when a network is loaded: without the option ``diarization`` a model needs none of it.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sixfold.core.errors import SourceError
from sixfold.plugins.asr.audio import decode_file
from sixfold.plugins.asr.schema import SAMPLE_RATE_HZ, KnownSpeaker, Segment, Word
from sixfold.plugins.asr.untyped import scipy_hierarchy
from sixfold.plugins.asr.voice_features import PARTIAL_FRAMES, voice_mel

Embedding = NDArray[np.float32]

_PARTIAL_HOP_FRAMES = PARTIAL_FRAMES // 2
_MAX_BATCH_PARTIALS = 256
_MAX_REFERENCE_S = 30.0
_WEIGHTS_FILE = "pretrained.pt"


class VoiceRegion:
    """Speech without a pause, taken to be one speaker's. Owner: its window.

    Attributes:
        start_s: In the file.
        stop_s: Likewise.
        first: First sample within the window.
        last: Sample after the last one within the window.
        embedding: Of length 1, once it is computed.
    """

    __slots__ = ("embedding", "first", "last", "start_s", "stop_s")

    def __init__(self, start_s: float, stop_s: float, first: int, last: int) -> None:
        self.start_s = start_s
        self.stop_s = stop_s
        self.first = first
        self.last = last
        self.embedding: Embedding | None = None


class SpeakerModel:
    """A loaded speaker network.

    Args:
        path: ``pretrained.pt`` or the folder that holds it.
        max_distance: Voices nearer than this cosine distance are one speaker.

    Raises:
        SourceError: The file is no such network.
    """

    def __init__(self, path: Path, *, max_distance: float) -> None:
        self.max_distance = max_distance
        self._network = _load(path / _WEIGHTS_FILE if path.is_dir() else path)

    def embed(self, voices: Sequence[NDArray[np.int16]]) -> list[Embedding]:
        """One embedding of length 1 for each voice: the mean over overlapping stretches of 1.6 s."""
        partials = [_partials(voice) for voice in voices]
        flat = np.concatenate(partials)
        found: list[Embedding] = []
        for start in range(0, len(flat), _MAX_BATCH_PARTIALS):
            found.append(self._network(flat[start : start + _MAX_BATCH_PARTIALS]))
        rows = np.concatenate(found)
        embeddings: list[Embedding] = []
        at = 0
        for part in partials:
            mean = rows[at : at + len(part)].mean(axis=0)
            embeddings.append(mean / max(float(np.linalg.norm(mean)), 1e-9))
            at += len(part)
        return embeddings

    def embed_regions(self, windows: Sequence[tuple[NDArray[np.int16] | None, Sequence[VoiceRegion]]]) -> None:
        """Sets the embedding of every region of some windows, in one batch."""
        regions = [region for _samples, its in windows for region in its]
        voices = [
            samples[region.first : max(region.last, region.first + 1)]
            for samples, its in windows
            if samples is not None
            for region in its
        ]
        for region, embedding in zip(regions, self.embed(voices), strict=True):
            region.embedding = embedding

    def recognize(self, known: Sequence[KnownSpeaker]) -> list[tuple[str, Embedding]]:
        """Names and embeddings of the speakers that the client brought along.

        Raises:
            InvalidRequest: A reference can't be decoded.
        """
        param = "known_speaker_references"
        voices = [
            np.concatenate(list(decode_file(one.audio, max_duration_s=_MAX_REFERENCE_S, param=param))) for one in known
        ]
        return (
            [(one.name, embedding) for one, embedding in zip(known, self.embed(voices), strict=True)] if known else []
        )


def cluster(embeddings: Sequence[Embedding], max_distance: float) -> list[int]:
    """A number for each embedding, equal for one speaker; numbered in the order in which speakers begin.

    Average linkage over cosine distances: two groups are one speaker while their mean distance is within the bound.
    """
    if len(embeddings) < 2:
        return [0] * len(embeddings)
    labels: list[int] = scipy_hierarchy.fcluster(
        scipy_hierarchy.linkage(np.stack(embeddings).astype(np.float64), method="average", metric="cosine"),
        t=max_distance,
        criterion="distance",
    ).tolist()
    order = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return [order[label] for label in labels]


def label_segments(
    segments: Sequence[Segment],
    voices: Sequence[VoiceRegion],
    known: Sequence[tuple[str, Embedding]],
    model: SpeakerModel,
) -> tuple[Segment, ...]:
    """Cuts the segments where the speaker changes and says whose they are.

    Args:
        segments: With their words.
        voices: All regions of the file, in order.
        known: Speakers that keep their names; the others are A, B, C...
        model: For its distance.
    """
    heard = [voice for voice in voices if voice.embedding is not None]
    embeddings = [voice.embedding for voice in heard if voice.embedding is not None]
    numbers = cluster(embeddings, model.max_distance)
    names = _names(embeddings, numbers, known, model.max_distance)
    found: list[Segment] = []
    for segment in segments:
        turns: list[tuple[str, list[Word]]] = []
        for word in segment.words:
            name = names[numbers[_nearest(heard, (word.start_s + word.end_s) / 2)]] if heard else "A"
            if turns and turns[-1][0] == name:
                turns[-1][1].append(word)
            else:
                turns.append((name, [word]))
        found += [_turn(segment, name, words) for name, words in turns]
    return tuple(_merged(found))


def _turn(segment: Segment, speaker: str, words: Sequence[Word]) -> Segment:
    return Segment(
        text="".join(word.text for word in words),
        start_s=words[0].start_s,
        end_s=words[-1].end_s,
        words=tuple(words),
        speaker=speaker,
        temperature=segment.temperature,
        avg_logprob=segment.avg_logprob,
        no_speech_prob=segment.no_speech_prob,
    )


def _merged(segments: Sequence[Segment]) -> list[Segment]:
    """Neighbours of one speaker that finish a sentence together become one segment."""
    found: list[Segment] = []
    for segment in segments:
        last = found[-1] if found else None
        if (
            last is not None
            and last.speaker == segment.speaker
            and not last.text.rstrip().endswith((".", "!", "?", "。"))
        ):
            found[-1] = _turn(last, str(last.speaker), (*last.words, *segment.words))
        else:
            found.append(segment)
    return found


def _nearest(voices: Sequence[VoiceRegion], at_s: float) -> int:
    def distance_s(index: int) -> float:
        voice = voices[index]
        return max(voice.start_s - at_s, at_s - voice.stop_s, 0.0)

    return min(range(len(voices)), key=distance_s)


def _names(
    embeddings: Sequence[Embedding], numbers: Sequence[int], known: Sequence[tuple[str, Embedding]], max_distance: float
) -> dict[int, str]:
    """A name for each cluster: the nearest known speaker within the bound (each at most once), else the next letter."""
    centres = {
        number: np.mean([e for e, its in zip(embeddings, numbers, strict=True) if its == number], axis=0)
        for number in dict.fromkeys(numbers)
    }
    pairs = sorted(
        (1 - float(centre @ voice) / max(float(np.linalg.norm(centre)), 1e-9), number, name)
        for number, centre in centres.items()
        for name, voice in known
    )
    names: dict[int, str] = {}
    for distance, number, name in pairs:
        if distance <= max_distance and number not in names and name not in names.values():
            names[number] = name
    letters = iter(_letters(len(centres)))
    return {number: names.get(number) or next(letters) for number in centres}


def _letters(count: int) -> list[str]:
    letters = string.ascii_uppercase
    return [letters[i] if i < 26 else f"{letters[i // 26 - 1]}{letters[i % 26]}" for i in range(count)]


def _partials(voice: NDArray[np.int16]) -> NDArray[np.float32]:
    """[partials, 160, 40]: overlapping stretches of 1.6 s; a shorter voice is repeated."""
    samples = voice.astype(np.float32) / 32768.0
    least = PARTIAL_FRAMES * SAMPLE_RATE_HZ // 100
    if len(samples) < least:
        samples = np.pad(samples, (0, least - len(samples)), mode="wrap")
    mel = voice_mel(samples)
    starts = range(0, max(1, len(mel) - PARTIAL_FRAMES + 1), _PARTIAL_HOP_FRAMES)
    return np.stack([mel[start : start + PARTIAL_FRAMES] for start in starts])


def _load(path: Path) -> Any:
    """The network as a function [partials, 160, 40] -> [partials, 256].

    Source: Wan et al. 2018, Generalized End-to-End Loss for Speaker Verification; the shape is that of the weights.
    """
    import torch
    from torch import nn

    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
        lstm = nn.LSTM(40, 256, num_layers=3, batch_first=True)
        linear = nn.Linear(256, 256)
        lstm.load_state_dict({k.removeprefix("lstm."): v for k, v in state.items() if k.startswith("lstm.")})
        linear.load_state_dict({k.removeprefix("linear."): v for k, v in state.items() if k.startswith("linear.")})
    except Exception as error:  # torch.load raises nearly anything for a file that is not its own
        raise SourceError(
            f"The diarization source holds no speaker network of Resemblyzer's kind: {error}. Name its {_WEIGHTS_FILE}."
        ) from error
    lstm.eval()

    def run(partials: NDArray[np.float32]) -> Embedding:
        with torch.inference_mode():
            hidden: Any = lstm(torch.tensor(partials))[1][0][-1]
            rows: Any = torch.relu(linear(hidden))
            result: Embedding = (rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-9)).numpy()
            return result

    return run
