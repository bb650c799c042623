"""What a running ``sixfold up`` makes of a changed configuration file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from sixfold.scaling.gateway.app import Gateway
from sixfold.scaling.registry import Registry
from sixfold.scaling.registry_settings import RegistryPlace
from sixfold.scaling.up.settings import load_site
from sixfold.scaling.up.site import RunningSite

MODELS: dict[str, Any] = {"chat": {"source": "file:chat"}}
ROLES = {"chat": {"roles": {"max_replicas": 6, "ttft_s": 1.0, "inter_token_s": 0.05}}}
SPLITS = {"disaggregation": {"prefill_tokens_per_s": 1000, "kv_bytes_per_token": 1000}}


@dataclass
class Record:
    """What a replica that computes prompts tells of itself."""

    url: str = "http://prompts"
    role: str = "prefill"


class Replica:
    """A replica of ``chat`` as a gateway sees it."""

    record = Record()
    up = True
    draining = False

    def serves(self, model: str) -> bool:
        return model == "chat"


class FakeGateway:
    """It sees one replica, which computes prompts."""

    fleet = (Replica(),)


Write = Callable[..., None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


@pytest.fixture
def write(path: Path) -> Write:
    def written(*, models: dict[str, Any] = MODELS, **cluster: Any) -> None:
        path.write_text(yaml.safe_dump({"models": models, "cluster": cluster}))

    return written


def running_site(path: Path) -> RunningSite:
    return RunningSite(
        load_site(path, environ={}),
        cast("Gateway", FakeGateway()),
        config=path,
        read=lambda: load_site(path, environ={}),
        registry=RegistryPlace(path=path.with_name("replicas.db")),
        table=cast("Registry", None),
        replica_key=None,
        address=None,
        keep=False,
        on_ready=lambda _url, _models: None,
    )


def test_roles_that_are_added_hold_at_once_where_the_gateway_splits_prompts(path: Path, write: Write) -> None:
    write(gateway=SPLITS)
    running = running_site(path)
    assert running.urls("chat-prefill") == []
    write(gateway=SPLITS, services=ROLES)
    running.reload()
    assert running.urls("chat-prefill") == ["http://prompts"]


def test_roles_that_are_added_together_with_what_the_gateway_needs_for_them_ask_for_a_restart(
    path: Path, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    write()
    running = running_site(path)
    write(gateway=SPLITS, services=ROLES)
    running.reload()
    assert running.urls("chat-prefill") == []
    assert "Restart 'sixfold up'" in caplog.text
    assert "cluster.services.chat.roles" in caplog.text
