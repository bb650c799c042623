"""Decides what the server may fetch: which hosts the operator allows, and which addresses nobody may reach through it."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from sixfold.core.errors import InvalidRequest

_DEFAULT_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")


@dataclass(frozen=True, slots=True)
class HttpUrl:
    """A URL taken apart and checked for form."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def parse_http_url(url: str) -> HttpUrl:
    """Takes a URL apart.

    Raises:
        InvalidRequest: It is no plain http or https URL.
    """
    if any(ord(character) <= 32 or ord(character) == 127 for character in url) or "\\" in url:
        raise InvalidRequest("The URL holds spaces, backslashes or control characters. Percent-encode them.")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").rstrip(".")
        if ":" not in host:
            host = host.encode("idna").decode().lower()
    except (ValueError, UnicodeError):
        raise InvalidRequest("The URL is malformed.") from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise InvalidRequest(f"URLs of the scheme {parts.scheme[:20]!r} cannot be fetched; use http, https or data.")
    if not host or "%" in host or parts.username is not None or parts.password is not None:
        raise InvalidRequest("The URL must have a host, and no user or password.")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        target.encode("ascii")
    except UnicodeEncodeError:
        raise InvalidRequest("The URL's path must be percent-encoded ASCII.") from None
    return HttpUrl(parts.scheme, host, _DEFAULT_PORTS[parts.scheme] if port is None else port, target)


def check_allowed(url: HttpUrl, patterns: Sequence[str]) -> None:
    """Refuses hosts that ``server.fetch_urls`` does not name.

    Raises:
        InvalidRequest: With what the client can do instead.
    """
    if not patterns:
        raise InvalidRequest("This server does not fetch URLs. Send the content itself, for example as a data: URL.")
    if not any(_matches(url, pattern.strip().lower()) for pattern in patterns):
        raise InvalidRequest(
            f"This server does not fetch from {url.authority[:200]!r}. Send the content itself, for example as a data: URL."
        )


def _matches(url: HttpUrl, pattern: str) -> bool:
    name, colon, port = pattern.rpartition(":")
    if not colon or not port.isdecimal() or (":" in name and not name.startswith("[")):
        name, port = pattern, ""
    name = name.strip("[]")
    if url.port != (int(port) if port else _DEFAULT_PORTS[url.scheme]):
        return False
    if name.startswith("*."):
        return url.host.endswith(name[1:])
    return name in ("*", url.host)


def is_public(address: str) -> bool:
    """Whether an address is one of the open internet, also what it embeds: anything else is inside somebody's network."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return _is_open(ip.ipv4_mapped)
        if ip in _NAT64:
            return _is_open(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        embedded = (ip.sixtofour, *(ip.teredo or ()))
        if ip in _LOCAL_NAT64 or ip.is_site_local or any(inner and not _is_open(inner) for inner in embedded):
            return False
    return _is_open(ip)


def _is_open(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    closed = (
        ip.is_private
        or ip.is_loopback
        or ip.is_link_local
        or ip.is_multicast
        or ip.is_reserved
        or ip.is_unspecified
        or not ip.is_global
    )
    return not closed
