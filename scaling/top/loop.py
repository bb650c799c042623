"""Looks, waits, looks again, and draws the difference."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.text import Text

from sixfold.core.errors import UsageError
from sixfold.scaling.top.figures import frame_of
from sixfold.scaling.top.scrape import Scrape
from sixfold.scaling.top.screen import draw

_PIPE_COLUMNS = 200
"""Lines in a pipe are not wrapped where a terminal happened to end."""


def run_top(
    look: Callable[[], Scrape],
    *,
    url: str,
    interval_s: float,
    once: bool,
    console: Console | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> int:
    """Draws frames until interrupted, or one; returns the exit status.

    A server that stops answering between two looks is waited for, with a line that says so; one that never answered is not.

    Args:
        look: Reads the figures.
        url: Shown.
        interval_s: Between two looks.
        once: Whether to end after a frame.
        console: Where to draw; standard output unless given.
        sleep: Waits.

    Raises:
        UsageError: The first look failed, or with ``once`` any.
    """
    if console is None:
        console = Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS)
    before = look()
    if once or not console.is_terminal:
        while True:
            sleep(interval_s)
            after = look()
            console.print(draw(frame_of(before, after), url=url, seconds=after.at_s - before.at_s))
            before = after
            if once:
                return 0
    with Live(Text(f"looking at {url} ..."), console=console, screen=True, auto_refresh=False) as live:
        while True:
            sleep(interval_s)
            try:
                after = look()
            except UsageError as error:
                live.update(Text(f"{error}\nStill looking; Ctrl-C ends.", style="red"), refresh=True)
                continue
            live.update(draw(frame_of(before, after), url=url, seconds=after.at_s - before.at_s), refresh=True)
            before = after
