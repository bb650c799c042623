"""One look at a server or gateway: its ``/metrics``, and of a server its ``/load``."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from sixfold.core.errors import UsageError

_MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Scrape:
    """All samples of one moment.

    Attributes:
        at_s: ``time.monotonic()`` at which they were read.
        samples: Labels and value, by the sample's name.
        states: Where each model of a server is in its life; empty where that can't be had.
    """

    at_s: float
    samples: Mapping[str, tuple[tuple[Mapping[str, str], float], ...]]
    states: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def is_gateway(self) -> bool:
        """Whether a gateway said it: only these speak of replicas."""
        return "sixfold:gateway_replica_up" in self.samples or "sixfold:gateway_buffered_bytes" in self.samples

    def each(self, name: str, **labels: str) -> Iterator[tuple[Mapping[str, str], float]]:
        """The samples of ``sixfold:NAME`` with these labels."""
        for found, value in self.samples.get(f"sixfold:{name}", ()):
            if labels.items() <= found.items():
                yield found, value

    def total(self, name: str, **labels: str) -> float | None:
        """Their sum; None where there is none."""
        values = [value for _labels, value in self.each(name, **labels)]
        return sum(values) if values else None


def read_scrape(text: str, at_s: float, states: Mapping[str, str] | None = None) -> Scrape:
    """Parses Prometheus text.

    Raises:
        ValueError: It is none.
    """
    samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((sample.labels, float(sample.value)))
    except IndexError as error:  # of the library's parser, at labels that are cut
        raise ValueError("this is no text of Prometheus") from error
    return Scrape(at_s, {name: tuple(found) for name, found in samples.items()}, states or {})


def fetch(url: str, *, key: str | None, timeout_s: float) -> Scrape:
    """Looks at a server or gateway once.

    Args:
        url: Its address.
        key: A bearer key, where ``protect_metrics`` is set.
        timeout_s: How long each of the two answers may take.

    Raises:
        UsageError: It does not answer, or is neither.
    """
    base = url.rstrip("/")
    try:
        text = _get(f"{base}/metrics", key, timeout_s).decode("utf-8", "replace")
        scrape = read_scrape(text, time.monotonic())
    except urllib.error.HTTPError as error:
        hint = "Give a key with --key." if error.code in (401, 403) else "Is it a server of Sixfold?"
        raise UsageError(f"{base}/metrics answers {error.code}. {hint}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UsageError(f"{base} does not answer: {reason}. Check the address and that the server is up.") from error
    except ValueError as error:
        raise UsageError(f"{base}/metrics is no Prometheus text: {error}. Is it a server of Sixfold?") from error
    if not any(name.startswith("sixfold:") for name in scrape.samples):
        raise UsageError(
            f"{base}/metrics has no figures of Sixfold. Give the address of a server or gateway of Sixfold."
        )
    return scrape if scrape.is_gateway else Scrape(scrape.at_s, scrape.samples, _states(base, key, timeout_s))


def _states(base: str, key: str | None, timeout_s: float) -> dict[str, str]:
    try:
        models = json.loads(_get(f"{base}/load", key, timeout_s))["models"]
        return {str(model["model_name"]): str(model["state"]) for model in models}
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):  # an older server: nothing to show
        return {}


def _get(url: str, key: str | None, timeout_s: float) -> bytes:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout_s) as answer:
        body: bytes = answer.read(_MAX_BYTES)
        return body
