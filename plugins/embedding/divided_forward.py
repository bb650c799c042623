"""Long documents over the ranks of a replica: each has a share of the tokens, and rank 0 has the vectors."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sixfold.core.parallel.exchange import collect
from sixfold.core.parallel.leader import Leader
from sixfold.core.parallel.share import current_share
from sixfold.core.parallel.tokens import divide
from sixfold.plugins.embedding.divided_tokens import DividedTokens
from sixfold.plugins.embedding.forward import Forward, PackedModel
from sixfold.plugins.embedding.packing import PackedBatch, TokenIds, positions_of, to_tensor


class DividedEncoder(nn.Module):
    """The module that all ranks have: this rank's share of one sequence.

    Args:
        packed: Of this rank; the same model in all of them.
    """

    def __init__(self, packed: PackedModel) -> None:
        super().__init__()
        self._packed = (packed,)  # in a tuple, so that torch does not look for modules in it

    def forward(self, token_ids: Tensor) -> Tensor | None:
        """Called in all ranks, by `sixfold.core.parallel.modules.RankModules`.

        Args:
            token_ids: [tokens].

        Returns:
            [tokens, dim] in rank 0.
        """
        share = current_share()
        assert share is not None, "only forwards over ranks come here"
        mesh, (packed,) = share.mesh, self._packed
        order = divide(len(token_ids), mesh.degrees, zigzag=mesh.ring.size > 1)
        own = torch.tensor(order.positions(mesh.context.index), device=mesh.device)
        ids: TokenIds = token_ids.cpu().numpy()
        positions = positions_of(ids, np.array([0, len(ids)]), packed.position_offset)
        with packed.attention.dividing(DividedTokens(mesh=mesh, order=order)), torch.inference_mode():
            output = packed.model(
                input_ids=token_ids.to(mesh.device)[own][None],
                position_ids=to_tensor(positions, mesh.device)[own][None],
            )
            hidden: Tensor = output.last_hidden_state[0]
            parts = collect(hidden, [(length, hidden.shape[1]) for length in order.lengths], mesh.context)
            restored = torch.tensor(order.restored(), device=mesh.device)
            return torch.cat(parts)[restored] if parts else None


class DividedForward:
    """See `Forward`: long sequences go over the ranks one after the other, the others through this process.

    Args:
        own: Of this process.
        module: What all ranks have.
        leader: Of the ranks.
        min_tokens: Shorter sequences are not worth the exchange.
    """

    def __init__(self, own: Forward, module: DividedEncoder, leader: Leader, min_tokens: int) -> None:
        self._own = own
        self._module = module
        self._leader = leader
        self._min_tokens = min_tokens

    @property
    def mode(self) -> str:
        """See `Forward`."""
        return self._own.mode

    def __call__(self, sequences: Sequence[TokenIds]) -> tuple[Tensor, PackedBatch]:
        """See `Forward`.

        Raises:
            DeviceLost: A rank is gone or hangs.
        """
        lengths = [len(sequence) for sequence in sequences]
        long = sorted((i for i, n in enumerate(lengths) if n >= self._min_tokens), key=lengths.__getitem__)
        if not long:
            return self._own(sequences)
        divided: list[Tensor] = [
            self._leader.run(self._module, [{"token_ids": to_tensor(sequences[i], "cpu")}])[0] for i in long
        ]
        rest = [i for i, n in enumerate(lengths) if n < self._min_tokens]
        if not rest:
            return torch.cat(divided), _joined(None, long, lengths, divided[0].device)
        hidden, batch = self._own([sequences[i] for i in rest])
        places = [rest[at] for at in batch.order]
        return torch.cat((hidden, *divided)), _joined(batch, [*places, *long], lengths, hidden.device)

    @contextlib.contextmanager
    def dividing_from(self, min_tokens: int) -> Generator[None]:
        """Inside, sequences from so many tokens on go over the ranks; for the test at the start."""
        before, self._min_tokens = self._min_tokens, min_tokens
        try:
            yield
        finally:
            self._min_tokens = before


def _joined(
    batch: PackedBatch | None, order: Sequence[int], lengths: Sequence[int], device: torch.device
) -> PackedBatch:
    """The batch of all sequences, of which the first were in ``batch``; ascending, since the others are longer."""
    counts = np.array([lengths[i] for i in order], dtype=np.int64)
    nothing = torch.empty((1, 0), dtype=torch.int64, device=device)  # nobody reads ids of what is computed
    return PackedBatch(
        order=np.array(order, dtype=np.intp),
        lengths=counts,
        token_ids=nothing,
        position_ids=nothing,
        groups=() if batch is None else batch.groups,
        starts=to_tensor(np.cumsum(counts) - counts, device),
        token_counts=to_tensor(counts, device),
        num_spare=0 if batch is None else batch.num_spare,
    )
