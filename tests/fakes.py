"""Fakes that all tests share: a clock that only moves when told, and a model whose work, memory and faults are data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from sixfold.core.batching.model import Finish, Granted, ModelInfo, Outcome, PendingStep, StepModel, StepRange
from sixfold.core.errors import InvalidRequest, RequestError
from sixfold.core.messages import Cost, Request, Usage


class FakeClock:
    """Seconds that pass only by `advance`; call it like ``time.monotonic``."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


class FakeWork(msgspec.Struct, frozen=True, kw_only=True):
    """What one sequence does: first a divisible part, then indivisible steps, each of which emits an increment.

    Attributes:
        divisible_units: Work that can be cut anywhere (a prompt).
        num_steps: Indivisible steps after it.
        step_units: Work of each of these steps.
        key: Its batch key.
        poisoned_at: Index of the indivisible step that makes every batch which contains it raise.
        error_at: Index of the indivisible step whose outcome is an ordinary error.
        looks_back: Whether a step must know what the one before brought.
        ends_unforeseen: Whether nobody knows before a step is done that it was the last.
    """

    divisible_units: int = 0
    num_steps: int = 1
    step_units: int = 1
    key: str | None = None
    poisoned_at: int | None = None
    error_at: int | None = None
    looks_back: bool = False
    ends_unforeseen: bool = False

    @property
    def total_units(self) -> int:
        return self.divisible_units + self.num_steps * self.step_units


class FakePiece(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a request: the sequences it becomes, or a failing prepare."""

    sequences: tuple[FakeWork, ...] = ()
    fails: bool = False


class FakeInput(msgspec.Struct, frozen=True, kw_only=True):
    """Input of the fake models."""

    pieces: tuple[FakePiece, ...]


class FakeOutput(msgspec.Struct, frozen=True, kw_only=True):
    """An increment (which sequence, which step), or a result (how many sequences, how many steps in all)."""

    sequence_index: int
    step_index: int


def one_sequence(work: FakeWork) -> FakeInput:
    """A request of a single sequence."""
    return FakeInput(pieces=(FakePiece(sequences=(work,)),))


def many_sequences(work: FakeWork, count: int) -> FakeInput:
    """A request of one piece with ``count`` equal sequences."""
    return FakeInput(pieces=(FakePiece(sequences=(work,) * count),))


class FakeSequence:
    """State of one sequence; the model's."""

    def __init__(self, request_id: str, index: int, work: FakeWork) -> None:
        self.request_id = request_id
        self.index = index
        self.work = work
        self.num_emitted = 0
        self.divisible_left = work.divisible_units
        self.num_held_units = 0  # memory
        self.num_computed_units = 0  # what must be in memory
        self.num_releases = 0

    @property
    def done(self) -> bool:
        return self.num_emitted >= self.work.num_steps


class FakeStepModel(StepModel[FakeSequence, FakeInput, FakeOutput]):
    """Steps `FakeWork`; a step of u units takes ``fixed_s + unit_s * u`` on the fake clock.

    Asserts the core's promises on the way: live sequences only, each once a step, grants within what was asked, one batch
    key, memory reserved, release once.

    Args:
        clock: Moved by steps.
        memory_units: Units of computed work that fit the memory; None for no bound. A sequence holds all that it has
            computed, and computes it again after a preemption.
        fixed_s: Time of an empty step.
        unit_s: Time of one more unit.
        step_range: Bounds of the budget.
    """

    def __init__(
        self,
        clock: FakeClock | None = None,
        *,
        memory_units: int | None = None,
        fixed_s: float = 0.01,
        unit_s: float = 0.001,
        step_range: StepRange | None = None,
    ) -> None:
        self.clock = clock if clock is not None else FakeClock()
        self.memory_units = memory_units
        self.free_units = 0 if memory_units is None else memory_units
        self.fixed_s = fixed_s
        self.unit_s = unit_s
        self._step_range = (
            step_range if step_range is not None else StepRange(min_units=1, initial_units=16, max_units=16)
        )
        self.prepared: list[FakeSequence] = []
        self.batches: list[list[tuple[FakeSequence, int]]] = []  # of the steps that succeeded
        self.num_step_calls = 0
        self.num_closed = 0
        self._num_prepared: Counter[str] = Counter()

    @property
    def info(self) -> ModelInfo:
        return ModelInfo()

    @property
    def step_range(self) -> StepRange:
        return self._step_range

    def estimate_units(self, request: Request[FakeInput]) -> int:
        return max(1, sum(work.total_units for piece in request.input.pieces for work in piece.sequences))

    def split(self, request: Request[FakeInput]) -> Sequence[object]:
        return request.input.pieces

    def prepare(self, request: Request[FakeInput], piece: object) -> Sequence[FakeSequence]:
        assert isinstance(piece, FakePiece)
        if piece.fails:
            raise InvalidRequest("This piece cannot be prepared.", param="input")
        sequences: list[FakeSequence] = []
        for work in piece.sequences:
            sequences.append(FakeSequence(request.request_id, self._num_prepared[request.request_id], work))
            self._num_prepared[request.request_id] += 1
        self.prepared.extend(sequences)
        return sequences

    def cost(self, sequence: FakeSequence) -> Cost | None:
        assert sequence.num_releases == 0
        return self._next_cost(sequence)

    @staticmethod
    def _next_cost(sequence: FakeSequence) -> Cost:
        if sequence.divisible_left > 0:
            return Cost(units=sequence.divisible_left, min_units=1, batch_key=sequence.work.key)
        return Cost(units=sequence.work.step_units, min_units=sequence.work.step_units, batch_key=sequence.work.key)

    def reserve(self, sequence: FakeSequence, units: int) -> int:
        assert sequence.num_releases == 0
        if self.memory_units is None:
            return units
        room = self.free_units + sequence.num_held_units - sequence.num_computed_units
        granted = min(units, room)
        if granted < self._next_cost(sequence).min_units:
            return 0
        taken = max(0, sequence.num_computed_units + granted - sequence.num_held_units)
        sequence.num_held_units += taken
        self.free_units -= taken
        return granted

    def preempt(self, sequence: FakeSequence) -> None:
        assert sequence.num_releases == 0
        self._free(sequence)
        sequence.divisible_left = sequence.work.divisible_units + sequence.num_emitted * sequence.work.step_units
        sequence.num_computed_units = 0

    def step(self, batch: Sequence[Granted[FakeSequence]]) -> Sequence[Outcome[FakeOutput]]:
        self.num_step_calls += 1
        self._check(batch)
        self.clock.advance(self.fixed_s + self.unit_s * sum(granted.units for granted in batch))
        for granted in batch:
            sequence = granted.sequence
            if sequence.divisible_left == 0 and sequence.num_emitted == sequence.work.poisoned_at:
                raise RuntimeError("poisoned")
        self.batches.append([(granted.sequence, granted.units) for granted in batch])
        return [self._advance(granted) for granted in batch]

    def release(self, sequence: FakeSequence) -> None:
        sequence.num_releases += 1
        assert sequence.num_releases == 1
        self._free(sequence)

    def finish(self, request: Request[FakeInput], sequences: Sequence[FakeSequence]) -> Finish[FakeOutput]:
        assert all(sequence.done and sequence.num_releases == 1 for sequence in sequences)
        assert [sequence.index for sequence in sequences] == list(range(len(sequences)))
        del self._num_prepared[request.request_id]  # the id may be used again
        num_steps = sum(sequence.num_emitted for sequence in sequences)
        result = FakeOutput(sequence_index=len(sequences), step_index=num_steps)
        return Finish(result=result, usage=Usage(counts={"steps": num_steps}))

    def stats(self) -> Mapping[str, float]:
        return {"free_units": float(self.free_units)}

    def close(self) -> None:
        self.num_closed += 1

    @property
    def num_unreleased(self) -> int:
        """Prepared sequences that the core has not given back."""
        return sum(sequence.num_releases == 0 for sequence in self.prepared)

    def _free(self, sequence: FakeSequence) -> None:
        if self.memory_units is not None:
            self.free_units += sequence.num_held_units
        sequence.num_held_units = 0

    def _check(self, batch: Sequence[Granted[FakeSequence]]) -> None:
        assert batch
        assert len({id(granted.sequence) for granted in batch}) == len(batch)
        assert len({granted.sequence.work.key for granted in batch}) == 1
        for granted in batch:
            sequence = granted.sequence
            cost = self._next_cost(sequence)
            assert not sequence.done
            assert cost.min_units <= granted.units <= cost.units
            if self.memory_units is not None:
                assert sequence.num_held_units >= sequence.num_computed_units + granted.units

    def _advance(self, granted: Granted[FakeSequence]) -> Outcome[FakeOutput]:
        sequence = granted.sequence
        sequence.num_computed_units += granted.units
        if sequence.divisible_left > 0:
            sequence.divisible_left -= granted.units
            return Outcome()
        if sequence.num_emitted == sequence.work.error_at:
            return Outcome(done=True, error=RequestError("The sequence failed."))
        output = FakeOutput(sequence_index=sequence.index, step_index=sequence.num_emitted)
        sequence.num_emitted += 1
        return Outcome(output=output, done=sequence.done)


class FakePlace:
    """A sequence's part in a step that was begun."""

    def __init__(self, granted: Granted[FakeSequence], emits: bool) -> None:
        self.granted = granted
        self.emits = emits


class FakeAheadModel(FakeStepModel):
    """As `FakeStepModel`, but begins steps: time passes when one is finished, and one may begin on top of another.

    A poisoned sequence of odd index makes `begin` raise, others `finish`. Asserts besides that steps are finished in order.
    """

    def __init__(self, clock: FakeClock | None = None, *, may_be_followed: bool = True, **options: Any) -> None:
        super().__init__(clock, **options)
        self.may_be_followed = may_be_followed
        self.flying: list[FakePendingStep] = []
        self.places: dict[FakeSequence, list[FakePlace]] = {}
        self.num_begun_on_top = 0
        self.num_surplus = 0

    @property
    def begins_steps(self) -> bool:
        return True

    def cost(self, sequence: FakeSequence) -> Cost | None:
        assert sequence.num_releases == 0
        places = self.places.get(sequence, [])
        if places and sequence.work.looks_back:
            return None
        divisible_left = sequence.divisible_left - sum(p.granted.units for p in places if not p.emits)
        if divisible_left > 0:
            return Cost(units=divisible_left, min_units=1, batch_key=sequence.work.key)
        num_steps = sequence.num_emitted + sum(p.emits for p in places)
        if num_steps >= sequence.work.num_steps and not sequence.work.ends_unforeseen:
            return None
        units = sequence.work.step_units
        return Cost(units=units, min_units=units, batch_key=sequence.work.key)

    def begin(self, batch: Sequence[Granted[FakeSequence]]) -> PendingStep[FakeOutput]:
        assert len(self.flying) < 2
        self.num_begun_on_top += len(self.flying)
        for granted in batch:
            cost = self.cost(granted.sequence)
            assert cost is not None and cost.min_units <= granted.units <= cost.units
            if self.memory_units is not None:
                assert granted.sequence.num_held_units >= granted.sequence.num_computed_units + granted.units
        places = [FakePlace(granted, self._emits(granted.sequence)) for granted in batch]
        if any(granted.sequence.index % 2 and self._is_poisoned_ahead(granted.sequence) for granted in batch):
            raise RuntimeError("poisoned")
        for place in places:
            self.places.setdefault(place.granted.sequence, []).append(place)
            place.granted.sequence.num_computed_units += place.granted.units
        step = FakePendingStep(self, places)
        self.flying.append(step)
        return step

    def step(self, batch: Sequence[Granted[FakeSequence]]) -> Sequence[Outcome[FakeOutput]]:
        assert not self.flying
        return self.begin(batch).finish()

    def preempt(self, sequence: FakeSequence) -> None:
        self.places.pop(sequence, None)
        super().preempt(sequence)

    def release(self, sequence: FakeSequence) -> None:
        self.places.pop(sequence, None)
        super().release(sequence)

    def _emits(self, sequence: FakeSequence) -> bool:
        cut = sum(p.granted.units for p in self.places.get(sequence, []) if not p.emits)
        return sequence.divisible_left - cut <= 0

    def _is_poisoned_ahead(self, sequence: FakeSequence) -> bool:
        emitted = sequence.num_emitted + sum(p.emits for p in self.places.get(sequence, []))
        return self._emits(sequence) and emitted == sequence.work.poisoned_at

    def forget(self, places: Sequence[FakePlace]) -> list[FakePlace]:
        """Takes places back; returns those whose sequences are still there."""
        kept = [place for place in places if place in self.places.get(place.granted.sequence, [])]
        for place in kept:
            own = self.places[place.granted.sequence]
            own.remove(place)
            if not own:
                del self.places[place.granted.sequence]
            place.granted.sequence.num_computed_units -= place.granted.units
        return kept

    def outcomes(self, places: Sequence[FakePlace]) -> list[Outcome[FakeOutput]]:
        """What a step that was finished brings."""
        self.clock.advance(self.fixed_s + self.unit_s * sum(place.granted.units for place in places))
        self.num_step_calls += 1
        kept = self.forget(places)
        for place in kept:
            if place.emits and place.granted.sequence.num_emitted == place.granted.sequence.work.poisoned_at:
                raise RuntimeError("poisoned")
        self.num_surplus += len(places) - len(kept)
        self.batches.append([(place.granted.sequence, place.granted.units) for place in kept])
        return [self._advance(place.granted) if place in kept else Outcome() for place in places]


class FakePendingStep(PendingStep[FakeOutput]):
    """A step of `FakeAheadModel`."""

    def __init__(self, model: FakeAheadModel, places: Sequence[FakePlace]) -> None:
        self._model = model
        self._places = places

    @property
    def may_be_followed(self) -> bool:
        return self._model.may_be_followed

    def finish(self) -> Sequence[Outcome[FakeOutput]]:
        assert self._model.flying[0] is self
        del self._model.flying[0]
        return self._model.outcomes(self._places)

    def abandon(self) -> None:
        assert self._model.flying[-1] is self
        del self._model.flying[-1]
        self._model.forget(self._places)
