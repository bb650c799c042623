"""Notices that a file has new content, however it came there: written, renamed over, or a link swapped below it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import watchfiles

_DEBOUNCE_MS = 300
_RECHECK_MS = 5_000


def content_digest(path: Path) -> bytes | None:
    """Identifies a file's content; None while it cannot be read, as in the middle of a replacement."""
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return None


async def watch_file(
    path: Path,
    on_change: Callable[[], Awaitable[None]],
    stop: asyncio.Event,
    *,
    seen: bytes | None = None,
    debounce_ms: int = _DEBOUNCE_MS,
    recheck_ms: int = _RECHECK_MS,
) -> None:
    """Calls ``on_change`` once for each new content of a file, until ``stop`` is set.

    Events that leave the content as it is (a touch, an editor's backup file) and a file that is missing for a moment
    call nothing. Changes during a call of ``on_change`` lead to one more call after it.

    Args:
        path: The file. Its folder is watched, and the folder that it points to if it is a link: Kubernetes mounts a
            configuration as links and swaps one of them.
        on_change: Runs in the loop; an exception ends the watch.
        stop: Ends the watch.
        seen: `content_digest` of what the caller has read already; the present content unless given.
        debounce_ms: Events this close together count as one.
        recheck_ms: The content is also read this often, for file systems without change events (network mounts) and
            for changes that came before the watch was on.
    """
    seen = content_digest(path) if seen is None else seen
    while not stop.is_set():
        folders = {path.absolute().parent, path.resolve().parent}
        async for _changes in watchfiles.awatch(  # pyright: ignore[reportUnknownMemberType]  # names trio's type
            *folders,
            watch_filter=None,
            debounce=debounce_ms,
            rust_timeout=recheck_ms,
            yield_on_timeout=True,
            stop_event=stop,
            recursive=False,
        ):
            digest = content_digest(path)
            if digest is not None and digest != seen:
                seen = digest
                await on_change()
            if {path.absolute().parent, path.resolve().parent} != folders:
                break  # the link leads elsewhere now: watch there
