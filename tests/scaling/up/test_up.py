"""``sixfold up`` as a user runs it: one command, two models, a chat through the gateway, and nothing left behind."""

from __future__ import annotations

import argparse
import importlib.util
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from sixfold.core.cli import main
from sixfold.core.errors import UsageError
from sixfold.scaling.up.command import COMMAND
from tests.plugins.llm.conftest import write_model
from tests.servers import DemoServer, start_server, stop_server

_WAIT_S = 240.0  # on two cores that others use, too, three servers take their time


def config(folder: Path, **parts: object) -> Path:
    options = {"dtype": "float32", "kv_cache_bytes": 4 << 20}
    models = {
        name: {"source": f"file:{write_model(folder / name, 'llama-long')}", "options": options, "device": "cpu"}
        for name in ("first", "second")
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"models": models, "server": {"port": 0}, **parts}))
    return path


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: pip install 'sixfold[ray]'")
def test_a_port_that_is_taken_is_told_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["up", str(config(tmp_path)), "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert str(port) in said
    assert "starting Ray" not in said


def test_a_missing_extra_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nothing_is_installed(_name: str) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", nothing_is_installed)
    with pytest.raises(UsageError, match=r"needs ray: pip install 'sixfold\[ray,gateway\]'"):
        run_command(str(tmp_path / "config.yaml"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--keep"], "--keep is for the services of a cluster"),
        (["--address", "10.0.0.1:6379"], "Write http://HOST:8265"),
        (["--address", "http://127.0.0.1:1", "--keep"], "set cluster.registry"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    with pytest.raises(UsageError, match=complaint):
        run_command(str(config(tmp_path)), *arguments)


def test_a_cluster_out_of_reach_ends_the_command_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Ray's head at http://127\.0\.0\.1:1 does not answer"):
        run_command(str(config(tmp_path)), "--address", "http://127.0.0.1:1")


def run_command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    COMMAND.configure(parser)
    return COMMAND.run(parser.parse_args(arguments))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    cluster = {"services": {"first": {"scaling": {"min_replicas": 2, "max_replicas": 2}}}}
    path = config(tmp_path_factory.mktemp("up"), cluster=cluster)
    server = start_server(path, command="up", timeout_s=_WAIT_S)
    yield server
    if server.process.poll() is None:
        stop_server(server)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_command_serves_two_models_and_drains_without_leaving_a_process(running: DemoServer) -> None:
    body = {"prompt": "a", "max_tokens": 4, "temperature": 0}
    with httpx.Client(base_url=running.url, timeout=_WAIT_S) as http:
        assert {model["id"] for model in http.get("/v1/models").json()["data"]} == {"first", "second"}
        for model in ("first", "second"):
            answer = http.post("/v1/completions", json={"model": model, **body})
            assert answer.json()["usage"]["completion_tokens"] == 4, answer.text
        long = {**body, "model": "second", "max_tokens": 1500, "ignore_eos": True, "stream": True}
        with http.stream("POST", "/v1/completions", json=long) as stream:
            lines = stream.iter_lines()
            assert next(lines)
            started = [os.pidfd_open(pid) for pid in descendants(running.process.pid)]
            running.process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
    running.process.wait(_WAIT_S)
    assert stop_server(running) == 0
    assert "draining the replicas" in running.log
    assert len(started) > 6, "a head, its helpers, and three replicas with their servers"
    assert all(ended(process) for process in started), "processes were left"
    for process in started:
        os.close(process)


@pytest.mark.slow
@pytest.mark.timeout(900)  # Ray Serve starts a broken replica three times before it gives it up
def test_a_changed_model_is_rolled_out_and_a_broken_one_rolled_back_while_no_request_fails(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    rollout = {"kind": "canary", "steps": [0.5], "step_s": 1, "min_requests": 5}
    path = config(tmp_path, cluster={"services": {"first": {"rollout": rollout}}})
    written = yaml.safe_load(path.read_text())
    del written["models"]["second"]
    path.write_text(yaml.safe_dump(written))
    server = start_server(path, command="up", timeout_s=_WAIT_S)
    try:
        with httpx.Client(base_url=server.url, timeout=_WAIT_S) as http:

            def until(word: str) -> None:
                """Asks on and on, each time in vain for a failure, until the log has the word."""
                end_s = time.monotonic() + 2 * _WAIT_S
                while word not in server.log:
                    assert time.monotonic() < end_s, server.log[-4000:]
                    body = {"model": "first", "prompt": "a", "max_tokens": 4}
                    answer = http.post("/v1/completions", json=body)
                    assert answer.status_code == 200, answer.text

            written["models"]["first"]["limits"] = {"max_running_sequences": 3}
            path.write_text(yaml.safe_dump(written))
            until(": done: ")
            written["models"]["first"]["source"] = "file:/no-such-folder"
            path.write_text(yaml.safe_dump(written))
            until(": rolled_back: ")
            until("rolled_back")
    finally:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(_WAIT_S)
        assert stop_server(server) == 0


@pytest.mark.slow
def test_a_local_ray_ends_with_its_owner_however_that_ends() -> None:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    code = """
import asyncio
from sixfold.scaling.cluster.local_ray import LocalRay
async def main():
    ray = LocalRay()
    await ray.start()
    print(ray.head_url, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        url = owner.stdout.readline().decode().strip()
        assert httpx.get(f"{url}/api/serve/applications/", timeout=_WAIT_S).is_success
        started = [os.pidfd_open(pid) for pid in descendants(owner.pid)]
        owner.send_signal(signal.SIGKILL)
    assert all(ended(process) for process in started), "Ray's processes live on without their owner"
    for process in started:
        os.close(process)


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, file.read_text().split()):
            found += [child, *descendants(child)]
    return found


def ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], _WAIT_S)[0])
