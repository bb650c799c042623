"""Bearer keys and their limits, by clock and over HTTP."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sixfold.core.errors import InvalidRequest, NotAuthenticated, PermissionDenied, RateLimited
from sixfold.core.messages import Priority
from sixfold.core.serving.keys import KeyRing
from sixfold.core.serving.limits import KeyLimiter, TokenBucket, duration_text
from sixfold.core.serving.settings import ApiKeySettings, KeyLimits, ServerSettings, hash_key
from tests.core.serving.fake_replica import FakeModel, FakeReplica
from tests.core.serving.server_thread import ServerThread


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def key(name: str, secret: str, **rest: object) -> ApiKeySettings:
    return ApiKeySettings.model_validate({"name": name, "sha256": hash_key(secret), **rest})


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


@given(
    capacity=st.integers(1, 50),
    rate_per_s=st.floats(0.01, 100.0),
    steps=st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(1, 20)), max_size=60),
)
def test_a_bucket_never_lets_more_through_than_it_promises(
    capacity: int, rate_per_s: float, steps: list[tuple[float, int]]
) -> None:
    clock = Clock()
    bucket = TokenBucket(capacity, rate_per_s, clock)
    taken_at_s: list[float] = []
    for pause_s, tries in steps:
        clock.now_s += pause_s
        for _ in range(tries):
            wait_s = bucket.take()
            assert wait_s >= 0.0
            if wait_s == 0.0:
                taken_at_s.append(clock.now_s)
    for first, begin_s in enumerate(taken_at_s):
        for last in range(first, len(taken_at_s)):
            allowed = capacity + (taken_at_s[last] - begin_s) * rate_per_s
            assert last - first + 1 <= allowed + 1e-6


@given(capacity=st.integers(1, 5), rate_per_s=st.floats(0.01, 100.0), num_taken=st.integers(1, 20))
def test_a_bucket_keeps_its_word_about_the_wait(capacity: int, rate_per_s: float, num_taken: int) -> None:
    clock = Clock()
    bucket = TokenBucket(capacity, rate_per_s, clock)
    for _ in range(num_taken):
        wait_s = bucket.take()
        if wait_s > 0.0:
            clock.now_s += wait_s * 1.000001
            assert bucket.take() == 0.0


def test_a_clock_that_jumps_back_gives_nothing_away() -> None:
    clock = Clock()
    bucket = TokenBucket(1, 1.0, clock)
    assert bucket.take() == 0.0
    clock.now_s -= 100.0
    assert bucket.take() > 0.0


def test_a_refused_request_is_not_counted_as_running() -> None:
    limiter = KeyLimiter("ward", KeyLimits(max_concurrent_requests=1), Clock())
    limiter.begin()
    with pytest.raises(RateLimited):
        limiter.begin()
    limiter.end()
    limiter.begin()
    assert limiter.num_running == 1


def test_too_many_at_once_are_told_how_often_one_of_the_keys_requests_ends() -> None:
    clock = Clock()
    limiter = KeyLimiter("ward", KeyLimits(max_concurrent_requests=2), clock)
    for _ in range(30):  # two at a time, of which one ends every three seconds
        while limiter.num_running < 2:
            limiter.begin()
        clock.now_s += 3.0
        limiter.end()
    limiter.begin()
    with pytest.raises(RateLimited) as caught:
        limiter.begin()
    assert caught.value.retry_after_s == pytest.approx(3.0)


def test_a_night_without_requests_is_no_time_between_their_ends() -> None:
    clock = Clock()
    limiter = KeyLimiter("ward", KeyLimits(max_concurrent_requests=1), clock)
    for _ in range(3):
        limiter.begin()
        clock.now_s += 2.0
        limiter.end()
        clock.now_s += 30_000.0
    limiter.begin()
    with pytest.raises(RateLimited) as caught:
        limiter.begin()
    assert caught.value.retry_after_s == pytest.approx(2.0)


def test_without_keys_everyone_comes_in() -> None:
    assert KeyRing((), Clock()).authenticate(None).name == "anonymous"


@pytest.mark.parametrize("header", [None, b"", b"Basic abc", b"Bearer", b"Bearer  ", b"Bearer wrong", b"secret"])
def test_with_keys_nobody_else_comes_in(header: bytes | None) -> None:
    with pytest.raises(NotAuthenticated):
        KeyRing((key("ward", "secret"),), Clock()).authenticate(header)


def test_each_key_is_its_holder() -> None:
    ring = KeyRing((key("ward", "one", weight=2, priority="interactive"), key("lab", "two")), Clock())
    ward = ring.authenticate(b"Bearer one")
    assert (ward.name, ward.weight, ward.priority) == ("ward", 2.0, Priority.INTERACTIVE)
    assert ring.authenticate(b"bearer two").name == "lab"


@pytest.mark.parametrize(
    "bad",
    [
        {"api_keys": [{"name": "a", "sha256": "short"}]},
        {"api_keys": [{"name": "a", "sha256": hash_key("x"), "priority": "urgent"}]},
        {"api_keys": [{"name": "a", "sha256": hash_key("x")}, {"name": "a", "sha256": hash_key("y")}]},
        {"api_keys": [{"name": "a", "sha256": hash_key("x")}, {"name": "b", "sha256": hash_key("x").upper()}]},
        {"porrt": 1},
    ],
)
def test_settings_that_make_no_sense_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ServerSettings.model_validate(bad)


def test_every_setting_is_described() -> None:
    for kind in (ServerSettings, ApiKeySettings, KeyLimits):
        assert all(field.description for field in kind.model_fields.values())


def test_routes_need_the_key_and_probes_do_not() -> None:
    settings = ServerSettings(api_keys=(key("ward", "secret"),))
    with ServerThread(FakeModel("parrot", replicas=[FakeReplica()]), settings=settings) as served:
        refused = served.echo()
        assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
        assert refused.headers["www-authenticate"] == "Bearer"
        assert served.echo(headers=bearer("wrong")).status == 401
        assert served.ask("GET", "/v1/models").status == 401
        assert served.echo(headers=bearer("secret")).status == 200
        assert served.ask("GET", "/v1/models", headers=bearer("secret")).status == 200
        for path in ("/", "/health", "/ready", "/load", "/metrics", "/openapi.json"):
            assert served.ask("GET", path).status == 200


def test_metrics_can_be_protected() -> None:
    settings = ServerSettings(api_keys=(key("ward", "secret"),), protect_metrics=True)
    with ServerThread(FakeModel("parrot"), settings=settings) as served:
        assert served.ask("GET", "/metrics").status == 401
        assert served.ask("GET", "/load").status == 401
        assert served.ask("GET", "/metrics", headers=bearer("secret")).status == 200


def test_a_key_sees_and_uses_only_its_models() -> None:
    settings = ServerSettings(api_keys=(key("ward", "secret", models=["parrot"]),))
    parrot = FakeModel("parrot", aliases=("polly",), replicas=[FakeReplica()])
    with ServerThread(parrot, FakeModel("owl", replicas=[FakeReplica()]), settings=settings) as served:
        listed = served.ask("GET", "/v1/models", headers=bearer("secret")).json["data"]
        assert [model["id"] for model in listed] == ["parrot", "polly"]
        assert served.ask("GET", "/v1/models/owl", headers=bearer("secret")).status == 404
        refused = served.echo(model="owl", headers=bearer("secret"))
        assert (refused.status, refused.error["code"]) == (403, "permission_denied")
        unknown = served.echo(model="nobody", headers=bearer("secret"))
        assert "owl" not in unknown.error["message"]
        assert served.echo(model="polly", headers=bearer("secret")).status == 200


def test_a_key_for_a_name_that_a_family_offers_sees_and_uses_nothing_else() -> None:
    settings = ServerSettings(api_keys=(key("ward", "secret", models=["parrot-pirate"]),))
    parrot = FakeModel("parrot", replicas=[FakeReplica()], variants=("parrot-pirate", "parrot-poet"))
    with ServerThread(parrot, settings=settings) as served:
        listed = served.ask("GET", "/v1/models", headers=bearer("secret")).json["data"]
        assert [model["id"] for model in listed] == ["parrot-pirate"]
        assert served.echo(model="parrot-pirate", headers=bearer("secret")).status == 200
        assert served.echo(model="parrot-poet", headers=bearer("secret")).status == 403
        assert served.echo(model="parrot", headers=bearer("secret")).status == 403


def test_a_key_may_lower_its_priority_but_not_raise_it() -> None:
    settings = ServerSettings(api_keys=(key("ward", "secret"),))
    with ServerThread(FakeModel("parrot", replicas=[FakeReplica()]), settings=settings) as served:
        assert served.echo(headers={**bearer("secret"), "x-priority": "batch"}).status == 200
        assert served.echo(headers={**bearer("secret"), "x-priority": "interactive"}).status == 403


def test_requests_carry_the_keys_name_and_weight() -> None:
    replica = FakeReplica(by_hand=True)
    settings = ServerSettings(api_keys=(key("ward", "secret", weight=3, priority="interactive"),))
    with ServerThread(FakeModel("parrot", replicas=[replica]), settings=settings) as served:
        connection = served.connect()
        connection.request("POST", "/v1/echo", json.dumps({"model": "parrot", "input": "a"}), bearer("secret"))
        submitted = replica.next()
        request = submitted.request
        assert (request.tenant, request.weight, request.priority) == ("ward", 3.0, Priority.INTERACTIVE)
        submitted.finish()
        assert connection.getresponse().status == 200
        connection.close()


def test_a_key_over_its_rate_is_429_with_retry_after() -> None:
    settings = ServerSettings(api_keys=(key("ward", "secret", limits={"requests_per_minute": 2}),))
    with ServerThread(FakeModel("parrot", replicas=[FakeReplica()]), settings=settings) as served:
        assert [served.echo(headers=bearer("secret")).status for _ in range(2)] == [200, 200]
        refused = served.echo(headers=bearer("secret"))
        assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert refused.headers["x-should-retry"] == "true"


def test_a_key_gets_its_place_back_when_a_request_ends() -> None:
    replica = FakeReplica(by_hand=True)
    settings = ServerSettings(api_keys=(key("ward", "secret", limits={"max_concurrent_requests": 1}),))
    with ServerThread(FakeModel("parrot", replicas=[replica]), settings=settings) as served:
        connection = served.connect()
        connection.request("POST", "/v1/echo", json.dumps({"model": "parrot", "input": "a"}), bearer("secret"))
        submitted = replica.next()
        assert served.echo(headers=bearer("secret")).status == 429
        submitted.finish()
        assert connection.getresponse().status == 200
        connection.close()
        replica.by_hand = False
        assert served.echo(headers=bearer("secret")).status == 200


def test_a_keys_limits_are_in_the_headers_that_openais_clients_read() -> None:
    limits = {"requests_per_minute": 2, "tokens_per_minute": 6}  # a token comes back in 10 s: no pause brings one
    settings = ServerSettings(api_keys=(key("ward", "secret", limits=limits), key("lab", "free")))
    with ServerThread(FakeModel("parrot", replicas=[FakeReplica()]), settings=settings) as served:
        first = served.echo("a b c", headers=bearer("secret"))
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-limit-tokens"] == "6"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-remaining-tokens"] == "3", "three words were read"
        assert first.headers["x-ratelimit-reset-requests"].endswith("s")
        refused = [served.echo(headers=bearer("secret")) for _ in range(2)][-1]
        assert (refused.status, refused.headers["x-ratelimit-remaining-requests"]) == (429, "0")
        assert not any(name.startswith("x-ratelimit") for name in served.echo(headers=bearer("free")).headers)


def test_tokens_are_counted_when_a_request_ends_and_the_next_waits_until_they_are_back() -> None:
    clock = Clock()
    limiter = KeyLimiter("ward", KeyLimits(tokens_per_minute=60, requests_per_minute=10), clock)
    limiter.begin()
    limiter.charge_tokens(90)  # more than there were: a debt of 30
    limiter.end()
    with pytest.raises(RateLimited) as refused:
        limiter.begin()
    assert refused.value.retry_after_s == pytest.approx(31.0)
    assert dict(limiter.headers)[b"x-ratelimit-remaining-tokens"] == b"0"
    assert dict(limiter.headers)[b"x-ratelimit-reset-tokens"] == b"1m30s"
    assert dict(limiter.headers)[b"x-ratelimit-remaining-requests"] == b"9", "what tokens refuse uses up no request"
    clock.now_s += 31.0
    limiter.begin()


def test_a_cancelled_request_counts_what_it_was_seen_to_bring() -> None:
    replica = FakeReplica(by_hand=True)
    settings = ServerSettings(api_keys=(key("ward", "secret", limits={"tokens_per_minute": 600}),))
    with ServerThread(FakeModel("parrot", replicas=[replica]), settings=settings) as served:
        connection = served.connect()
        body = json.dumps({"model": "parrot", "input": "a", "stream": True})
        connection.request("POST", "/v1/echo", body, bearer("secret"))
        submitted = replica.next()
        submitted.say(*["word"] * 300)
        answer = connection.getresponse()
        assert answer.read(1)
        connection.close()
        answer.close()
        assert submitted.cancelled.wait(20.0)
        listed = served.ask("GET", "/v1/models", headers=bearer("secret"))
        assert int(listed.headers["x-ratelimit-remaining-tokens"]) < 400


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0ms"), (0.0195, "20ms"), (1.0, "1s"), (1.5, "1.5s"), (360.0, "6m0s"), (61.25, "1m1.25s")],
)
def test_times_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_a_key_that_acts_for_others_is_a_tenant_for_each_and_another_is_refused() -> None:
    ring = KeyRing((key("gateway", "g", acts_for_others=True, weight=2.0), key("ward", "w")), Clock())
    gateway, ward = ring.authenticate(b"Bearer g"), ring.authenticate(b"Bearer w")
    assert gateway.acting_for(None) is gateway
    assert (gateway.acting_for(b"ana").name, gateway.acting_for(b"ana").weight) == ("gateway/ana", 2.0)
    assert gateway.acting_for(b"ana").limiter is gateway.limiter
    with pytest.raises(PermissionDenied, match="x-tenant"):
        ward.acting_for(b"ana")
    for wrong in (b"", b"a b", b"a\n", b"x" * 1025, "é".encode("latin-1")):
        with pytest.raises(InvalidRequest, match="x-tenant"):
            gateway.acting_for(wrong)


def test_work_for_a_tenant_of_another_key_goes_on_with_that_keys_rights() -> None:
    ring = KeyRing((key("gateway", "g", acts_for_others=True, models=["m"]), key("ward", "w")), Clock())
    assert (ring.holder("gateway/ana").name, ring.holder("gateway/ana").models) == ("gateway/ana", frozenset("m"))
    with pytest.raises(PermissionDenied):
        ring.holder("ward/ana")
    assert KeyRing((), Clock()).holder("anonymous/ana").name == "anonymous/ana"


def test_no_key_may_be_called_as_a_tenant_of_another_is() -> None:
    with pytest.raises(ValidationError, match="acts_for_others"):
        ServerSettings(api_keys=(key("gateway", "g", acts_for_others=True), key("gateway/ana", "a")))
    ServerSettings(api_keys=(key("gateway", "g"), key("gateway/ana", "a")))


def test_the_server_counts_a_request_for_whom_its_header_says_and_tells_the_key_that_it_may() -> None:
    replica = FakeReplica(by_hand=True)
    settings = ServerSettings(api_keys=(key("gateway", "g", acts_for_others=True), key("ward", "w")))
    with ServerThread(FakeModel("parrot", replicas=[replica]), settings=settings) as served:
        connection = served.connect()
        headers = {**bearer("g"), "x-tenant": "ana"}
        connection.request("POST", "/v1/echo", json.dumps({"model": "parrot", "input": "a"}), headers)
        submitted = replica.next()
        submitted.finish()
        assert connection.getresponse().status == 200
        connection.close()
        assert served.echo(headers={**bearer("w"), "x-tenant": "ana"}).status == 403
        listings = [served.ask("GET", "/v1/models", headers=bearer(each)).json for each in ("g", "w")]
    assert submitted.request.tenant == "gateway/ana"
    assert [listing["acts_for_others"] for listing in listings] == [True, False]
