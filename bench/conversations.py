"""Workloads of prompts that grow turn by turn, the same for every way of routing them but for their tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from timed_requests import random_tokens

from sixfold.scaling.autoscale.step_time import StepTime, attended_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How conversations of one kind go: bounds of what is drawn.

    Attributes:
        name: Short.
        first_tokens: Of the first prompt.
        growth_tokens: By which each further prompt is longer.
        output_tokens: Of an answer.
        num_turns: Of a conversation.
        gap_s: Between two turns.
    """

    name: str
    first_tokens: tuple[int, int]
    growth_tokens: tuple[int, int]
    output_tokens: tuple[int, int]
    num_turns: tuple[int, int]
    gap_s: tuple[float, float]

    @property
    def longest(self) -> int:
        """Tokens of its longest prompt."""
        return self.first_tokens[1] + (self.num_turns[1] - 1) * self.growth_tokens[1]


KINDS = (
    Kind(
        name="chats",
        first_tokens=(48, 160),
        growth_tokens=(40, 80),
        output_tokens=(8, 16),
        num_turns=(3, 5),
        gap_s=(2.0, 5.0),
    ),
    Kind(
        name="code",
        first_tokens=(240, 400),
        growth_tokens=(8, 24),
        output_tokens=(4, 8),
        num_turns=(4, 6),
        gap_s=(1.0, 3.0),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One request.

    Attributes:
        at_s: When it is sent, from the start, whether the one before is answered or not.
        conversation: Its number.
        prompt_tokens: Length of the prompt, which begins with that of the turn before.
        output_tokens: Length of the answer.
    """

    at_s: float
    conversation: int
    prompt_tokens: int
    output_tokens: int


def draw_turns(kind: Kind, *, conversations_per_s: float, seconds: float, seed: str) -> list[Turn]:
    """Conversations begin at random and go on, all within the time, by the time of their turns."""
    draws = random.Random(seed)
    turns: list[Turn] = []
    begin_s, number = 0.0, 0
    while begin_s < seconds:
        at_s, prompt_tokens = begin_s, draws.randint(*kind.first_tokens)
        for _ in range(draws.randint(*kind.num_turns)):
            output_tokens = draws.randint(*kind.output_tokens)
            if at_s < seconds:
                turns.append(
                    Turn(at_s=at_s, conversation=number, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
                )
            prompt_tokens += draws.randint(*kind.growth_tokens)
            at_s += draws.uniform(*kind.gap_s)
        begin_s, number = begin_s + draws.expovariate(conversations_per_s), number + 1
    return sorted(turns, key=lambda turn: turn.at_s)


def draw_tokens(kind: Kind, turn: Turn, *, seed: str) -> list[int]:
    """The prompt of a turn: the beginning of the tokens of its conversation, which the seed and its number name."""
    return random_tokens(random.Random(f"{seed}/{turn.conversation}"), kind.longest)[: turn.prompt_tokens]


def mean_work_s(kind: Kind, step_time: StepTime) -> float:
    """What the mean conversation keeps a replica busy that caches nothing and is always four abreast."""
    num_turns = round(sum(kind.num_turns) / 2)
    output_tokens = sum(kind.output_tokens) / 2
    work_s = 0.0
    for number in range(num_turns):
        prompt_tokens = round(sum(kind.first_tokens) / 2 + number * sum(kind.growth_tokens) / 2)
        work_s += step_time.per_prefill_s * prompt_tokens
        work_s += step_time.per_prefill_kv_s * attended_tokens(prompt_tokens, 0)
        step_s = step_time.seconds(prefill_tokens=0, decode_rows=4, kv_tokens=4 * prompt_tokens)
        work_s += output_tokens * step_s / 4
    return work_s


def blocks_of(tokens: Sequence[int], block_tokens: int) -> tuple[int, ...]:
    """Names of the whole blocks of a prompt: equal where all tokens up to their ends are."""
    return tuple(
        hash(tuple(tokens[:end])) for end in range(block_tokens, len(tokens) + 1, block_tokens)
    )  # hashes of tuples of numbers are the same in every process
