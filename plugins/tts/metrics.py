"""The histograms of speech models, with the stems that vLLM's omni servers use, in seconds."""

from __future__ import annotations

from sixfold.core.family import MetricKind, MetricSpec

_TTFP_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 60.0)
_RTF = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0, 10.0)
_DURATION_S = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)

TTFP = MetricSpec(
    name="audio_ttfp_seconds",
    kind=MetricKind.HISTOGRAM,
    buckets=_TTFP_S,
    help="From a request's arrival at the replica to its first packet of sound.",
)
RTF = MetricSpec(
    name="audio_rtf",
    kind=MetricKind.HISTOGRAM,
    buckets=_RTF,
    help="Seconds from arrival to the last sound over seconds of sound: the real-time factor that the client sees.",
)
DURATION = MetricSpec(
    name="audio_duration_seconds",
    kind=MetricKind.HISTOGRAM,
    buckets=_DURATION_S,
    help="Seconds of sound of a request.",
)
HISTOGRAMS = (TTFP, RTF, DURATION)
