"""``GET /live``: what watchers are told, by whom it may be read, and that replicas are watched only meanwhile."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable
from typing import Any

from sixfold.core.batching.step_watch import Joined, Left, StepNews, Stepped
from sixfold.core.memory.ledger import MemoryLedger
from sixfold.core.memory.need import Claim, MemoryKind
from sixfold.core.runtime.replica import BatchNews
from sixfold.core.serving.live_routes import MAX_FEEDS
from sixfold.core.serving.settings import ApiKeySettings, ServerSettings, hash_key
from tests.core.serving.fake_replica import TIMEOUT_S, FakeModel, FakeReplica, FakeSnapshot
from tests.core.serving.server_thread import ServerThread

Listener = Callable[[BatchNews], None]
WARD = {"authorization": "Bearer ward-key"}


class WatchedFake(FakeReplica):
    """Tells what a test says, while it is watched."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.listeners: list[Listener] = []
        self.is_watched = threading.Event()
        self.is_left = threading.Event()

    def watch(self, listener: Listener) -> Callable[[], None]:
        self.listeners.append(listener)
        self.is_watched.set()

        def stop() -> None:
            self.listeners.remove(listener)
            if not self.listeners:
                self.is_left.set()

        return stop

    def tell(self, served: ServerThread, *news: StepNews, num_dropped: int = 0) -> None:
        batch = BatchNews(news=news, num_dropped=num_dropped)

        def tell_all() -> None:
            for listener in self.listeners:
                listener(batch)

        served.in_loop(tell_all)


class Feed:
    """An open stream of ``/live``."""

    def __init__(self, served: ServerThread, headers: dict[str, str] | None = None) -> None:
        self.connection = served.connect()
        self.connection.request("GET", "/live", headers={"accept": "text/event-stream", **(headers or {})})
        self.response: http.client.HTTPResponse = self.connection.getresponse()

    def next(self) -> Any:
        assert self.response.readline() == b"event: live\n"
        message = json.loads(self.response.readline().removeprefix(b"data: "))
        assert self.response.readline() == b"\n"
        return message

    def events(self, num: int) -> list[Any]:
        """The next events of the first model's first replica."""
        found: list[Any] = []
        while len(found) < num:
            found += self.next()["models"][0]["replicas"][0]["events"]
        return found

    def close(self) -> None:
        self.response.close()
        self.connection.close()


def joined(sequence: int, *, tenant: str = "anonymous") -> Joined:
    return Joined(
        sequence=sequence, request=7, request_id=f"req_{sequence}/12#3", tenant=tenant, units=40, waited_s=0.5
    )


def stepped(number: int, *rows: tuple[int, int]) -> Stepped:
    return Stepped(number=number, at_s=1.0, seconds=0.1, units=9, budget_units=64, num_waiting=1, rows=rows)


def test_one_moment_is_json_for_whoever_does_not_ask_for_a_stream() -> None:
    snapshot = FakeSnapshot(
        num_running=2, num_waiting=1, queued_units=70, units_per_s=9.5, metrics={"echo_depth": 3.0, "undeclared": 1.0}
    )
    with ServerThread(FakeModel("parrot", replicas=[FakeReplica(snapshot=snapshot)] * 2)) as served:
        (model,) = served.ask("GET", "/live").json["models"]
        assert (model["name"], model["modality"], model["state"], model["num_in_flight"]) == (
            "parrot",
            "echo",
            "ready",
            0,
        )
        assert [replica["replica"] for replica in model["replicas"]] == [0, 1]
        assert model["replicas"][0] | {"num_dropped": 0} == {
            "replica": 0,
            "num_running": 2,
            "num_waiting": 1,
            "queued_units": 70,
            "units_per_s": 9.5,
            "metrics": {"echo_depth": 3.0},
            "events": [],
            "num_dropped": 0,
            "watch": 0,
        }


def test_a_stream_tells_what_each_replicas_steps_did_in_order() -> None:
    replicas = [WatchedFake(), WatchedFake()]
    with ServerThread(FakeModel("parrot", replicas=replicas)) as served:
        feed = Feed(served)
        feed.next()
        replicas[0].tell(served, joined(4), stepped(8, (4, 9)), Left(sequence=4, step=8, reason="done"), num_dropped=3)
        replicas[1].tell(served, stepped(1))
        both: list[Any] = [None, None]
        while None in both:
            for each in feed.next()["models"][0]["replicas"]:
                both[each["replica"]] = each if each["events"] else both[each["replica"]]
        assert both[0]["events"] == [
            {"kind": "joined", "sequence": 4, "request": 7, "request_id": "req_4", "units": 40, "waited_s": 0.5},
            {
                "kind": "stepped",
                "number": 8,
                "at_s": 1.0,
                "seconds": 0.1,
                "units": 9,
                "budget_units": 64,
                "num_waiting": 1,
            }
            | {"rows": [[4, 9]]},
            {"kind": "left", "sequence": 4, "step": 8, "reason": "done"},
        ]
        assert both[0]["num_dropped"] == 3
        assert [event["number"] for event in both[1]["events"]] == [1]
        feed.close()


def test_replicas_are_watched_only_while_somebody_looks() -> None:
    replica = WatchedFake()
    with ServerThread(FakeModel("parrot", replicas=[replica])) as served:
        assert served.ask("GET", "/live").status == 200
        assert not replica.is_watched.is_set()
        feed = Feed(served)
        assert replica.is_watched.wait(TIMEOUT_S)
        feed.close()
        assert replica.is_left.wait(TIMEOUT_S)


def test_a_replica_that_comes_later_is_watched_and_one_that_goes_is_left() -> None:
    first, second = WatchedFake(), WatchedFake()
    model = FakeModel("parrot", replicas=[first])
    with ServerThread(model) as served:
        feed = Feed(served)
        assert first.is_watched.wait(TIMEOUT_S)
        served.in_loop(lambda: setattr(model, "replicas", [second]))
        while not second.is_watched.is_set():
            feed.next()
        assert first.is_left.is_set()
        feed.close()


def test_a_replica_that_cannot_be_watched_shows_its_figures() -> None:
    with ServerThread(FakeModel("parrot", replicas=[FakeReplica()])) as served:
        feed = Feed(served)
        assert feed.next()["models"][0]["replicas"][0]["events"] == []
        feed.close()


def test_the_feed_needs_a_key_where_there_are_keys() -> None:
    settings = ServerSettings(api_keys=(ApiKeySettings(name="ward", sha256=hash_key("ward-key")),))
    with ServerThread(FakeModel("parrot"), settings=settings) as served:
        refused = served.ask("GET", "/live", headers={"accept": "text/event-stream"})
        assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
        assert served.ask("GET", "/live", headers=WARD).status == 200


def test_a_key_sees_its_models_and_the_ids_of_its_own_requests_only() -> None:
    ward = ApiKeySettings(name="ward", sha256=hash_key("ward-key"), models=("parrot",))
    ledger = MemoryLedger({"cpu": 1000})
    for name, num_bytes in (("parrot", 100), ("owl", 200), ("crow", 300)):
        ledger.claim(name, name, [Claim(device="cpu", kind=MemoryKind.WEIGHTS, num_bytes=num_bytes)])
    replica = WatchedFake()
    models = (FakeModel("parrot", replicas=[replica]), FakeModel("owl"), FakeModel("crow"))
    with ServerThread(*models, settings=ServerSettings(api_keys=(ward,)), ledger=ledger) as served:
        feed = Feed(served, WARD)
        message = feed.next()
        assert [model["name"] for model in message["models"]] == ["parrot"]
        assert message["memory"] == [
            {
                "device": "cpu",
                "capacity_bytes": 1000,
                "free_bytes": 400,
                "holdings": [
                    {"holder": "parrot", "num_bytes": 100, "rests": False},
                    {"holder": "other models", "num_bytes": 500, "rests": False},
                ],
            }
        ]
        replica.tell(served, joined(1, tenant="ward"), joined(2, tenant="laboratory"))
        assert [event["request_id"] for event in feed.events(2)] == ["req_1", None]
        feed.close()


def test_one_key_that_watches_as_often_as_it_may_keeps_no_other_out() -> None:
    keys = tuple(ApiKeySettings(name=name, sha256=hash_key(f"{name}-key")) for name in ("ward", "laboratory"))
    with ServerThread(FakeModel("parrot"), settings=ServerSettings(api_keys=keys)) as served:
        feeds = [Feed(served, WARD) for _ in range(MAX_FEEDS)]
        for feed in feeds:
            feed.next()
        stream = {"accept": "text/event-stream"}
        assert served.ask("GET", "/live", headers=WARD | stream).status == 429
        feeds.append(Feed(served, {"authorization": "Bearer laboratory-key"}))
        assert feeds[-1].response.status == 200
        for feed in feeds:
            feed.close()


def test_as_many_may_watch_as_the_server_can_bear() -> None:
    with ServerThread(FakeModel("parrot")) as served:
        feeds = [Feed(served) for _ in range(MAX_FEEDS)]
        for feed in feeds:
            feed.next()
        refused = served.ask("GET", "/live", headers={"accept": "text/event-stream"})
        assert (refused.status, refused.headers["retry-after"]) == (429, "5")
        assert served.ask("GET", "/live").status == 200
        for feed in feeds:
            feed.close()


def test_the_feed_ends_when_the_server_drains() -> None:
    with ServerThread(FakeModel("parrot")) as served:
        feed = Feed(served)
        feed.next()
        served.listening.lifecycle.drain_threadsafe()
        assert feed.response.read() is not None  # it comes to an end
        served.join()
        feed.close()
