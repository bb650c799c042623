"""Real servers and gateways that are killed: what one gateway's client began, another goes on with."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from sixfold.core.object_ids import store_of
from sixfold.core.serving.settings import hash_key
from tests.plugins.llm.conftest import write_model
from tests.scaling.hub.etcd_cluster import free_ports
from tests.servers import DemoServer

pytestmark = pytest.mark.slow

KEYS = [{"name": name, "sha256": hash_key(name)} for name in ("ana", "ben")]
REPLICA_KEY = {"name": "gateway", "sha256": hash_key("inner"), "acts_for_others": True, "priority": "interactive"}


class Fleet:
    """Two servers of one model each, at addresses and with folders that stay."""

    def __init__(self, folder: Path, start: Callable[..., DemoServer]) -> None:
        self._folder = folder
        self._start_config = start
        self._ports: dict[str, int] = dict(zip(("first", "second"), free_ports(2), strict=True))
        for model in self._ports:
            write_model(folder / model / "files", "llama-long")

    def server(self, model: str) -> DemoServer:
        folder = self._folder / model
        options = {"dtype": "float32", "kv_cache_bytes": 4 << 20}
        document = {
            "models": {model: {"source": f"file:{folder / 'files'}", "options": options, "device": "cpu"}},
            "server": {"port": self._ports[model], "data_dir": "data", "api_keys": [REPLICA_KEY]},
        }
        return self._start(folder, document, "serve")

    def gateway(self, name: str) -> DemoServer:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        replicas = [f"http://127.0.0.1:{port}" for port in self._ports.values()]
        document = {"replicas": replicas, "replica_key": "inner", "server": {"port": 0, "api_keys": KEYS}}
        return self._start(folder, document, "gateway")

    def _start(self, folder: Path, document: dict[str, Any], command: str) -> DemoServer:
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(document))
        return self._start_config(path, command=command)


def client_of(gateway: DemoServer, key: str) -> Any:
    """Untyped: requests of one kind are made of one mapping."""
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)


def refusal(call: Callable[[], object]) -> tuple[int, str | None]:
    with pytest.raises(openai.APIStatusError) as refused:
        call()
    return refused.value.status_code, refused.value.code


def test_a_stored_response_goes_on_through_any_gateway_and_over_every_restart(
    tmp_path: Path, start_config: Callable[..., DemoServer]
) -> None:
    fleet = Fleet(tmp_path, start_config)
    holder, _other = fleet.server("first"), fleet.server("second")
    gateways = [fleet.gateway("g1"), fleet.gateway("g2")]
    ana, ana_elsewhere, ben = (client_of(gateways[at], key) for at, key in ((0, "ana"), (1, "ana"), (1, "ben")))
    asked: dict[str, Any] = {"model": "first", "input": "abc", "max_output_tokens": 4}
    begun = ana.responses.create(**asked)
    gone_on = ana_elsewhere.responses.create(**asked, previous_response_id=begun.id)
    assert store_of(begun.id) == store_of(gone_on.id) == (tmp_path / "first" / "data" / "store_id").read_text()
    assert ana_elsewhere.responses.retrieve(begun.id).output == begun.output
    assert refusal(lambda: ben.responses.retrieve(begun.id))[0] == 404
    assert refusal(lambda: ben.responses.create(**asked, previous_response_id=begun.id))[0] == 400
    elsewhere = {**asked, "model": "second", "previous_response_id": begun.id}
    assert refusal(lambda: ana.responses.create(**elsewhere))[0] == 400

    for each in (holder, *gateways):
        each.process.send_signal(signal.SIGKILL)
        each.process.wait()
    ana = client_of(fleet.gateway("g1"), "ana")
    assert refusal(lambda: ana.responses.retrieve(begun.id)) == (503, "holder_not_up")

    fleet.server("first")
    ana = client_of(fleet.gateway("g2"), "ana")
    assert ana.responses.retrieve(gone_on.id).output == gone_on.output
    assert ana.responses.create(**asked, previous_response_id=gone_on.id).status in ("completed", "incomplete")
