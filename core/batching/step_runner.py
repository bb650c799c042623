"""Runs one step of a model and, when it raises, finds the culprit by bisection, so that it alone fails."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from sixfold.core.batching.model import DeviceLost, Granted, Outcome, StepModel
from sixfold.core.batching.returned import SEE_LOG, outcomes_of
from sixfold.core.errors import RequestError, StepFailed

_log = logging.getLogger(__name__)


def run_step(model: StepModel[Any, Any, Any], batch: Sequence[Granted[Any]]) -> list[Outcome[Any]]:
    """One outcome per granted sequence, in order, whatever the step raises.

    A failed step is run again in halves: k culprits in a batch of n cost at most about 2 k log2(n) further steps. A lone
    sequence that still fails gets an outcome with its error; what the step raised is the error's cause.

    Raises:
        DeviceLost: Nothing can run any more.
    """
    try:
        return outcomes_of(model, "step", model.step(batch), len(batch))
    except DeviceLost:
        raise
    except RequestError as error:
        if len(batch) == 1:
            return [Outcome(done=True, error=error)]
    except Exception as error:  # the border between the core and a model's code: anything may come
        if len(batch) == 1:
            failure = StepFailed(SEE_LOG)
            failure.__cause__ = error
            return [Outcome(done=True, error=failure)]
        _log.warning("a step of %d sequences failed (%s); bisecting", len(batch), type(error).__name__)
    middle = len(batch) // 2
    return run_step(model, batch[:middle]) + run_step(model, batch[middle:])
