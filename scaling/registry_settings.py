"""Where replicas publish themselves and gateways look: what an operator may write, and the registry that it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from sixfold.core.config import Seconds
from sixfold.scaling.hub.etcd_client import EtcdSettings, etcd_settings
from sixfold.scaling.registry import Registry, SqliteRegistry

_FROZEN = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RegistryPlace(BaseModel):
    """Where a registry is."""

    model_config = _FROZEN

    path: Path | None = None
    """A SQLite file of this machine; a relative path starts at the folder of the configuration file. Or:"""

    etcd: Annotated[EtcdSettings, BeforeValidator(etcd_settings)] | None = None
    """An etcd that replicas and gateways of several machines share: ``etcd://HOST:PORT,HOST:PORT/PREFIX`` (``etcds`` for https),
    or ``endpoints``, ``prefix``, ``user``, ``password`` or ``password_file``, ``tls_ca``, ``tls_cert``, ``tls_key``,
    ``timeout_s``."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.path is None) == (self.etcd is None):
            raise ValueError("give either path: FILE or etcd: etcd://HOST:PORT.")
        return self


class RegistrySettings(RegistryPlace):
    """Where replicas publish themselves."""

    ttl_s: Seconds = 2.0
    """A replica that has not renewed its lease for so long gets no more requests; etcd counts whole seconds, 2 at least."""


def short_registry(value: object) -> object:
    """What may be written short: a file's name, or the address of an etcd."""
    if isinstance(value, str):
        return {"etcd": value} if value.startswith(("etcd://", "etcds://")) else {"path": value}
    return value


def place_of(text: str) -> RegistryPlace:
    """The place that a text names: see `short_registry`."""
    return RegistryPlace.model_validate(short_registry(text))


def open_registry(settings: RegistrySettings) -> Registry:
    """The registry that the operator chose.

    Raises:
        ConfigError: The file can't be opened, or a certificate is missing.
    """
    return open_place(settings, ttl_s=settings.ttl_s)


def open_place(place: RegistryPlace, *, ttl_s: float) -> Registry:
    """The registry at a place.

    Args:
        place: Where it is.
        ttl_s: Life of a lease, where the registry itself ends them.

    Raises:
        ConfigError: The file can't be opened, or a certificate or the password's file is missing.
    """
    if place.path is not None:
        return SqliteRegistry(place.path)
    assert place.etcd is not None  # the settings have one of both
    from sixfold.scaling.etcd_registry import EtcdRegistry  # its thread and its client are for those who ask for it

    return EtcdRegistry(place.etcd, ttl_s=ttl_s)
