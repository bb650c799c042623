"""The registry file changes while the server runs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import httpx
import yaml


def change_config(server: Any, change: Callable[[dict[str, Any]], None]) -> None:
    """Replaces the file in one step, as editors and Kubernetes do."""
    data = yaml.safe_load(server.config.read_text())
    change(data)
    new = server.config.with_suffix(".new")
    new.write_text(yaml.safe_dump(data))
    new.replace(server.config)


async def until_states(server: Any, wanted: dict[str, str]) -> None:
    """Asks until /v1/models lists these names in these states, and no others."""
    async with asyncio.timeout(60.0), httpx.AsyncClient() as http:
        while True:
            models = (await http.get(f"{server.url}/v1/models")).json()["data"]
            if {model["id"]: model["state"] for model in models} == wanted:
                return


async def reverse(server: Any, model: str) -> int:
    async with httpx.AsyncClient() as http:
        return (await http.post(f"{server.url}/v1/reverse", json={"model": model, "text": "abc"})).status_code


async def test_a_changed_file_adds_renames_and_removes_models(reverse_server: Any) -> None:
    def add(data: dict[str, Any]) -> None:
        data["models"]["second"] = dict(data["models"]["mirror"])
        data["models"]["mirror"]["aliases"] = ["looking-glass"]

    change_config(reverse_server, add)
    await until_states(reverse_server, {"mirror": "ready", "looking-glass": "ready", "second": "ready"})
    assert await reverse(reverse_server, "second") == 200
    assert await reverse(reverse_server, "looking-glass") == 200

    change_config(reverse_server, lambda data: data["models"].pop("mirror"))
    await until_states(reverse_server, {"second": "ready"})
    assert await reverse(reverse_server, "mirror") == 404
    assert await reverse(reverse_server, "second") == 200


async def test_a_broken_file_changes_nothing_and_says_why(reverse_server: Any) -> None:
    good = reverse_server.config.read_text()
    reverse_server.config.write_text(good.replace("source:", "sauce:"))
    reverse_server.process.send_signal(signal.SIGHUP)
    log = reverse_server.config.parent / "server.log"
    async with asyncio.timeout(30.0):
        while "the changed configuration is not used" not in log.read_text():
            assert await reverse(reverse_server, "mirror") == 200
    assert "sauce" in log.read_text()
    assert "source" in log.read_text()

    reverse_server.config.write_text(good)
    reverse_server.process.send_signal(signal.SIGHUP)
    await until_states(reverse_server, {"mirror": "ready"})
