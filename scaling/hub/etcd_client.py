"""Calls to an etcd cluster over the HTTP/JSON face that every member serves: who is asked, as whom, and what is asked again.

Source: etcd 3.4, API reference (gRPC gateway, authentication); the answers of 3.4.23 to each case.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Self, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sixfold.core.config import Seconds
from sixfold.core.errors import ConfigError
from sixfold.scaling.hub.http_client import CallFailed, HttpClient
from sixfold.scaling.hub.store import StoreUnavailable

_NOT_KNOWN = ("invalid auth token", "user name is empty")
"""What etcd says to a caller without a token, or with one that has ended."""


class EtcdSettings(BaseModel):
    """How an etcd cluster is reached."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    endpoints: Annotated[tuple[Annotated[str, Field(pattern=r"^https?://[^/\s]+$")], ...], Field(min_length=1)]
    """Addresses of all members, such as ``https://10.0.0.1:2379``."""

    prefix: str = "/sixfold/"
    """In front of every key, so that several fleets may share an etcd."""

    user: str | None = None
    """Name of an etcd user; null where etcd asks for none."""

    password: Annotated[str | None, Field(repr=False)] = None
    """The user's password; take it from the environment: ``${ETCD_PASSWORD}``. Or:"""

    password_file: Path | None = None
    """A file with it, read anew whenever etcd asks who it is."""

    tls_ca: Path | None = None
    """Certificates that members' certificates are checked against; the system's unless set."""

    tls_cert: Path | None = None
    """Certificate that members are shown."""

    tls_key: Path | None = None
    """Its key."""

    timeout_s: Seconds = 2.0
    """For one call to one member."""

    @model_validator(mode="after")
    def _in_pairs(self) -> Self:
        if self.password is not None and self.password_file is not None:
            raise ValueError("give either password or password_file.")
        if (self.user is None) != (self.password is None and self.password_file is None):
            raise ValueError("user and password go together (or password_file). Set both, or neither.")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together. Set both, or neither.")
        if (self.tls_ca or self.tls_cert) and not all(url.startswith("https://") for url in self.endpoints):
            raise ValueError(
                "with tls_ca or tls_cert every endpoint must be https://...: on http:// they would not be used."
            )
        return self

    def read_password(self) -> str | None:
        """The user's password as it is now; None where etcd asks for none.

        Raises:
            ConfigError: Its file can't be read.
        """
        if self.password_file is None:
            return self.password
        try:
            return self.password_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"etcd: password_file: {self.password_file} can't be read: {error}. Name a text file that this user may read."
            ) from error

    def tls(self) -> ssl.SSLContext | None:
        """What the settings say of certificates; None for nothing.

        Raises:
            ConfigError: A file is missing or holds no certificate.
        """
        if self.tls_ca is None and self.tls_cert is None:
            return None
        try:
            context = ssl.create_default_context(cafile=None if self.tls_ca is None else str(self.tls_ca))
            if self.tls_cert is not None:
                context.load_cert_chain(self.tls_cert, self.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"etcd: tls_ca, tls_cert or tls_key can't be used: {error}. Name PEM files that this user may read."
            ) from error
        return context


def etcd_settings(value: object) -> object:
    """What may be written short: ``etcd://HOST:PORT,HOST:PORT/PREFIX`` (etcds for https), or a list of addresses."""
    if isinstance(value, list | tuple):
        return {"endpoints": cast(Sequence[object], value)}
    if not isinstance(value, str):
        return value
    scheme, _, rest = value.partition("://")
    hosts, _, prefix = rest.partition("/")
    if scheme not in ("etcd", "etcds"):
        raise ValueError(f"{value!r} is no etcd. Write etcd://HOST:PORT,HOST:PORT/PREFIX, or etcds:// for https")
    http = "http" if scheme == "etcd" else "https"
    found: dict[str, object] = {"endpoints": [f"{http}://{host}" for host in hosts.split(",")]}
    return {**found, "prefix": f"/{prefix.strip('/')}/"} if prefix.strip("/") else found


class EtcdClient:
    """Asks one member as long as it answers, then the next. Used in one event loop.

    Args:
        settings: Who is asked, and as whom.
    """

    def __init__(self, settings: EtcdSettings) -> None:
        tls = settings.tls()
        settings.read_password()  # a mistake is told at the start, not when etcd first asks
        self._settings = settings
        self._members = [HttpClient(url, timeout_s=settings.timeout_s, tls=tls) for url in settings.endpoints]
        self._user = settings.user
        self._token: str | None = None
        self._current = 0

    async def call(self, path: str, body: Mapping[str, object], *, repeatable: bool) -> dict[str, Any]:
        """The answer of the current member, or of the others. What may have happened already is not asked for again.

        Raises:
            StoreUnavailable: Nobody answers.
        """
        problem = "no member"
        for _ in range(len(self._members) + 1):  # once more for a token that has ended
            try:
                return await self._ask(path, body)
            except CallFailed as error:
                problem = str(error)
                if "lease not found" in problem:
                    break
                if self._user is not None and any(text in problem for text in _NOT_KNOWN):
                    self._token = None
                    continue
                if "authentication failed" in problem:
                    break
                self.next_member()
                if error.sent and not repeatable:
                    break
            except ValueError as error:
                problem = f"not JSON: {error}"
                break
        raise StoreUnavailable(f"etcd: {problem}")

    @asynccontextmanager
    async def watch(self, create: Mapping[str, object]) -> AsyncGenerator[AsyncIterator[dict[str, Any]]]:
        """The results of a watch at the current member, as they come.

        Raises:
            StoreUnavailable: The member does not answer, or no more; the next call goes to another.
        """
        body = json.dumps({"create_request": create}).encode()
        try:
            if self._user is not None and self._token is None:
                await self._authenticate()
            member = self._members[self._current]
            async with member.stream("POST", "/v3/watch", body, authorization=self._token) as chunks:
                yield _results(chunks)
        except CallFailed as error:
            self._token = None
            self.next_member()
            raise StoreUnavailable(f"etcd: {error}") from error

    def next_member(self) -> None:
        """The next call goes to another one."""
        self._current = (self._current + 1) % len(self._members)

    async def _ask(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        if self._user is not None and self._token is None:
            await self._authenticate()
        data = json.dumps(body).encode()
        answer = await self._members[self._current].call("POST", path, data, authorization=self._token)
        return cast(dict[str, Any], json.loads(answer.partition(b"\n")[0] or b"{}"))

    async def _authenticate(self) -> None:
        try:
            password = await asyncio.to_thread(self._settings.read_password)
        except ConfigError as error:
            raise StoreUnavailable(str(error)) from error
        body = json.dumps({"name": self._user, "password": password}).encode()
        answer = await self._members[self._current].call("POST", "/v3/auth/authenticate", body)
        self._token = str(json.loads(answer)["token"])


async def _results(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    line = b""
    async for chunk in chunks:
        *lines, line = (line + chunk).split(b"\n")
        for text in filter(None, lines):
            try:
                yield cast(dict[str, Any], json.loads(text).get("result", {}))
            except ValueError as error:
                raise CallFailed(f"a watch said what is no JSON: {error}") from None


def endpoints_of(endpoints: Sequence[str], **more: object) -> EtcdSettings:
    """The settings of members that ask for no name; for programs that have nothing but addresses."""
    return EtcdSettings.model_validate({"endpoints": tuple(endpoints), **more})
