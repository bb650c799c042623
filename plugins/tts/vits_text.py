"""What VITS makes of a text before it has frames: means, variances, durations. On GPUs a replayed CUDA graph a length.

A row is computed alone, since durations are rounded and must not depend on company. The stock modules then start some seven
hundred kernels from Python for a millisecond or two of work, and their splines ask the device which numbers are inside the
bound: here all are computed.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sixfold.core.runtime.cuda_graphs import Capture

_log = logging.getLogger(__name__)

MAX_RECORDED = 128
"""Lengths; memory_need.py counts their graphs."""
_SEEN_FIRST = 2
_SEEN_FULL = 16
"""Times that a length comes before it is recorded: while there is room, and when another is forgotten for it. To record takes
two runs and a wait for the device, so where lengths come and go it is done for few of the sentences."""
_LEAST = 1e-3  # of a spline's bins and slopes, as the model was trained


@dataclass(frozen=True, slots=True)
class TextStats:
    """Of a sentence; hold until the next one is computed.

    Attributes:
        means: [1, tokens, channels].
        log_variances: Likewise.
        log_durations: [1, 1, tokens].
    """

    means: Tensor
    log_variances: Tensor
    log_durations: Tensor


@dataclass(frozen=True, slots=True)
class _Recorded:
    ids: Tensor
    noise: Tensor
    speaker: Tensor | None
    replay: Callable[[], None]
    stats: TextStats


class VitsText:
    """Text encoder and duration predictor. Owner: the device thread.

    Args:
        network: transformers' ``VitsModel`` in evaluation mode.
        capture: Makes a call repeatable; None computes all.
    """

    def __init__(self, network: Any, capture: Capture | None) -> None:
        self._network = network
        self._capture = capture
        self._recorded: OrderedDict[int, _Recorded] = OrderedDict()
        self._seen: OrderedDict[int, int] = OrderedDict()  # times that lengths came since they were not recorded

    def __call__(self, ids: Tensor, noise: Tensor, speaker: Tensor | None) -> TextStats:
        """Reads a sentence.

        Args:
            ids: [1, tokens].
            noise: [1, 2, tokens], standard normal; not looked at by models whose durations are not random.
            speaker: [1, channels, 1]; None for a model with one.
        """
        recorded = self._recording(ids, noise, speaker)
        if recorded is None:
            return self._compute(ids, noise, speaker)
        recorded.ids.copy_(ids)
        recorded.noise.copy_(noise)
        if recorded.speaker is not None and speaker is not None:
            recorded.speaker.copy_(speaker)
        recorded.replay()
        return recorded.stats

    def _recording(self, ids: Tensor, noise: Tensor, speaker: Tensor | None) -> _Recorded | None:
        """Of this length; one that comes again and again is recorded."""
        length = ids.shape[1]
        if self._capture is None:
            return None
        if length not in self._recorded:
            if not self._came_often(length):
                return None
            if len(self._recorded) == MAX_RECORDED:  # before, so that there is never room for more
                self._recorded.popitem(last=False)
            try:
                self._recorded[length] = self._record(self._capture, ids, noise, speaker)
            except RuntimeError as error:
                _log.warning("Texts are not read by CUDA graphs, so they take longer: %s", error)
                self._capture = None
                self._recorded.clear()
                return None
        self._recorded.move_to_end(length)
        return self._recorded[length]

    def _came_often(self, length: int) -> bool:
        """Counts that it came; a length that is recorded and then forgotten begins anew."""
        times = self._seen.pop(length, 0) + 1
        if times >= (_SEEN_FIRST if len(self._recorded) < MAX_RECORDED else _SEEN_FULL):
            return True
        self._seen[length] = times
        if len(self._seen) > 4 * MAX_RECORDED:
            self._seen.popitem(last=False)
        return False

    def _record(self, capture: Capture, ids: Tensor, noise: Tensor, speaker: Tensor | None) -> _Recorded:
        ids, noise = ids.clone(), noise.clone()
        speaker = None if speaker is None else speaker.clone()
        places: list[Tensor] = []

        def compute() -> None:
            stats = self._compute(ids, noise, speaker)
            found = (stats.means, stats.log_variances, stats.log_durations)
            if not places:  # the call before the recording
                places.extend(map(torch.empty_like, found))
            for place, value in zip(places, found, strict=True):
                place.copy_(value)

        return _Recorded(ids, noise, speaker, capture(compute), TextStats(*places))

    def _compute(self, ids: Tensor, noise: Tensor, speaker: Tensor | None) -> TextStats:
        network = self._network
        mask = torch.ones(1, ids.shape[1], 1, dtype=network.dtype, device=ids.device)
        hidden, means, log_variances = _encoded(network.text_encoder, ids, mask)
        hidden, mask = hidden.transpose(1, 2), mask.transpose(1, 2)
        predictor = network.duration_predictor
        if network.config.use_stochastic_duration_prediction:
            found = _drawn_durations(predictor, hidden, mask, noise * network.noise_scale_duration, speaker)
        else:
            found = predictor(hidden, mask, speaker)
        return TextStats(means, log_variances, found)


def _encoded(encoder: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the stock encoder makes of one text: hidden states, means and log variances, each [1, tokens, channels].

    Its layers are called one by one: some versions of the whole make a mask of a number of the host while a graph is recorded.
    """
    hidden: Tensor = encoder.embed_tokens(ids) * math.sqrt(encoder.config.hidden_size)
    for layer in encoder.encoder.layers:
        hidden = layer(hidden, attention_mask=None, padding_mask=mask)[0]
    means, log_variances = encoder.project(hidden.transpose(1, 2)).transpose(1, 2).chunk(2, dim=2)
    return hidden, means, log_variances


def _drawn_durations(predictor: Any, hidden: Tensor, mask: Tensor, latents: Tensor, speaker: Tensor | None) -> Tensor:
    """The stock predictor's reverse, without anything that asks the device; [1, 1, tokens]."""
    given = predictor.conv_pre(hidden)
    if speaker is not None:
        given = given + predictor.cond(speaker)
    given = predictor.conv_proj(predictor.conv_dds(given, mask)) * mask
    affine, _unused, *flows = predictor.flows  # one flow is not used, as in the paper's code
    for flow in reversed(flows):
        latents = _flow_back(flow, latents.flip(1), mask, given)
    log_durations: Tensor = affine(latents.flip(1), mask, reverse=True)[0][:, :1]
    return log_durations


def _flow_back(flow: Any, latents: Tensor, mask: Tensor, given: Tensor) -> Tensor:
    first, second = latents.chunk(2, dim=1)
    hidden = flow.conv_proj(flow.conv_dds(flow.conv_pre(first), mask, given)) * mask
    parts = hidden.unflatten(1, (first.shape[1], -1)).transpose(2, 3)
    widths, heights, slopes = parts.split([flow.num_bins, flow.num_bins, flow.num_bins - 1], dim=3)
    scale = math.sqrt(flow.filter_channels)
    second = unspline(second, widths / scale, heights / scale, slopes, bound=flow.tail_bound)
    return torch.cat([first, second], dim=1) * mask


def unspline(values: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, *, bound: float) -> Tensor:
    """The inverse of a monotonic rational-quadratic spline; values outside the bound stay as they are.

    Args:
        values: [...].
        widths: [..., bins], logits of the bins' widths.
        heights: Likewise of their heights.
        slopes: [..., bins - 1], of the slopes between them before the softplus.
        bound: The spline is on -bound to bound.

    Source: Durkan et al. 2019, Neural Spline Flows, equations 6 to 8 (the root that does not cancel).
    """
    x_edges, y_edges = (_edges(logits, bound) for logits in (widths, heights))
    # A slope of 1 at the ends, where the identity goes on.
    slopes = _LEAST + F.softplus(F.pad(slopes, (1, 1), value=math.log(math.exp(1 - _LEAST) - 1)))
    y = values.clamp(-bound, bound)
    bins = (y[..., None] >= y_edges[..., :-1]).sum(dim=-1, keepdim=True).clamp(min=1) - 1

    def at(edges: Tensor, offset: int = 0) -> Tensor:
        return edges.gather(-1, bins + offset)[..., 0]

    x, width = at(x_edges), at(x_edges, 1) - at(x_edges)
    low, height = at(y_edges), at(y_edges, 1) - at(y_edges)
    slope, here, there = height / width, at(slopes), at(slopes, 1)
    bend = (y - low) * (here + there - 2 * slope)
    a = height * (slope - here) + bend
    b = height * here - bend
    c = -slope * (y - low)
    root = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
    return torch.where(values.abs() <= bound, root * width + x, values)


def _edges(logits: Tensor, bound: float) -> Tensor:
    """[..., bins + 1] from -bound to bound."""
    num_bins = logits.shape[-1]
    shares = _LEAST + (1 - _LEAST * num_bins) * logits.softmax(dim=-1)
    inner = 2 * bound * shares.cumsum(dim=-1)[..., :-1] - bound
    return F.pad(F.pad(inner, (1, 0), value=-bound), (0, 1), value=bound)
