"""The steps of one traced request, in bounded room: early ones one by one, and as they become many, neighbours together."""

from __future__ import annotations

from sixfold.core.messages import StepGroup

_MAX_GROUPS = 32


class StepLog:
    """Owner: the device thread.

    Each group holds as many steps as every other but the last one, and the groups follow each other without gaps: when
    there are too many, each two neighbours become one, and later groups take as many steps as these have.
    """

    __slots__ = ("_groups", "_steps_a_group")

    def __init__(self) -> None:
        self._groups: list[StepGroup] = []
        self._steps_a_group = 1

    def add(self, step: StepGroup) -> None:
        """Notes a step that has ended."""
        groups = self._groups
        if groups and groups[-1].num_steps < self._steps_a_group:
            groups[-1] = _merged(groups[-1], step)
            return
        if len(groups) == _MAX_GROUPS:
            groups[:] = [_merged(first, second) for first, second in zip(groups[::2], groups[1::2], strict=True)]
            self._steps_a_group *= 2
        groups.append(step)

    @property
    def groups(self) -> tuple[StepGroup, ...]:
        """At most 32, in order."""
        return tuple(self._groups)


def _merged(first: StepGroup, second: StepGroup) -> StepGroup:
    return StepGroup(
        began_s=first.began_s,
        ended_s=second.ended_s,
        num_steps=first.num_steps + second.num_steps,
        units=first.units + second.units,
        max_batch_sequences=max(first.max_batch_sequences, second.max_batch_sequences),
    )
