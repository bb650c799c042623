"""Where replicas publish themselves and gateways look: what an operator may write, and the registry that it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from sixfold.core.config import Seconds
from sixfold.scaling.hub.etcd_client import EtcdSettings, etcd_settings
from sixfold.scaling.registry import Registry, SqliteRegistry

_FROZEN = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RegistrySettings(BaseModel):
    """Where replicas publish themselves."""

    model_config = _FROZEN

    path: Path | None = None
    """A SQLite file of this machine; a relative path starts at the folder of the configuration file. Or:"""

    etcd: Annotated[EtcdSettings, BeforeValidator(etcd_settings)] | None = None
    """An etcd that replicas and gateways of several machines share: ``etcd://HOST:PORT,HOST:PORT/PREFIX`` (``etcds`` for https),
    or ``endpoints``, ``prefix``, ``user``, ``password``, ``tls_ca``, ``tls_cert``, ``tls_key``, ``timeout_s``."""

    ttl_s: Seconds = 2.0
    """A replica that has not renewed its lease for so long gets no more requests; etcd counts whole seconds, 2 at least."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.path is None) == (self.etcd is None):
            raise ValueError("give either path: FILE or etcd: etcd://HOST:PORT.")
        return self


def short_registry(value: object) -> object:
    """What may be written short: a file's name, or the address of an etcd."""
    if isinstance(value, str):
        return {"etcd": value} if value.startswith(("etcd://", "etcds://")) else {"path": value}
    return value


def registry_place(value: object) -> object:
    """The place alone: the address of an etcd becomes its settings, whatever else is a file's name."""
    return etcd_settings(value) if isinstance(value, str) and value.startswith(("etcd://", "etcds://")) else value


def open_registry(settings: RegistrySettings) -> Registry:
    """The registry that the operator chose.

    Raises:
        ConfigError: The file can't be opened, or a certificate is missing.
    """
    place = settings.path or settings.etcd
    assert place is not None  # the settings have one of both
    return open_place(place, ttl_s=settings.ttl_s)


def open_place(place: Path | EtcdSettings, *, ttl_s: float) -> Registry:
    """The registry in a file or an etcd.

    Args:
        place: Where it is.
        ttl_s: Life of a lease, where the registry itself ends them.

    Raises:
        ConfigError: The file can't be opened, or a certificate is missing.
    """
    if isinstance(place, Path):
        return SqliteRegistry(place)
    from sixfold.scaling.etcd_registry import EtcdRegistry  # its thread and its client are for those who ask for it

    return EtcdRegistry(place, ttl_s=ttl_s)
