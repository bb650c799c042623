"""What was measured so far, in a file that is whole at any moment; part of multi.py."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Results:
    """Values by step, written after every change.

    Args:
        path: Of the JSON; None writes nothing.
        facts: Of the whole run.
    """

    def __init__(self, path: Path | None, facts: Mapping[str, Any] | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._facts = dict(facts or {})
        self.steps: dict[str, Any] = {}
        self.failures: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def keep(self, step: str, value: Any) -> None:
        """What is known of a step; it may not be all."""
        self._write(steps={step: value})

    def done(self, step: str, seconds: float) -> None:
        """The step ended well."""
        self._write(seconds={step: round(seconds, 1)})

    def fail(self, step: str, reason: str) -> None:
        """The step ended badly; what is known of it stays."""
        self._write(failures={step: reason[:2000]})

    def add(self, other: Mapping[str, Any]) -> None:
        """Takes over what another process has written."""
        self._write(**{name: other.get(name, {}) for name in ("steps", "failures", "seconds")})

    @property
    def ended(self) -> set[str]:
        """Steps of which nothing more will come."""
        return {*self.seconds, *self.failures}

    def _write(self, **new: Mapping[str, Any]) -> None:
        with self._lock:  # parts that run at once write here, too
            for name, values in new.items():
                getattr(self, name).update(values)
            if self._path is None:
                return
            whole = {**self._facts, "steps": self.steps, "failures": self.failures, "seconds": self.seconds}
            draft = self._path.with_name(f"{self._path.name}.{os.getpid()}")
            draft.write_text(json.dumps(whole, indent=1) + "\n")
            draft.replace(self._path)


def read(path: Path) -> dict[str, Any]:
    """What a process has written; nothing if it has written nothing."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found
