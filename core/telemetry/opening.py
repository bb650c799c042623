"""From settings to tracing, or to nothing: the only place that decides whether OpenTelemetry is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sixfold.core.errors import ConfigError
from sixfold.core.telemetry.settings import TelemetrySettings

if TYPE_CHECKING:
    from sixfold.core.telemetry.tracing import Tracing


def open_tracing(settings: TelemetrySettings) -> Tracing | None:
    """The tracing of this process; None where no endpoint is set: then nothing is imported and nothing measured.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """
    if settings.endpoint is None:
        return None
    try:
        from sixfold.core.telemetry.tracing import open_otlp
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"telemetry.endpoint: traces need {missing.name}, which is not installed. Run pip install 'sixfold[otel]', or "
            "remove 'endpoint'."
        ) from missing
    return open_otlp(settings)
