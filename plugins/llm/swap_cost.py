"""Whether a block that the device has no room for is better copied to the host and back, or computed anew: by measurement."""

from __future__ import annotations

from collections.abc import Sequence

# A measurement's weight: the memory is about five of them.
_BLEND = 0.2
# A sequence with fewer tokens in a step is taken for one that decodes, with its drafts: its tokens say nothing of a prompt's.
_MIN_CHUNK_TOKENS = 32
# Of fewer prompt tokens, reading the weights is most of a step's time, which a token of a large chunk hardly pays for.
_MIN_MEASURED_TOKENS = 256
# Either way must be so much cheaper than the other before the decision changes: what is kept is lost by a change.
_MARGIN = 1.25


class SwapCost:
    """Compares copying a block both ways with computing its tokens. Owned by the device thread.

    Args:
        block_tokens: Tokens per block.
        copy_s: A block's way to the host and back; None until it is measured.

    Attributes:
        pays: Whether copying is the cheaper way; true until both are known.
    """

    def __init__(self, *, block_tokens: int, copy_s: float | None = None) -> None:
        self._block_tokens = block_tokens
        self._token_s: float | None = None
        self.copy_s = copy_s
        self.pays = True

    def observe_step(self, units: Sequence[int], seconds: float) -> bool:
        """A step of the model took so long, waited for to its end; says whether the decision has changed.

        Args:
            units: Tokens of each sequence in it. Steps that are not mostly chunks of prompts are left out.
            seconds: That the device took for this step alone.
        """
        num_tokens = sum(n for n in units if n >= _MIN_CHUNK_TOKENS)
        if num_tokens < _MIN_MEASURED_TOKENS or 2 * num_tokens < sum(units):
            return False
        measured_s = seconds / num_tokens
        self._token_s = measured_s if self._token_s is None else self._token_s + _BLEND * (measured_s - self._token_s)
        if self.copy_s is None:
            return False
        compute_s = self._token_s * self._block_tokens
        pays = self.copy_s < compute_s * (_MARGIN if self.pays else 1 / _MARGIN)
        has_changed, self.pays = pays != self.pays, pays
        return has_changed

    def __str__(self) -> str:
        if self.copy_s is None or self._token_s is None:
            return "blocks are copied to the host: no prompt was timed yet"
        figures = f"{1e3 * self.copy_s:.3g} ms a block, computing it {1e3 * self._token_s * self._block_tokens:.3g} ms"
        return f"blocks are {'copied to the host' if self.pays else 'dropped, to be computed again'}: copying takes {figures}"
