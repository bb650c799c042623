"""Server-sent events passed on whole: a stream that breaks must not leave half an event before what is said about it."""

from __future__ import annotations

_MAX_HELD_BYTES = 4 * 1024 * 1024


class WholeEvents:
    """Cuts a stream of bytes at the ends of events. Chunks of servers hold whole events, so nothing is usually held."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """What may be passed on now: everything up to the end of the last whole event.

        An event of more than 4 MiB is passed on in parts.
        """
        whole = self._held + chunk if self._held else chunk
        if whole.endswith((b"\n\n", b"\r\n\r\n")) or len(whole) > _MAX_HELD_BYTES:
            self._held = b""
            return whole
        end = max((whole.rfind(end) + len(end) for end in (b"\n\n", b"\r\n\r\n") if end in whole), default=0)
        self._held = whole[end:]
        return whole[:end]

    def rest(self) -> bytes:
        """What is held when the stream has ended in good order."""
        held, self._held = self._held, b""
        return held
