"""What Ray's head is told: our services, and what others run on the cluster as it was."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from sixfold.scaling.cluster.document import IMPORT_PATH, DeployedService
from sixfold.scaling.cluster.engine import ClusterError, RayEngine
from sixfold.scaling.cluster.replica import ReplicaSettings
from sixfold.scaling.registry_settings import place_of
from sixfold.scaling.spec import PlacementSpec, ServiceSpec

OTHERS = {"name": "theirs", "import_path": "their.app:build", "route_prefix": "/theirs"}


class FakeHead(httpx.BaseTransport):
    """Ray's REST interface of a head on which somebody else runs applications, too."""

    def __init__(self) -> None:
        self.put: list[dict[str, Any]] = []
        self.applications: dict[str, Any] = {
            "theirs": {"status": "RUNNING", "deployed_app_config": OTHERS, "deployments": {}},
            "from-python": {"status": "RUNNING", "deployed_app_config": None, "deployments": {}},
        }

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            document = json.loads(request.content)
            self.put.append(document)
            for each in document["applications"]:
                self.applications[each["name"]] = {"status": "RUNNING", "deployed_app_config": each, "deployments": {}}
            return httpx.Response(200)
        return httpx.Response(200, json={"applications": self.applications, "proxy_location": "EveryNode"})


@pytest.fixture
def head() -> FakeHead:
    return FakeHead()


@pytest.fixture
def engine(head: FakeHead) -> RayEngine:
    return RayEngine("http://head:8265", transport=head)


def service(model: str, num_replicas: int = 1, name: str = "") -> DeployedService:
    spec = ServiceSpec(model=model, placement=PlacementSpec(num_gpus=0))
    settings = ReplicaSettings(config="{}", registry=place_of("replicas.db"))
    return DeployedService(spec=spec, replicas=settings, num_replicas=num_replicas, name=name)


def test_applications_of_others_stay_and_so_do_their_proxies(engine: RayEngine, head: FakeHead) -> None:
    engine.apply([service("chat")])
    (document,) = head.put
    assert OTHERS in document["applications"]
    assert [each["name"] for each in document["applications"]] == ["theirs", "chat"]
    assert document["proxy_location"] == "EveryNode"


def test_only_our_services_are_told_of(engine: RayEngine) -> None:
    assert engine.status() == {}
    engine.apply([service("chat")])
    assert list(engine.status()) == ["chat"]


def test_a_service_without_replicas_is_left_out_and_two_revisions_are_two(engine: RayEngine, head: FakeHead) -> None:
    engine.apply([service("chat"), service("chat", name="chat-2"), service("notes", 0)])
    ours = [each for each in head.put[0]["applications"] if each["import_path"] == IMPORT_PATH]
    assert [each["name"] for each in ours] == ["chat", "chat-2"]


@pytest.mark.parametrize("name", ["theirs", "from-python"])
def test_a_name_that_somebody_else_has_is_refused_and_nothing_is_changed(
    engine: RayEngine, head: FakeHead, name: str
) -> None:
    with pytest.raises(ClusterError, match="Rename the model"):
        engine.apply([service(name)])
    assert head.put == []


def test_a_cluster_of_ours_alone_has_no_proxies(engine: RayEngine, head: FakeHead) -> None:
    head.applications.clear()
    engine.apply([service("chat")])
    assert head.put[0]["proxy_location"] == "Disabled"


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, html="<html>Sign in</html>"),
        httpx.Response(200, content=b"\xe9"),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={"applications": {"chat": {"deployed_app_config": {"import_path": IMPORT_PATH}}}}),
    ],
    ids=["page", "bytes", "list", "incomplete"],
)
def test_what_is_no_answer_of_rays_head_is_said_to_be_none(answer: httpx.Response) -> None:
    engine = RayEngine("http://head:8265", transport=httpx.MockTransport(lambda _request: answer))
    with pytest.raises(ClusterError, match="Ray's dashboard"):
        engine.status()
    with pytest.raises(ClusterError, match="Ray's dashboard"):
        engine.num_gpus()
