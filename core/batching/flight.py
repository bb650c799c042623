"""A step from its choice to its outcomes: begun on the device, and settled when the device has done it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from sixfold.core.batching.entry import Entry, Phase, RequestState
from sixfold.core.batching.model import DeviceLost, Granted, Outcome, PendingStep, StepModel
from sixfold.core.batching.returned import outcomes_of
from sixfold.core.batching.selection import Selection
from sixfold.core.batching.step_runner import run_step

_log = logging.getLogger(__name__)


class Flight:
    """One step. Owner: the step loop.

    Of a model that only computes steps whole, nothing is in progress before `settle`: it does all of it.

    Args:
        selection: Not empty.
        began_s: When it was chosen.
    """

    __slots__ = ("_pending", "began_s", "selection", "states")

    def __init__(self, selection: Selection, began_s: float) -> None:
        self.selection = selection
        self.began_s = began_s
        self.states: dict[int, RequestState] = {entry.state.order: entry.state for entry in selection.entries}
        self._pending: PendingStep[Any] | None = None

    @property
    def may_be_followed(self) -> bool:
        """Whether the next step may begin before this one is settled."""
        return self._pending is not None and self._pending.may_be_followed

    def begin(self, model: StepModel[Any, Any, Any]) -> None:
        """Starts computing. A step that can't even begin is run, and its culprit found, when it is settled.

        Raises:
            DeviceLost: Nothing can run any more.
        """
        if not model.begins_steps:
            return
        try:
            self._pending = model.begin(self.selection.granted)
        except DeviceLost:
            raise
        except Exception as error:  # the border between the core and a model's code
            _log.warning("a step of %d sequences did not begin (%r)", len(self.selection.entries), error)

    def note_begun(self) -> int:
        """Counts the step for its requests; how many of them were never served before."""
        num_first = 0
        for state in self.states.values():
            if state.first_step_s is None:
                state.first_step_s = self.began_s
                num_first += 1
            state.num_steps += 1
            state.max_batch_sequences = max(state.max_batch_sequences, len(self.selection.entries))
        return num_first

    def note_ended(self, ended_s: float, seconds: float) -> None:
        """Tells its requests that the step took so long; call it after `settle`."""
        for state in self.states.values():
            state.last_step_s = ended_s
            if state.step_log is not None:
                state.note_step(ended_s - seconds, ended_s, self.selection.units, len(self.selection.entries))

    def abandon(self) -> None:
        """Forgets what is in progress; `settle` would begin anew."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.abandon()

    def settle(
        self, model: StepModel[Any, Any, Any], follower: Flight | None
    ) -> list[tuple[Entry, int, Outcome[Any] | None]]:
        """Waits for the step; each sequence, what it was granted, and its outcome: None if it left the batch meanwhile.

        Args:
            model: That it was begun on.
            follower: What was begun on top of it. If this step fails, the follower is abandoned: it is run after its turn.

        Raises:
            DeviceLost: Nothing can run any more.
        """
        entries = self.selection.entries
        pending, self._pending = self._pending, None
        if pending is not None:
            try:
                outcomes = outcomes_of(pending, "finish", pending.finish(), len(entries))
            except DeviceLost:
                raise
            except Exception as error:  # the border between the core and a model's code
                _log.warning("a step of %d sequences failed (%r)", len(entries), error)
                if follower is not None:
                    follower.abandon()
            else:
                left = (entry.phase is not Phase.RUNNING for entry in entries)
                return [
                    (entry, units, None if gone else outcome)
                    for (entry, units), outcome, gone in zip(entries.items(), outcomes, left, strict=True)
                ]
        return self._run(model)

    def _run(self, model: StepModel[Any, Any, Any]) -> list[tuple[Entry, int, Outcome[Any] | None]]:
        """Runs the step now, with those that are still in the batch: the step before may have been their last."""
        entries = self.selection.entries
        running = [entry for entry in entries if entry.phase is Phase.RUNNING]
        batch: Sequence[Granted[Any]] = [Granted(entry.sequence, entries[entry]) for entry in running]
        made = dict(zip(running, run_step(model, batch) if batch else (), strict=True))
        return [(entry, units, made.get(entry)) for entry, units in entries.items()]
