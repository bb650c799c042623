"""The server of the serving tests."""

from __future__ import annotations

from tests.core.serving.conftest import replica, served

__all__ = ["replica", "served"]
