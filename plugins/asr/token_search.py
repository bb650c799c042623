"""Chooses Whisper's next tokens on the device: no step here needs a value on the host, so all can be recorded as CUDA graphs.

Texts are [windows, beams]: a window has as many as its search keeps, one where it takes the likeliest token each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Search = Literal["likeliest", "drawn", "beams"]

_NEVER = -1.0e9  # as transformers has it for beams: adding to it changes nothing that counts


@dataclass(slots=True)
class Texts:
    """Texts in the making, at fixed places. Owner: the decoder.

    Attributes:
        ids: [windows, beams, length]: prompt, text, then ends.
        at: [1], the place of the last token that is known.
        num_prompt: [1].
        limit: [1], the length at which a text is cut.
        never: [vocabulary], whether a token never comes.
        temperature: [1], of drawing.
        ancestors: [windows, beams, length]: in which beam's place the keys of each of a text's tokens are; -1 where none are.
        latest: [windows, beams], the last timestamp; -1 before the first.
        total: [windows, beams], sum of log probabilities.
        ended: [windows, beams].
        kept_ids: [windows, beams, length] of beams that have ended, the best first.
        kept_score: [windows, beams], mean log probability of a token.
        kept_tokens: [windows, beams], how many these are, the end included.
        open: [windows, 1], whether a running beam may become better than those.
        done: [1], whether all windows are done.
    """

    ids: Tensor
    at: Tensor
    num_prompt: Tensor
    limit: Tensor
    never: Tensor
    temperature: Tensor
    ancestors: Tensor
    latest: Tensor
    total: Tensor
    ended: Tensor
    kept_ids: Tensor
    kept_score: Tensor
    kept_tokens: Tensor
    open: Tensor
    done: Tensor

    @classmethod
    def make(cls, windows: int, beams: int, length: int, *, vocabulary: int, device: torch.device) -> Texts:
        """Places for so many texts; `begin` fills them."""

        def whole(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=device)

        return cls(
            ids=whole(windows, beams, length),
            at=whole(1),
            num_prompt=whole(1),
            limit=whole(1),
            never=torch.zeros(vocabulary, dtype=torch.bool, device=device),
            temperature=torch.ones(1, device=device),
            ancestors=whole(windows, beams, length),
            latest=whole(windows, beams),
            total=torch.zeros(windows, beams, device=device),
            ended=torch.zeros(windows, beams, dtype=torch.bool, device=device),
            kept_ids=whole(windows, beams, length),
            kept_score=torch.zeros(windows, beams, device=device),
            kept_tokens=whole(windows, beams),
            open=torch.zeros(windows, 1, dtype=torch.bool, device=device),
            done=torch.zeros(1, dtype=torch.bool, device=device),
        )

    def begin(
        self, prompts: Sequence[Sequence[int]], *, first: int, limit: int, end: int, temperature: float, one_leads: bool
    ) -> None:
        """Begins anew.

        Args:
            prompts: Of the windows, equally long; there may be fewer than places.
            first: The first token of the prompts that is fed alone; the ones before it are in the first beam's places.
            limit: Length at which texts are cut.
            end: The token of the end.
            temperature: Of drawing.
            one_leads: Whether only the first beam of a window is real at the beginning, since all are equal.
        """
        given = torch.tensor([list(prompt) for prompt in prompts]).to(self.ids.device)
        num_windows, num_prompt = given.shape
        for ids in (self.ids, self.kept_ids):
            ids.fill_(end)
            ids[:num_windows, :, :num_prompt] = given[:, None]
        self.at.fill_(first)
        self.num_prompt.fill_(num_prompt)
        self.limit.fill_(limit)
        self.temperature.fill_(temperature or 1.0)
        self.ancestors.fill_(-1)
        self.ancestors[:, :, :first] = 0
        self.latest.fill_(-1)
        self.total.fill_(0.0)
        if one_leads:
            self.total[:, 1:] = _NEVER
        self.ended.fill_(False)
        self.ended[num_windows:] = True
        self.kept_score.fill_(_NEVER)
        self.kept_tokens.fill_(0)
        self.open.fill_(True)
        self.open[num_windows:] = False
        self.done.fill_(False)


class TokenRules:
    """Which tokens may follow.

    Args:
        end: The end of a text; smaller ids are text.
        first_time: ``<|0.00|>``; all ids from here on are timestamps.
        max_first_time: The latest timestamp that a text may begin with; None for any.
        vocabulary: How many ids there are.
        device: Where the texts are.
    """

    def __init__(
        self, *, end: int, first_time: int, max_first_time: int | None, vocabulary: int, device: torch.device
    ) -> None:
        self.end = end
        self._first_time = first_time
        self._places = torch.arange(vocabulary, device=device)
        self._is_time = self._places >= first_time
        self._is_text = self._places < end
        self._not_first = ~self._is_time
        if max_first_time is not None:
            self._not_first |= self._places > max_first_time

    def is_time(self, tokens: Tensor) -> Tensor:
        """Whether tokens are timestamps."""
        return tokens >= self._first_time

    def masked(self, logprobs: Tensor, texts: Texts) -> Tensor:
        """Log probabilities, minus infinity where a token may not follow.

        Timestamps come in pairs but for the last, they never decrease, and a text begins with one. One comes where all of
        them together are likelier than any other token.

        Args:
            logprobs: [windows, beams, vocabulary], float32.
            texts: What they follow.

        Source: Radford et al. 2022, section 4.5; the rules as transformers has them.
        """
        number = texts.at + 1 - texts.num_prompt
        last, before = (
            self.is_time(texts.ids.index_select(2, (texts.at - back).clamp(min=0))[..., 0]) for back in (0, 1)
        )
        last, before = last & (number >= 1), before | (number < 2)
        no_time, no_text = last & before, last & ~before
        least = (texts.latest + ~no_text).masked_fill(texts.latest < 0, self._first_time)
        least = least.masked_fill(no_time, len(self._places))
        forbidden = texts.never | ((number == 0) & self._not_first)
        forbidden = forbidden | (self._is_time & (self._places < least[..., None]))
        forbidden = forbidden | (self._is_text & no_text[..., None])
        scores = logprobs.masked_fill(forbidden, -torch.inf)
        times, others = scores[..., self._first_time :], scores[..., : self._first_time]
        times_win = times.logsumexp(dim=-1) > others.amax(dim=-1)
        return scores.masked_fill(times_win[..., None] & ~self._is_time, -torch.inf)


def extend(texts: Texts, logits: Tensor, rules: TokenRules, search: Search) -> None:
    """Takes every text one token further.

    Args:
        texts: Changed in place.
        logits: [windows, beams, vocabulary] behind the tokens at ``texts.at``.
        rules: Which tokens may follow.
        search: How they are chosen.
    """
    logprobs = logits.float().log_softmax(dim=-1)
    scores = rules.masked(logprobs, texts)
    if search == "beams":
        _extend_beams(texts, scores, rules)
        return
    chances = scores
    if search == "drawn":
        # The largest of such sums falls on each token with the probability that it has.
        chances = scores / texts.temperature - torch.empty_like(scores).exponential_().log()
    tokens = chances.argmax(dim=-1).masked_fill(texts.ended, rules.end)
    gained = logprobs.gather(2, tokens[..., None])[..., 0]
    texts.total.add_(gained.masked_fill(texts.ended, 0.0))
    texts.ended.logical_or_(tokens == rules.end)
    texts.at.add_(1)
    texts.ids.index_copy_(2, texts.at, tokens[..., None])
    texts.latest.copy_(torch.where(rules.is_time(tokens), tokens, texts.latest))
    texts.done.copy_(texts.ended.all()[None])


def _extend_beams(texts: Texts, scores: Tensor, rules: TokenRules) -> None:
    """Source: beam search as transformers has it, with a length penalty of 1 and without early stopping."""
    windows, beams, vocabulary = scores.shape
    totals, found = (texts.total[..., None] + scores).view(windows, -1).topk(2 * beams)
    parents, tokens = found // vocabulary, found % vocabulary
    texts.at.add_(1)
    number = texts.at + 1 - texts.num_prompt
    ids = _rows(texts.ids, parents).index_copy(2, texts.at, tokens[..., None])
    over = (tokens == rules.end) | (texts.at + 1 >= texts.limit)

    # Those that ended here and are among the best, and those that had ended before.
    best = over & (torch.arange(2 * beams, device=scores.device) < beams) & texts.open
    fresh = (totals / number).masked_fill(~best, _NEVER)
    kept_score, places = torch.cat((texts.kept_score, fresh), dim=1).topk(beams)
    counts = torch.cat((texts.kept_tokens, number.expand_as(fresh)), dim=1)
    texts.kept_tokens.copy_(counts.gather(1, places))
    texts.kept_ids.copy_(_rows(torch.cat((texts.kept_ids, ids), dim=1), places))
    texts.kept_score.copy_(kept_score)

    total, places = (totals + _NEVER * over).topk(beams)
    parents, tokens = parents.gather(1, places), tokens.gather(1, places)
    texts.total.copy_(total)
    texts.ids.copy_(_rows(ids, places))
    texts.ancestors.copy_(_rows(texts.ancestors, parents))
    latest = texts.latest.gather(1, parents)
    texts.latest.copy_(torch.where(rules.is_time(tokens), tokens, latest))

    improves = total[:, :1] / number > kept_score.amin(dim=1, keepdim=True)
    has_room = (kept_score <= _NEVER / 2).any(dim=1, keepdim=True)
    texts.open.logical_and_(improves | has_room)
    texts.done.copy_(~texts.open.any()[None])


def _rows(values: Tensor, places: Tensor) -> Tensor:
    """[windows, places, length]: the rows of each window at its places."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[2]))
