"""A registry that machines share: who holds a lease is seen by all, whoever of etcd's members is lost."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import shutil
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from sixfold.core.errors import ConfigError
from sixfold.scaling.etcd_registry import EtcdRegistry
from sixfold.scaling.gateway.config_file import load_gateway_config
from sixfold.scaling.hub.etcd_client import EtcdClient, EtcdSettings, endpoints_of, etcd_settings
from sixfold.scaling.hub.http_client import HttpClient
from sixfold.scaling.hub.store import StoreUnavailable
from sixfold.scaling.registry import Division, LeaseLost, LeaseView, RegistryUnavailable, ReplicaRecord, Row, lease
from sixfold.scaling.registry_settings import RegistrySettings, open_registry, short_registry
from tests.scaling.hub.etcd_cluster import EtcdCluster

NEEDS_ETCD = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd (Debian: etcd-server)"),
]
TTL_S = 2.0


def record(name: str = "a", *, incarnation: int = 1, url: str = "http://a") -> ReplicaRecord:
    return ReplicaRecord(replica_id=name, url=url, incarnation=incarnation)


def settled(holds: Callable[[], bool], what: str) -> None:
    """A real etcd has no clock to advance: this looks again until a deadline."""
    until_s = time.monotonic() + 60
    while time.monotonic() < until_s:
        try:
            if holds():
                return
        except RegistryUnavailable:
            pass
        time.sleep(0.05)
    pytest.fail(f"never: {what}")


def names(registry: EtcdRegistry) -> list[str]:
    return [row.record.replica_id for row in registry.rows()]


@pytest.fixture(scope="module")
def cluster() -> Iterator[EtcdCluster]:
    made = EtcdCluster(3)
    yield made
    made.close()


def registry_of(cluster: EtcdCluster, prefix: str) -> EtcdRegistry:
    made = EtcdRegistry(endpoints_of(cluster.endpoints, prefix=f"/{prefix}/", timeout_s=5), ttl_s=TTL_S)
    settled(lambda: len(made.rows()) >= 0, "etcd answers")
    return made


def test_who_is_listed_without_a_count_lives_as_long_as_it_is_listed() -> None:
    view = LeaseView(ttl_s=2.0)
    rows = [Row(record(), None)]
    for now_s in (0.0, 50.0, 100.0):
        assert list(view.observe(rows, now_s)) == ["a"]
        assert view.abandoned(rows, now_s) == []
    assert not view.observe([], 100.1)


def test_an_etcd_out_of_reach_is_unavailable_and_takes_nothing_away() -> None:
    registry = EtcdRegistry(endpoints_of(["http://127.0.0.1:1"]), ttl_s=TTL_S)
    with pytest.raises(RegistryUnavailable, match="does not answer"):
        registry.rows()
    with pytest.raises(RegistryUnavailable, match="cannot be reached"):
        registry.publish(record())


def test_the_address_of_an_etcd_may_be_written_short() -> None:
    settings = RegistrySettings.model_validate(short_registry("etcds://a:1,b:2/fleet/x"))
    assert settings.etcd == EtcdSettings(endpoints=("https://a:1", "https://b:2"), prefix="/fleet/x/")
    assert EtcdSettings.model_validate(etcd_settings("etcd://a:1")).prefix == "/sixfold/"
    assert RegistrySettings.model_validate(short_registry("replicas.db")).path == Path("replicas.db")


def test_a_missing_certificate_is_the_operators_mistake(tmp_path: Path) -> None:
    settings = {"endpoints": ["https://a:1"], "tls_ca": tmp_path / "no.pem"}
    with pytest.raises(ConfigError, match="Name PEM files"):
        open_registry(RegistrySettings.model_validate({"etcd": settings}))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"user": "u"}, "go together"),
        ({"password": "p"}, "go together"),
        ({"user": "u", "password": "p", "password_file": "f"}, "either"),
        ({"tls_cert": "c"}, "go together"),
        ({"tls_ca": "c"}, "https"),
    ],
)
def test_a_half_of_what_belongs_together_is_refused(given: dict[str, str], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        EtcdSettings.model_validate({"endpoints": ["http://a:1"], **given})


def test_no_text_of_the_settings_holds_the_password(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("registry: {etcd: {endpoints: ['http://a:1'], user: u, password: hush-hush}}")
    settings = load_gateway_config(path, environ={})
    assert settings.registry is not None
    assert settings.registry.etcd is not None
    assert settings.registry.etcd.read_password() == "hush-hush"
    assert "hush" not in f"{settings!r} {settings}"
    path.write_text("registry: {etcd: {endpoints: ['http://a:1'], user: u, password: [hush-hush]}}")
    with pytest.raises(ConfigError, match="password") as refused:
        load_gateway_config(path, environ={})
    assert "hush" not in str(refused.value)


def test_a_password_is_read_anew_from_its_file_and_a_missing_file_is_told_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "password"
    settings = endpoints_of(["http://a:1"], user="u", password_file=path)
    with pytest.raises(ConfigError, match="password_file"):
        EtcdRegistry(settings, ttl_s=TTL_S)
    for password in ("first", "second"):
        path.write_text(password + "\n")
        assert settings.read_password() == password


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "member")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    paths = folder / "member.pem", folder / "member.key"
    paths[0].write_bytes(certificate.public_bytes(pem))
    form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(pem, form, none))
    return paths


class MemberWithUsers(BaseHTTPRequestHandler):
    """Answers as etcd's member does whose only user's password is the newest of `passwords`; over TLS where it is so served."""

    passwords: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        status = 200
        answer: Mapping[str, object] = {"header": {"revision": "1"}}
        if self.path == "/v3/auth/authenticate":
            good = body == {"name": "u", "password": self.passwords[-1]}
            status, answer = (200, {"token": self.passwords[-1]}) if good else (400, {"error": "authentication failed"})
        elif self.headers.get("authorization") != self.passwords[-1]:
            status, answer = 401, {"error": "etcdserver: invalid auth token"}
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test has no log."""


async def test_over_tls_a_client_checks_the_member_and_follows_a_password_that_changes(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    member = ThreadingHTTPServer(("127.0.0.1", 0), MemberWithUsers)
    member.socket = context.wrap_socket(member.socket, server_side=True)
    serving = threading.Thread(target=member.serve_forever)
    serving.start()
    password = tmp_path / "password"
    try:
        MemberWithUsers.passwords[:] = ["first"]
        password.write_text("first")
        url = f"https://127.0.0.1:{member.server_port}"
        known = EtcdClient(endpoints_of([url], user="u", password_file=password, tls_ca=certificate))
        await known.call("/v3/kv/range", {}, repeatable=True)
        MemberWithUsers.passwords.append("second")
        password.write_text("second")
        await known.call("/v3/kv/range", {}, repeatable=True)
        stranger = EtcdClient(endpoints_of([url], user="u", password_file=password))
        with pytest.raises(StoreUnavailable, match="certificate"):
            await stranger.call("/v3/kv/range", {}, repeatable=True)
        password.write_text("wrong-and-secret")
        MemberWithUsers.passwords.append("third")
        with pytest.raises(StoreUnavailable, match="authentication failed") as refused:
            await known.call("/v3/kv/range", {}, repeatable=True)
        assert "secret" not in str(refused.value)
    finally:
        member.shutdown()
        serving.join()
        member.server_close()


class TestWithThreeMembers:
    pytestmark = NEEDS_ETCD

    def test_how_requests_are_divided_reaches_every_machine_and_outlives_who_said_it(
        self, cluster: EtcdCluster
    ) -> None:
        speaker, watcher = registry_of(cluster, "divided"), registry_of(cluster, "divided")
        division = Division(service="chat", names=("chat",), old="1", new="2", share=0.05)
        for share in (0.05, 0.25):
            speaker.divide("chat", msgspec.structs.replace(division, share=share))
        settled(lambda: [each.share for each in watcher.divisions()] == [0.25], "the share is seen")
        assert watcher.rows() == []
        another = registry_of(cluster, "divided")
        another.divide("chat", None)
        settled(lambda: watcher.divisions() == [], "its end is seen")
        speaker.divide("chat", division)
        settled(lambda: watcher.divisions() == [division], "a second rollout is seen")

    def test_what_one_machine_publishes_another_sees_until_its_holder_falls_silent(self, cluster: EtcdCluster) -> None:
        holder, watcher = registry_of(cluster, "silent"), registry_of(cluster, "silent")
        holder.publish(record())
        settled(lambda: names(watcher) == ["a"], "the watch brings it")
        began_s = time.monotonic()
        while time.monotonic() < began_s + 2 * TTL_S:  # renewed, it outlives its lease
            holder.publish(record())
            assert names(watcher) == ["a"]
            time.sleep(TTL_S / 4)
        settled(lambda: names(watcher) == [], "a silent holder's row vanishes")

    def test_a_replaced_process_neither_renews_nor_withdraws_its_successor(self, cluster: EtcdCluster) -> None:
        old, new = registry_of(cluster, "replaced"), registry_of(cluster, "replaced")
        old.publish(record(incarnation=1))
        new.publish(record(incarnation=2, url="http://new"))
        with pytest.raises(LeaseLost):
            old.publish(record(incarnation=1))
        assert not old.withdraw("a", 1)
        settled(lambda: [row.record.url for row in old.rows()] == ["http://new"], "the successor stays")
        assert new.withdraw("a", 2)
        settled(lambda: names(old) == [], "what is given back vanishes at once")

    async def test_a_lease_holds_while_a_member_is_killed_and_compaction_loses_no_change(
        self, cluster: EtcdCluster
    ) -> None:
        holder, watcher = registry_of(cluster, "killed"), registry_of(cluster, "killed")
        async with lease(holder, record("b"), ttl_s=TTL_S):
            await asyncio.to_thread(settled, lambda: names(watcher) == ["b"], "the lease is seen")
            for member in range(3):
                cluster.kill(member)
                await asyncio.to_thread(holder.publish, record("c", incarnation=member))
                seen = lambda member=member: [row.record.incarnation for row in watcher.rows()] == [1, member]  # noqa: E731
                await asyncio.to_thread(settled, seen, f"changes arrive without member {member}")
                cluster.start(member)
                await compact(cluster, (member + 1) % 3)
                assert "b" in names(watcher)
        await asyncio.to_thread(settled, lambda: names(watcher) in ([], ["c"]), "the lease is given back")

    async def test_a_cluster_with_users_takes_those_it_knows_and_refuses_others(self) -> None:
        own = EtcdCluster(1)
        try:
            (url,) = own.endpoints
            plain = EtcdRegistry(endpoints_of([url], timeout_s=5), ttl_s=TTL_S)
            await asyncio.to_thread(settled, lambda: len(plain.rows()) >= 0, "etcd answers")
            etcd = HttpClient(url, timeout_s=5)
            for path, body in (
                ("role/add", {"name": "root"}),
                ("user/add", {"name": "root", "password": "pw"}),
                ("user/grant", {"user": "root", "role": "root"}),
                ("enable", {}),
            ):
                await etcd.call("POST", f"/v3/auth/{path}", json.dumps(body).encode())
            known = EtcdRegistry(endpoints_of([url], user="root", password="pw", timeout_s=5), ttl_s=TTL_S)
            await asyncio.to_thread(known.publish, record())
            assert await asyncio.to_thread(names, known) == ["a"]
            for stranger in (plain, EtcdRegistry(endpoints_of([url], user="root", password="no"), ttl_s=TTL_S)):
                with pytest.raises(RegistryUnavailable, match=r"user name is empty|invalid user ID or password"):
                    await asyncio.to_thread(stranger.publish, record())
        finally:
            own.close()

    async def test_over_tls_whoever_shows_a_certificate_is_let_in(self, tmp_path: Path) -> None:
        certificate, key = self_signed(tmp_path)
        own = EtcdCluster(1, tls=(certificate, key))
        try:
            shown = {"tls_ca": certificate, "tls_cert": certificate, "tls_key": key}
            known = EtcdRegistry(endpoints_of(own.endpoints, timeout_s=5, **shown), ttl_s=TTL_S)
            await asyncio.to_thread(settled, lambda: len(known.rows()) >= 0, "etcd answers")
            await asyncio.to_thread(known.publish, record())
            assert await asyncio.to_thread(names, known) == ["a"]
            stranger = EtcdRegistry(endpoints_of(own.endpoints, timeout_s=5, tls_ca=certificate), ttl_s=TTL_S)
            with pytest.raises(RegistryUnavailable):
                await asyncio.to_thread(stranger.publish, record())
        finally:
            own.close()


async def compact(cluster: EtcdCluster, member: int) -> None:
    """Forgets all changes so far, as etcd does of itself every few minutes."""
    etcd = HttpClient(cluster.endpoints[member], timeout_s=5)
    answer = json.loads(await etcd.call("POST", "/v3/kv/range", b'{"key": "YQ=="}'))
    body = json.dumps({"revision": answer["header"]["revision"]}).encode()
    await etcd.call("POST", "/v3/kv/compaction", body)
