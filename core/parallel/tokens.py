"""Which tokens of a sequence each context rank holds, as ranges of positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sixfold.core.parallel.degrees import Degrees


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenOrder:
    """A sequence divided among the context ranks.

    Attributes:
        ring: Of each place on the ring, the positions that its Ulysses ranks hold together, in their order.
        ranks: Of each context rank, its own positions.
    """

    ring: tuple[tuple[range, ...], ...]
    ranks: tuple[tuple[range, ...], ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each rank."""
        return tuple(sum(map(len, ranges)) for ranges in self.ranks)

    @property
    def ring_lengths(self) -> tuple[int, ...]:
        """Tokens of each place on the ring."""
        return tuple(sum(map(len, ranges)) for ranges in self.ring)

    def positions(self, rank: int) -> list[int]:
        """A rank's positions, one by one, to index a sequence with."""
        return [position for each in self.ranks[rank] for position in each]

    def restored(self) -> list[int]:
        """Where each position of the sequence is when the ranks' parts lie end to end."""
        flat = [position for rank in range(len(self.ranks)) for position in self.positions(rank)]
        places = [0] * len(flat)
        for place, position in enumerate(flat):
            places[position] = place
        return places


def divide(num_tokens: int, degrees: Degrees, *, zigzag: bool = False) -> TokenOrder:
    """Divides a sequence; lengths that do not divide evenly give the first ranks one token more.

    Args:
        num_tokens: Of the sequence.
        degrees: Of the ranks.
        zigzag: Each place on the ring gets a part from the front and its mirror image from the back, so that under a causal
            mask all have the same work. Without, parts are consecutive.

    Source: the order of Brandon et al. 2023 (Striped Attention) in whole blocks, as ring-flash-attention has it.
    """
    num_parts = degrees.ring * (2 if zigzag else 1)
    parts = _cut(range(num_tokens), num_parts)
    ring = tuple((parts[i], parts[-1 - i]) if zigzag else (parts[i],) for i in range(degrees.ring))
    ranks = tuple(share for ranges in ring for share in _shares(ranges, degrees.ulysses))
    return TokenOrder(ring=ring, ranks=ranks)


def even_lengths(num_tokens: int, num_ranks: int) -> tuple[int, ...]:
    """Lengths of consecutive parts, as ``torch.tensor_split`` makes them."""
    return tuple(map(len, _cut(range(num_tokens), num_ranks)))


def _cut(whole: range, count: int) -> list[range]:
    short, more = divmod(len(whole), count)
    ends = [(index + 1) * short + min(index + 1, more) for index in range(count)]
    return [whole[start:stop] for start, stop in zip([0, *ends], ends, strict=False)]


def _shares(ranges: Sequence[range], count: int) -> list[tuple[range, ...]]:
    """Cuts several ranges, taken end to end, into consecutive shares."""
    shares: list[tuple[range, ...]] = []
    total = sum(map(len, ranges))
    for cut in _cut(range(total), count):
        begin, taken = 0, list[range]()
        for each in ranges:
            part = each[max(0, cut.start - begin) : max(0, cut.stop - begin)]
            begin += len(each)
            if len(part):
                taken.append(part)
        shares.append(tuple(taken))
    return shares
