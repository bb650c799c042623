"""What the two endpoints' answers have in common: their head, usage, and the cheap way to a chunk's bytes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from sixfold.plugins.llm.generation import Generation
from sixfold.plugins.llm.kv_handle import KvHandle

JSON = msgspec.json.Encoder()


class CachedTokens(msgspec.Struct, frozen=True):
    """Details of a prompt's tokens."""

    cached_tokens: int


class ReasoningTokens(msgspec.Struct, frozen=True):
    """Details of an answer's tokens."""

    reasoning_tokens: int


class UsageObject(msgspec.Struct, frozen=True):
    """OpenAI's ``usage``."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens


class KvTransferObject(msgspec.Struct, frozen=True):
    """What the server that gives the answer needs, to be sent there as the request's ``kv_transfer_params``."""

    handle: KvHandle
    do_remote_prefill: bool = True


def kv_transfer_object(generation: Generation) -> KvTransferObject | msgspec.UnsetType:
    """The handle of a finished request, if it has one."""
    return msgspec.UNSET if generation.kv_handle is None else KvTransferObject(generation.kv_handle)


def usage_object(counts: Mapping[str, int]) -> UsageObject:
    """OpenAI's form of a finished request's counts."""
    prompt, completion = counts["prompt_tokens"], counts["completion_tokens"]
    return UsageObject(
        prompt,
        completion,
        prompt + completion,
        CachedTokens(counts.get("cached_tokens", 0)),
        ReasoningTokens(counts.get("reasoning_tokens", 0)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What every object of one answer repeats.

    Attributes:
        id: Unique per answer.
        created: Unix time in seconds.
        model: The name that the client used.
    """

    id: str
    created: int
    model: str

    @classmethod
    def new(cls, prefix: str, model: str) -> Head:
        """The head of an answer that begins now."""
        return cls(id=f"{prefix}-{uuid.uuid4().hex}", created=int(time.time()), model=model)


class ChunkTemplate:
    """Frames of one stream, made by joining bytes: only what differs between chunks is encoded.

    Args:
        head: Of the answer.
        object_name: OpenAI's name of the chunk's type.
        include_usage: Whether a last chunk brings the usage; then all others say that they have none.
    """

    def __init__(self, head: Head, object_name: str, *, include_usage: bool) -> None:
        self._start = b'data: {"id":%b,"object":%b,"created":%d,"model":%b,"choices":[' % (
            JSON.encode(head.id),
            JSON.encode(object_name),
            head.created,
            JSON.encode(head.model),
        )
        self._end = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"

    def choice_start(self, index: int) -> bytes:
        """A frame's bytes up to where the choice's own members begin."""
        return b'%b{"index":%d,' % (self._start, index)

    @property
    def end(self) -> bytes:
        """A frame's bytes after the members of its choice."""
        return b"}" + self._end

    def usage(self, counts: Mapping[str, int]) -> bytes:
        """The frame without choices that counts the tokens."""
        return b'%b],"usage":%b}\n\n' % (self._start, JSON.encode(usage_object(counts)))
