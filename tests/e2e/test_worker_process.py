"""What an operator can ask of a worker process."""

from __future__ import annotations

from typing import Any


def test_a_signal_shows_where_the_threads_of_a_worker_are(reverse_server: Any) -> None:
    assert "most recent call first" not in reverse_server.log
    reverse_server.dump_threads()
    assert "in run_once" in reverse_server.log or "in _sleep" in reverse_server.log
