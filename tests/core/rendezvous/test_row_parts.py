from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sixfold.core.rendezvous.calls import CallRules, TensorDigests, capture
from sixfold.core.rendezvous.merge import join, merge, row_parts


class Mixed(torch.nn.Module):
    """Answers with a tensor, a tuple and a dict of rows."""

    def forward(self, hidden: Tensor, timestep: Tensor, table: Tensor, extra: dict[str, Tensor]) -> Any:
        rows = hidden * timestep[:, None] + table.sum() + extra["added"]
        return rows, (rows + 1, None), {"rows": rows * 2}


def test_what_has_as_many_rows_as_the_merged_calls_but_no_row_of_a_call_is_not_cut() -> None:
    module = Mixed()
    table = torch.arange(4.0).reshape(4, 1)  # by no rule shared: its 4 rows are none of a call's 2
    calls = [
        capture(
            module,
            (torch.full((2, 3), float(index)), torch.tensor(2.0), table, {"added": torch.ones(2, 3)}),
            {},
            rules=CallRules(),
            digests=TensorDigests(),
        )
        for index in range(2)
    ]
    cut = row_parts(merge(calls), calls[0], 2)
    assert all(part is not None and torch.equal(part["table"], table) for part in cut)
    answer = join([module(**part) for part in cut if part is not None])
    assert torch.equal(answer[0], torch.cat([module(**call.arguments)[0] for call in calls]))


@given(rows=st.integers(1, 9), parts=st.integers(1, 5))
def test_rows_computed_in_parts_give_what_they_give_together(rows: int, parts: int) -> None:
    module = Mixed()
    arguments = {
        "hidden": torch.arange(rows * 3.0).reshape(rows, 3),
        "timestep": torch.tensor(2.0),  # one for all rows
        "table": torch.ones(4, 2),
        "extra": {"added": torch.ones(rows, 3)},
    }
    rules = CallRules(shared=frozenset({"table"}))
    call = capture(module, (), arguments, rules=rules, digests=TensorDigests())
    cut = row_parts(call.arguments, call, parts)
    assert len(cut) == parts and cut[0] is not None
    assert sum(len(part["hidden"]) for part in cut if part is not None) == rows
    sizes = [len(part["hidden"]) for part in cut if part is not None]
    assert max(sizes) - min(sizes) <= 1
    answer = join([module(**part) for part in cut if part is not None])
    expected = module(**call.arguments)
    assert torch.equal(answer[0], expected[0]) and torch.equal(answer[1][0], expected[1][0])
    assert answer[1][1] is None and torch.equal(answer[2]["rows"], expected[2]["rows"])
