"""Whether a prompt shall be computed by another replica than the one that answers: a pure function of a snapshot."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLoad:
    """One replica at one moment.

    Attributes:
        prefill_tokens_per_s: Measured speed of computing prompts, alone.
        queued_tokens: Prompt tokens that wait there or are being computed.
        num_streams: Answers that it is writing.
    """

    prefill_tokens_per_s: float
    queued_tokens: float = 0.0
    num_streams: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptShape:
    """What is to be computed.

    Attributes:
        num_tokens: Of the prompt.
        cached_at_decode: Tokens whose keys and values the answering replica has (an estimate may be wrong: it costs time only).
        cached_at_prefill: Tokens that the other one has.
    """

    num_tokens: int
    cached_at_decode: int = 0
    cached_at_prefill: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitCosts:
    """Measured or configured once for a pair of roles.

    Attributes:
        kv_bytes_per_token: Of all layers.
        link_bytes_per_s: At which blocks travel, checksums included.
        overhead_s: Of a split alone: one more request and the handle.
        interference: How much a running stream slows while a prompt is computed beside it, 0 to 1: with chunked prefill the share
            of a step that the chunk takes.
        min_gain: A split must be cheaper by this share, so that noise in the estimates does not split for nothing.
    """

    kv_bytes_per_token: float
    link_bytes_per_s: float
    overhead_s: float = 0.005
    interference: float = 0.7
    min_gain: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitDecision:
    """The choice and what it rests on; costs are seconds of waiting, summed over all who wait.

    Attributes:
        split: Whether another replica computes the prompt.
        local_s: Cost of computing it where the answer is written.
        remote_s: Cost of computing it elsewhere and bringing it over; infinite where nobody else is there.
        reason: For logs and metrics.
    """

    split: bool
    local_s: float
    remote_s: float
    reason: str


def decide_split(
    prompt: PromptShape, decode: ReplicaLoad, prefill: ReplicaLoad | None, costs: SplitCosts
) -> SplitDecision:
    """Compares the waiting that both ways cause.

    Computed where the answer is written, a prompt waits for the prompts before it and slows each stream there while it runs.
    Computed elsewhere, it waits for the prompts there and for its blocks to travel, and slows no stream. So a short or mostly
    cached prompt, and any prompt on an idle replica, stays; long ones leave replicas that write many answers.

    Args:
        prompt: What is to be computed.
        decode: Who would answer.
        prefill: Who would compute; None if nobody is there.
        costs: Of the pair.
    """
    here = max(prompt.num_tokens - prompt.cached_at_decode, 0)
    compute_here_s = here / decode.prefill_tokens_per_s
    wait_here_s = decode.queued_tokens / decode.prefill_tokens_per_s + compute_here_s
    local_s = wait_here_s + decode.num_streams * costs.interference * compute_here_s
    if prefill is None:
        return SplitDecision(split=False, local_s=local_s, remote_s=float("inf"), reason="no prefill replica is there")
    there = max(prompt.num_tokens - prompt.cached_at_prefill, 0)
    remote_s = (
        (prefill.queued_tokens + there) / prefill.prefill_tokens_per_s
        + here * costs.kv_bytes_per_token / costs.link_bytes_per_s
        + costs.overhead_s
    )
    split = remote_s < local_s * (1.0 - costs.min_gain)
    reason = (
        f"{here} uncached tokens: {local_s * 1e3:.0f} ms of waiting here ({decode.num_streams} streams slowed), "
        f"{remote_s * 1e3:.0f} ms by way of a prefill replica"
    )
    return SplitDecision(split=split, local_s=local_s, remote_s=remote_s, reason=reason)
