"""Events of a worker, read back into the types that a family declares."""

from __future__ import annotations

from typing import Any

import msgspec

from sixfold.core.errors import StepFailed
from sixfold.core.family import Family
from sixfold.core.messages import Event, Failed, Finished, Increment
from sixfold.core.runtime import wire


class EventReader:
    """Reads what one family's workers send.

    Args:
        family: Whose outputs they are.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self._outputs = msgspec.msgpack.Decoder[Any](family.output_type)

    def read(self, request_id: str, event: wire.WireEvent) -> Event:
        """The event of the request.

        Raises:
            StepFailed: Its output is none that the family declares; names the method that must have returned it.
        """
        try:
            return self._read(request_id, event)
        except msgspec.MsgspecError as error:
            method = "step" if isinstance(event, wire.WireIncrement) else "finish"
            raise StepFailed(
                f"{self._family.loader}: {method} returned what is not of {self._family.name}'s Family.output_type: {error}"
            ) from error

    def _read(self, request_id: str, event: wire.WireEvent) -> Event:
        if isinstance(event, wire.WireIncrement):
            return Increment(request_id=request_id, output=self._outputs.decode(event.output))
        if isinstance(event, wire.WireFailed):
            return Failed(request_id=request_id, error=event.error, trace=event.trace)
        return Finished(
            request_id=request_id,
            result=self._outputs.decode(event.result),
            usage=event.usage,
            timing=event.timing,
            finish_reason=event.finish_reason,
            trace=event.trace,
        )
