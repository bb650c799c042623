"""A real server that is killed in the midst of a batch, and the one that comes after it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import yaml

from tests.e2e.conftest import install_reverse
from tests.servers import DemoServer

_NUM_LINES = 120
_TIMEOUT_S = 60.0


def test_a_server_killed_in_mid_batch_is_followed_by_one_that_answers_each_line_once(
    tmp_path: Path, start_config: Callable[..., DemoServer]
) -> None:
    site, files = install_reverse(tmp_path)
    config = tmp_path / "reverse.yaml"
    server = {"port": 0, "data_dir": str(tmp_path / "data"), "batches": {"max_rows": 2}}
    config.write_text(yaml.safe_dump({"models": {"mirror": {"source": f"file:{files}"}}, "server": server}))
    env = os.environ | {"PYTHONPATH": str(site)}

    words = [f"{number:04d}" + "abcdefghij" * 20 for number in range(_NUM_LINES)]
    lines = [
        {"custom_id": word[:4], "method": "POST", "url": "/v1/reverse", "body": {"model": "mirror", "text": word}}
        for word in words
    ]
    first = start_config(config, env)
    with client_of(first) as client:
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        file = client.files.create(file=("lines.jsonl", data), purpose="batch")
        endpoint: Any = "/v1/reverse"
        batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
        begun = wait(client, batch.id, lambda batch: batch.request_counts.completed >= 5)
        num_done: int = begun.request_counts.completed
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
    assert num_done < _NUM_LINES, "the batch was too short to be interrupted"

    second = start_config(config, env)
    with client_of(second) as client:
        wait(client, batch.id, lambda batch: batch.request_counts.completed >= num_done)
        done = wait(client, batch.id, lambda batch: batch.status not in ("validating", "in_progress", "finalizing"))
        assert done.status == "completed"
        assert (done.request_counts.completed, done.request_counts.failed) == (_NUM_LINES, 0)
        found = [json.loads(text) for text in client.files.content(done.output_file_id).text.splitlines()]
    assert [each["custom_id"] for each in found] == [word[:4] for word in words]
    assert [each["response"]["body"]["text"] for each in found] == [word[::-1] for word in words]


def client_of(server: DemoServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def wait(client: openai.OpenAI, batch_id: str, until: Callable[[Any], bool]) -> Any:
    batch: Any = None
    until_s = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < until_s:
        batch = client.batches.retrieve(batch_id)
        if until(batch):
            return batch
    raise AssertionError(f"it is still {batch}")
