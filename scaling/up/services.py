"""From a configuration file's models to what each replica is started with."""

from __future__ import annotations

import hashlib
import json

from sixfold.core.serving.settings import hash_key
from sixfold.scaling.cluster.document import DeployedService
from sixfold.scaling.cluster.replica import NODE_IP, ReplicaSettings
from sixfold.scaling.registry_settings import RegistryPlace
from sixfold.scaling.up.settings import Site

_OWN_TO_THE_GATEWAY = {"host", "port", "api_keys", "cors_origins", "protect_metrics", "access_log", "data_dir"}
_HOST, _KEY, _LISTEN = (
    "\x00host",
    "\x00key",
    "\x00listen",
)  # stand for what may be variables until the rest is safe from being filled in
_STOP_MARGIN_S = 10.0
_REVISION_BYTES = 5


def deployed(
    site: Site,
    service: str,
    *,
    registry: RegistryPlace,
    replica_key: str | None,
    has_gpus: bool,
    cache_dir: str | None = None,
) -> DeployedService:
    """A service as what the cluster is told to run, without replicas yet. Its revision names all that its server is told.

    Args:
        site: The configuration.
        service: Its name: the model's, or that of those who compute prompts for it.
        registry: Where replicas publish themselves.
        replica_key: What they demand of whoever asks; None for nothing.
        has_gpus: See `Site.service`.
        cache_dir: See `replica_config`.
    """
    config = replica_config(
        *(site, service),
        key_sha256=None if replica_key is None else hash_key(replica_key),
        host=f"${{{NODE_IP}}}" if registry.etcd is not None else "127.0.0.1",
        cache_dir=cache_dir,
    )
    replicas = ReplicaSettings(
        config=config,
        revision=hashlib.blake2b(config.encode(), digest_size=_REVISION_BYTES).hexdigest(),
        registry=registry,
        start_timeout_s=site.cluster.start_timeout_s,
        drain_s=site.settings.server.drain_timeout_s + _STOP_MARGIN_S,
        lease_s=site.cluster.lease_s,
        role=site.services[service].role,
    )
    return DeployedService(
        spec=site.service(service, has_gpus=has_gpus), replicas=replicas, num_replicas=0, name=service
    )


def replica_config(
    site: Site,
    service: str,
    *,
    key_sha256: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    cache_dir: str | None = None,
) -> str:
    """The configuration file of a server with a service's model alone.

    Args:
        site: The configuration.
        service: Its name.
        key_sha256: Of the key that it demands; None for none. This and ``host`` may name a variable, as in ``${NAME}``.
        host: Where it listens.
        port: On which port; 0 takes a free one.
        cache_dir: Where its machine keeps model files; None for where this one does.
    """
    settings = site.settings
    entry = site.entry(service, listen=_LISTEN)
    server = settings.server.model_dump(mode="json", exclude_defaults=True, exclude=_OWN_TO_THE_GATEWAY)
    server |= {"host": _HOST, "port": port}
    if key_sha256 is not None:
        # The gateway has checked who asks, and passes on the priority that it may have, and for whom it is.
        server["api_keys"] = [{"name": "gateway", "sha256": _KEY, "priority": "interactive", "acts_for_others": True}]
    document: dict[str, object] = {
        "models": {entry.name: entry.model_dump(mode="json", exclude_defaults=True, exclude={"name"})},
        "server": server,
        "cache_dir": cache_dir or str(settings.cache_dir),
    }
    if settings.memory_limits_bytes:
        document["memory_limits_bytes"] = dict(settings.memory_limits_bytes)
    # What is a reference in this text would be filled in a second time; those that shall be come after.
    text = json.dumps(document).replace("${", "$${").replace(json.dumps(_HOST), json.dumps(host))
    text = text.replace(json.dumps(_LISTEN), json.dumps(f"{host}:0"))
    return text.replace(json.dumps(_KEY), json.dumps(key_sha256))
