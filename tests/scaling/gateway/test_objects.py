"""What one replica keeps for later requests is found by its id alone: by any gateway, also one that has just begun."""

from __future__ import annotations

import json
from typing import Any

import pytest
from yarl import URL

from sixfold.core.errors import NotReady
from sixfold.core.serving.keys import MAX_TENANT
from sixfold.core.serving.settings import ApiKeySettings, ServerSettings, hash_key
from sixfold.scaling.gateway.fleet import Fleet
from sixfold.scaling.gateway.forwarding import tenant_header
from sixfold.scaling.gateway.inbound import read_inbound
from sixfold.scaling.gateway.outlier import OutlierDetector
from sixfold.scaling.gateway.owners import HolderGone, Owners
from sixfold.scaling.gateway.settings import OutlierSettings
from sixfold.scaling.registry import ReplicaRecord
from sixfold.scaling.route.load import RoundRobin
from sixfold.scaling.route.router import Router
from tests.fakes import FakeClock
from tests.scaling.gateway.scripted import Reply, RunningGateway, ScriptedReplica, fleet

A, B = "aaaaaaaa", "bbbbbbbb"
DIGITS = "0123456789abcdef" * 2
ANA = ApiKeySettings(name="ana maría/1", sha256=hash_key("ka"))
BEN = ApiKeySettings(name="ben", sha256=hash_key("kb"))
KEYS = ServerSettings(port=0, api_keys=(ANA, BEN))


def keeping(
    store_id: str, *script: Reply, models: tuple[str, ...] = ("m",), tells_tenants: bool = False
) -> ScriptedReplica:
    replica = ScriptedReplica(store_id, *script, models=models)
    replica.ready = (200, {"status": "ready", "store_id": store_id})
    if tells_tenants:
        listing = [{"id": model, "object": "model"} for model in models]
        replica.raw_listing = json.dumps({"data": listing, "acts_for_others": True}).encode()
    return replica


def made(object_id: str) -> Reply:
    return Reply(parts=(json.dumps({"id": object_id}).encode(),))


async def told(gateway: RunningGateway, path: str, body: object = None, method: str = "GET", **headers: str) -> Any:
    status, content, _headers = await gateway.ask(body, path, method=method, **headers)
    return status, json.loads(content)["error"]["code"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", f"/v1/videos/video_{B}_{DIGITS}", None),
        ("GET", f"/v1/videos/video_{B}_{DIGITS}/content", None),
        ("POST", f"/v1/videos/video_{B}_{DIGITS}/remix", {"prompt": "x"}),
        ("DELETE", f"/v1/responses/resp_{B}_{DIGITS}", None),
        ("POST", "/v1/responses", {"model": "m", "previous_response_id": f"resp_{B}_{DIGITS}"}),
        ("GET", f"/v1/files/file-{B}_{DIGITS}/content", None),
        ("POST", "/v1/batches", {"input_file_id": f"file-{B}_{DIGITS}", "endpoint": "/v1/completions"}),
        ("POST", f"/v1/batches/batch_{B}_{DIGITS}/cancel", None),
    ],
)
async def test_a_gateway_that_never_saw_an_object_asks_the_replica_that_keeps_it(
    method: str, path: str, body: object
) -> None:
    replicas = keeping(A), keeping(B)
    async with fleet(*replicas) as gateway:
        for _ in range(3):
            assert (await gateway.ask(body, path, method=method))[0] == 200
    assert [len(replica.seen) for replica in replicas] == [0, 3]


async def test_a_response_is_not_continued_with_a_model_that_its_replica_has_not() -> None:
    replicas = keeping(A), keeping(B, models=("other",))
    async with fleet(*replicas) as gateway:
        body = {"model": "m", "previous_response_id": f"resp_{B}_{DIGITS}"}
        status, content, _headers = await gateway.ask(body, "/v1/responses")
    error = json.loads(content)["error"]
    assert (status, error["param"]) == (400, "model")
    assert "other" in error["message"]


async def test_what_two_replicas_keep_is_not_named_in_one_request() -> None:
    async with fleet(keeping(A), keeping(B)) as gateway:
        body = {"previous_response_id": f"resp_{A}_{DIGITS}"}
        status, content, _headers = await gateway.ask(body, f"/v1/videos/video_{B}_{DIGITS}/remix")
    assert (status, json.loads(content)["error"]["param"]) == (400, "previous_response_id")


async def test_an_object_whose_replica_is_down_is_there_again_in_a_moment_and_nobody_else_is_asked() -> None:
    up, down = keeping(A), keeping(B)
    async with fleet(up, down) as gateway:
        await down.kill()
        for _ in range(2):
            assert await told(gateway, f"/v1/videos/video_{B}_{DIGITS}") == (503, "holder_not_up")
    assert up.seen == []


class Asking:
    """An `Owners` by the clock, before one replica that was seen or not."""

    def __init__(self, *, was_seen: bool) -> None:
        self.clock = FakeClock()
        self.fleet = Fleet(
            (Router(RoundRobin()),),
            OutlierDetector(OutlierSettings()),
            lambda _names, _region: True,
            self.clock,
            lambda: None,
        )
        self.fleet.set_records([ReplicaRecord(replica_id="r", url="http://r")])
        if was_seen:
            self.begin(A)
        self.owners = Owners(self.fleet, guards=False, grace_s=4.0, clock=self.clock)

    def begin(self, store_id: str) -> None:
        for replica in self.fleet:
            self.fleet.probed(replica, {}, draining=False, store_id=store_id)

    def ask(self) -> frozenset[str] | None:
        inbound = read_inbound("GET", f"/v1/videos/video_{B}_{DIGITS}", b"", {}, b"")
        return self.owners.owners_of(inbound, tenant="t")


def test_an_object_is_gone_for_good_only_after_a_probe_had_time_to_find_its_replica() -> None:
    world = Asking(was_seen=True)
    for _ in range(2):
        with pytest.raises(NotReady, match="right now"):
            world.ask()
        world.clock.advance(1.9)
    world.clock.advance(1.0)
    with pytest.raises(HolderGone, match="Make it anew"):
        world.ask()


def test_a_replica_that_comes_back_with_its_folder_brings_its_objects_and_may_take_its_time_again() -> None:
    world = Asking(was_seen=True)
    with pytest.raises(NotReady):
        world.ask()
    world.begin(B)
    assert world.ask() == frozenset("r")
    world.begin(A)
    world.clock.advance(100.0)
    with pytest.raises(NotReady):
        world.ask()


def test_while_a_replica_was_never_reached_nothing_is_said_to_be_gone() -> None:
    world = Asking(was_seen=False)
    for _ in range(3):
        with pytest.raises(NotReady):
            world.ask()
        world.clock.advance(100.0)


async def test_a_replica_that_began_anew_is_known_by_what_it_makes_before_the_next_probe() -> None:
    replica = keeping(A, made(f"video_{B}_{DIGITS}"))
    async with fleet(replica) as gateway:
        await gateway.ask_json({"model": "m"}, "/v1/videos")
        assert (await gateway.ask(path=f"/v1/videos/video_{B}_{DIGITS}", method="GET"))[0] == 200


async def test_whose_an_object_is_the_replica_says_where_it_is_told_for_whom_the_gateway_asks() -> None:
    replica = keeping(A, made(f"video_{A}_{DIGITS}"), tells_tenants=True)
    async with fleet(replica, server=KEYS, replica_key="inner") as gateway:
        assert (await gateway.ask(path=f"/v1/videos/video_{A}_{DIGITS}", method="GET", authorization="Bearer ka"))[
            0
        ] == 200
        assert (await gateway.ask({"model": "m"}, "/v1/videos", authorization="Bearer kb"))[0] == 200
    assert [seen.headers["x-tenant"] for seen in replica.seen] == ["ana%20mar%C3%ADa%2F1", "ben"]


async def test_no_client_says_for_whom_it_is_beside_the_gateway() -> None:
    telling, other = keeping(A, tells_tenants=True), keeping(B)
    async with fleet(telling, other, server=KEYS, replica_key="inner") as gateway:
        assert await told(gateway, "/v1/completions", method="POST", authorization="Bearer ka", x_tenant="ben") == (
            403,
            "permission_denied",
        )
    async with fleet(keeping(A), replica_key="inner") as gateway:  # on the loopback, where no keys are checked
        assert (await gateway.ask(x_tenant="ben"))[0] == 200
    assert telling.seen == other.seen == []


async def test_a_replica_that_checks_the_clients_keys_is_told_for_whom_they_say_it_is() -> None:
    replica = keeping(A, tells_tenants=True)
    async with fleet(replica) as gateway:
        await gateway.ask(authorization="Bearer outer", x_tenant="ana")
        await gateway.ask(authorization="Bearer outer")
    assert [seen.headers.get("x-tenant") for seen in replica.seen] == ["ana", None]


async def test_what_the_key_of_the_probes_may_says_nothing_of_the_clients_keys() -> None:
    replica = keeping(A, tells_tenants=True)
    async with fleet(replica, server=KEYS, probe_key="probe") as gateway:
        assert (await gateway.ask(authorization="Bearer ka"))[0] == 200
    assert ("x-tenant" in replica.seen[0].headers, replica.seen[0].headers["authorization"]) == (False, "Bearer ka")


async def test_a_replica_that_tells_no_tenants_is_asked_for_no_object_that_this_gateway_did_not_see_made() -> None:
    replica = keeping(A, made(f"video_{A}_{DIGITS}"))
    async with fleet(replica, server=KEYS, replica_key="inner") as gateway:
        path, ana = f"/v1/videos/video_{A}_{DIGITS}", {"authorization": "Bearer ka"}
        assert await told(gateway, path, **ana) == (404, "not_found")
        await gateway.ask_json({"model": "m"}, "/v1/videos", **ana)
        assert (await gateway.ask(path=path, method="GET", **ana))[0] == 200
        assert await told(gateway, path, authorization="Bearer kb") == (404, "not_found")
    assert all("x-tenant" not in seen.headers for seen in replica.seen)


async def test_a_list_says_how_many_servers_it_lacks() -> None:
    page = Reply(parts=(b'{"data": [], "has_more": false}',))
    up, down = keeping(A, page), keeping(B, page)
    async with fleet(up, down) as gateway:
        _status, _content, whole = await gateway.ask(path="/v1/videos", method="GET")
        await down.kill()
        await gateway.ask(path=f"/v1/videos/video_{B}_{DIGITS}", method="GET")  # which finds it down
        status, content, headers = await gateway.ask(path="/v1/videos?limit=3", method="GET")
    assert (status, json.loads(content)) == (200, {"data": [], "has_more": False})
    assert ("x-servers-missing" in whole, headers["x-servers-missing"]) == (False, "1")


async def test_lists_have_what_servers_keep_that_are_left_alone_or_that_compute_prompts_for_others() -> None:
    page = Reply(parts=(b'{"data": [{"id": "x"}], "has_more": false}',))
    prefill = keeping("cccccccc", page)
    prefill.role = "prefill"
    replicas = keeping(A, page), keeping(B, page), prefill
    async with fleet(*replicas) as gateway:
        for _ in range(5):
            gateway.gateway.fleet.failed(replicas[1].url)
        for store_id in ("aaaaaaab", "bbbbbbbc"):
            path = f"/v1/videos?after=video_{store_id}_{DIGITS}"
            _status, content, headers = await gateway.ask(path=path, method="GET")
            assert json.loads(content)["data"] == [{"id": "x"}]
            assert "x-servers-missing" not in headers
    assert [len(replica.seen) for replica in replicas] == [0, 1, 1]


async def test_a_server_that_refuses_a_list_is_heard_and_one_that_breaks_it_off_is_not() -> None:
    refused = Reply(status=400, parts=(b'{"error": {"code": "x"}}',))
    async with fleet(keeping(A, refused, Reply(parts=(b'{"data": [',)))) as gateway:
        assert await told(gateway, "/v1/videos?limit=-1") == (400, "x")
        assert await told(gateway, "/v1/videos") == (503, "worker_died")


async def test_a_server_without_such_objects_ends_no_list_and_neither_does_one_that_is_gone() -> None:
    page = Reply(parts=(b'{"data": [{"id": "x"}], "has_more": false}',))
    none = Reply(status=404, parts=(b'{"error": {"code": "not_found"}}',))
    async with fleet(keeping(A, none), keeping(B, page), keeping("dddddddd", none)) as gateway:
        assert await gateway.ask_json(path="/v1/videos", method="GET") == {"data": [{"id": "x"}], "has_more": True}
        beyond = await gateway.ask_json(path=f"/v1/videos?after=video_eeeeeeee_{DIGITS}", method="GET")
        assert (beyond["data"], beyond["has_more"]) == ([], False)
        before = await gateway.ask_json(path=f"/v1/videos?after=video_aabbbbbb_{DIGITS}", method="GET")
        assert before["data"] == [{"id": "x"}]
    async with fleet(keeping(A, none)) as gateway:
        assert await told(gateway, "/v1/videos") == (404, "not_found")


@pytest.mark.parametrize("path", ["/v1/videos/", "/v1//videos", "/v1/%76ideos", "/v1/videos?after=video_1"])
async def test_no_odd_list_goes_to_a_server_that_tells_no_keys_apart(path: str) -> None:
    other, telling = keeping(A), keeping(B, Reply(parts=(b'{"data": [], "has_more": false}',)), tells_tenants=True)
    async with fleet(other, telling, server=KEYS, replica_key="inner") as gateway:
        url = URL(gateway.url + path, encoded=True)
        async with gateway.session.get(url, headers={"authorization": "Bearer ka"}) as response:
            assert response.status in (400, 404)
        for _ in range(3):
            await gateway.ask_json(path="/v1/videos", method="GET", authorization="Bearer ka")
    assert other.seen == []


async def test_with_keys_a_list_is_never_that_of_one_server_whose_lists_may_not_be_shown() -> None:
    """A server that would tell tenants apart, but not yet where it keeps things, makes lists possible and shows none."""
    telling, other = keeping(A, tells_tenants=True), keeping(B, Reply(parts=(b'{"data": [{"id": "x"}]}',)))
    telling.ready = (200, {"status": "ready"})
    async with fleet(telling, other, server=KEYS, replica_key="inner") as gateway:
        for _ in range(3):
            assert await told(gateway, "/v1/videos", authorization="Bearer ka") == (503, "not_ready")
    assert telling.seen == other.seen == []


@pytest.mark.parametrize("tenant", ["key/" + "a" * 1020, "key/" + "/" * 400, "key/é" * 200])
def test_a_tenant_is_told_to_servers_however_long_its_name_is(tenant: str) -> None:
    told = tenant_header(tenant)
    assert len(told) <= MAX_TENANT
    assert told.isascii()
    assert told != tenant_header(tenant + "b")
    assert tenant_header("key/ana") == "key%2Fana"
