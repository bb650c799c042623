"""Sampling operations against transformers' logits processors, and the independence of rows from their batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers.generation import logits_process

from sixfold.plugins.llm.generation import SamplingParams
from sixfold.plugins.llm.penalties import RowPenalties, TokenCounts, apply_penalties
from sixfold.plugins.llm.sampler import sample
from sixfold.plugins.llm.sampling import Sampling, SamplingDefaults, resolve_sampling
from sixfold.plugins.llm.tensors import float_list, int_list
from sixfold.plugins.llm.truncation import Draw, draw_tokens

VOCAB = 1500


@dataclass
class Row:
    """A sequence as the sampler sees it."""

    sampling: Sampling
    num_before: int = 0
    has_unknown: bool = False
    token_counts: TokenCounts | None = field(default=None)


def row(prompt: Sequence[int] = (), output: Sequence[int] = (), choice: int = 0, **params: Any) -> Row:
    sampling = resolve_sampling(SamplingParams(**params), SamplingDefaults(), eos_ids=[5], choice=choice)
    counts = TokenCounts(prompt) if sampling.has_penalties else None
    for token in output:
        if counts is not None:
            counts.add(token)
    return Row(sampling=sampling, num_before=len(output), token_counts=counts)


def random_logits(rows: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


def kept_by_transformers(logits: torch.Tensor, *, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    ids: Any = torch.zeros((len(logits), 1), dtype=torch.long)
    scores: Any = logits.clone()
    if top_k:
        scores = logits_process.TopKLogitsWarper(top_k)(ids, scores)
    if top_p < 1:
        scores = logits_process.TopPLogitsWarper(top_p)(ids, scores)
    if min_p:
        scores = logits_process.MinPLogitsWarper(min_p)(ids, scores)
    return torch.softmax(scores.double(), dim=-1)


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [
        (1, 1.0, 0.0),
        (7, 1.0, 0.0),
        (0, 0.5, 0.0),
        (0, 0.999, 0.0),
        (0, 1.0, 0.02),
        (200, 0.9, 0.01),
        (1200, 0.95, 0.0),
        (5000, 0.7, 0.0),
    ],
)
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_draws_follow_the_distribution_of_transformers_processors(
    top_k: int, top_p: float, min_p: float, scale: float
) -> None:
    logits = random_logits(1, scale=scale)
    expected = kept_by_transformers(logits, top_k=top_k, top_p=top_p, min_p=min_p)[0]
    draws = 3000
    uniform = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    tokens = torch.cat(
        [
            draw_tokens(
                logits.expand(len(part), -1),
                Draw(
                    uniform=part,
                    top_k=torch.full((len(part),), top_k),
                    top_p=torch.full((len(part),), top_p, dtype=torch.float64),
                    min_p=torch.full((len(part),), min_p, dtype=torch.float64),
                ),
            )
            for part in torch.split(uniform, 1000)
        ]
    )
    share = torch.bincount(tokens, minlength=VOCAB).double() / draws
    # Evenly spaced numbers hit each interval with at most one too many or too few at either end.
    assert float((share - expected).abs().max()) <= 2 / draws + 1e-6


def test_temperature_one_without_limits_draws_from_the_whole_distribution() -> None:
    logits = random_logits(1, scale=1.0)
    uniform = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    zeros = torch.zeros(4000, dtype=torch.float64)
    draw = Draw(uniform=uniform, top_k=zeros.long(), top_p=zeros + 1, min_p=zeros)
    share = torch.bincount(draw_tokens(logits.expand(4000, -1), draw), minlength=VOCAB).double() / 4000
    assert float((share - torch.softmax(logits[0].double(), 0)).abs().max()) <= 2 / 4000


def test_repetition_penalty_equals_transformers() -> None:
    logits = random_logits(2)
    seen = [[3, 4, 4, 9], [100, 3]]
    processor: Any = logits_process.RepetitionPenaltyLogitsProcessor(1.7)
    expected = torch.cat([processor(torch.tensor([ids]), logits[i : i + 1].clone()) for i, ids in enumerate(seen)])
    penalties = [
        RowPenalties(row=i, counts=TokenCounts(ids), presence=0, frequency=0, repetition=1.7)
        for i, ids in enumerate(seen)
    ]
    apply_penalties(logits, penalties)
    assert torch.equal(logits, expected)


def test_presence_and_frequency_touch_the_answer_only() -> None:
    logits = torch.zeros(1, 10)
    counts = TokenCounts([1, 2])
    for token in (2, 3, 3):
        counts.add(token)
    apply_penalties(logits, [RowPenalties(row=0, counts=counts, presence=0.5, frequency=0.25, repetition=1.0)])
    assert float_list(logits[0, :5]) == [0, 0, -0.75, -1.0, 0]


def test_counts_grow_past_their_first_size() -> None:
    counts = TokenCounts([])
    for token in [*range(500), *range(0, 500, 2)]:
        counts.add(token)
    assert dict(zip(counts.ids.tolist(), counts.counts.tolist(), strict=True)) == {t: 2 - t % 2 for t in range(500)}


def test_a_row_gets_the_same_token_in_every_batch() -> None:
    rows = [
        row(temperature=0),
        row(temperature=1.0, seed=1),
        row(temperature=0.7, top_p=0.9, seed=2, output=[4, 4]),
        row(temperature=1.5, top_k=40, seed=3),
        row(temperature=1.0, min_p=0.1, seed=4, frequency_penalty=1.0, prompt=[1], output=[7, 8]),
        row(temperature=0, logit_bias=((11, 100.0),)),
        row(temperature=2.0, top_p=0.99, seed=6),
    ]
    logits = random_logits(len(rows), scale=0.5)
    together = [token.token_id for token in sample(logits, rows)]
    alone = [sample(logits[i : i + 1], [r])[0].token_id for i, r in enumerate(rows)]
    backwards = [token.token_id for token in sample(logits.flip(0), rows[::-1])][::-1]
    assert together == alone == backwards
    assert together[0] == int(logits[0].argmax())
    assert together[5] == 11


def test_a_seed_repeats_its_choices_and_choices_of_one_seed_differ() -> None:
    logits = random_logits(1, scale=0.1)

    def draws(choice: int) -> list[int | None]:
        rows = [row(seed=9, choice=choice, output=[0] * position) for position in range(20)]
        return [sample(logits, [r])[0].token_id for r in rows]

    assert draws(0) == draws(0)
    assert draws(0) != draws(1)
    assert len(set(draws(0))) > 10


def test_requests_without_a_seed_differ() -> None:
    logits = random_logits(1, scale=0.01)
    assert len({sample(logits, [row()])[0].token_id for _ in range(8)}) > 1


def test_end_tokens_wait_for_the_minimum() -> None:
    logits = torch.zeros(2, 10)
    logits[:, 5] = 9
    logits[:, 6] = 8
    logits[:, 7] = 7
    early, late = row(temperature=0, min_tokens=2, stop_token_ids=(6,)), row(temperature=0, min_tokens=2, output=[1, 1])
    assert [token.token_id for token in sample(logits, [early, late])] == [7, 5]


def test_logprobs_are_those_of_the_untouched_model() -> None:
    logits = random_logits(2)
    rows = [row(temperature=0, num_top_logprobs=3, logit_bias=((11, 100.0),)), row(temperature=0)]
    first, second = sample(logits, rows)
    expected = torch.log_softmax(logits[0], 0)
    assert first.logprobs is not None
    assert first.token_id == 11
    assert first.logprobs.chosen == pytest.approx(float(expected[11]))
    values, ids = expected.topk(3)
    assert first.logprobs.top_ids == tuple(int_list(ids))
    assert first.logprobs.top == pytest.approx(float_list(values))
    assert second.logprobs is None


def test_a_row_that_is_not_finite_is_told_and_spares_the_others() -> None:
    logits = random_logits(3)
    logits[1, 4] = torch.nan
    good = [row(temperature=0), row(seed=1), row(seed=1)]
    tokens = [token.token_id for token in sample(logits, good)]
    assert tokens[1] is None
    assert tokens[0] is not None
    assert tokens[2] is not None
