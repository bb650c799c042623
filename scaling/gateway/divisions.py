"""Takes over from the registry how requests are divided among revisions, so that each gateway holds a rollout's share."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence

from sixfold.scaling.registry import Division
from sixfold.scaling.rollout.split import Split, Splitter


def take_divisions(shares: MutableMapping[str, Splitter], divisions: Sequence[Division]) -> None:
    """Changes what has changed; what stays keeps its count.

    Args:
        shares: By each name that clients use; see `Gateway.shares`.
        divisions: All that hold.
    """
    wanted = {name: each for each in divisions for name in each.names}
    for name in [name for name in shares if name not in wanted]:
        del shares[name]
    for name, division in wanted.items():
        found = shares.get(name)
        if found is None or (found.split.old, found.split.new) != (division.old, division.new):
            shares[name] = Splitter(Split(old=division.old, new=division.new, share=division.share))
        elif found.split.share != division.share:
            found.set_share(division.share)
