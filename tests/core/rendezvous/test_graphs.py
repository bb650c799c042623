"""Recorded forwards give what the module gives, padded, mixed and in any order. The recorder is a fake that computes again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sixfold.core.rendezvous.calls import CallRules, ModuleCall, TensorDigests, capture
from sixfold.core.rendezvous.graphs import RowGraphs
from tests.core.rendezvous.recorder import Recorder

RULES = CallRules(shared=frozenset({"ids"}))


class Denoiser(torch.nn.Module):
    """Uses all kinds of arguments: rows, times, nested rows, and what has no rows."""

    def __init__(self) -> None:
        super().__init__()
        self.num_forwards = 0

    def forward(
        self, hidden: Tensor, timestep: Tensor, ids: Tensor, more: Mapping[str, Tensor], scale: float = 1.0
    ) -> tuple[Tensor]:
        self.num_forwards += 1
        return ((hidden * timestep[:, None] + ids.sum() + more["text"].sum(1, keepdim=True)) * scale,)


def call_of(module: Denoiser, rows: int, *, seed: int, scale: float = 1.0, variant: object = None) -> ModuleCall:
    source = torch.Generator().manual_seed(seed)
    return capture(
        module,
        (torch.randn(rows, 3, generator=source), torch.tensor(float(seed + 1)), torch.arange(2.0)),
        {"more": {"text": torch.randn(rows, 2, generator=source)}, "scale": scale},
        rules=RULES,
        digests=TensorDigests(),
        variant=variant,
    )


def graphs_of(recorder: Recorder, **more: Any) -> RowGraphs:
    graphs = RowGraphs(recorder, torch.device("cpu"), (1, 2, 4, 8), **more)
    graphs.records_at_once = True
    return graphs


def alone(call: ModuleCall) -> Tensor:
    answer: Tensor = call.function(**call.arguments)[0]
    return answer


def test_answers_of_all_sizes_and_orders_are_the_modules() -> None:
    module, recorder = Denoiser(), Recorder()
    graphs = graphs_of(recorder)
    for seed, counts in enumerate([(1,), (2, 1), (1, 1, 1), (2, 2, 2, 2), (1,), (2, 1, 2), (1, 2), (2, 2)]):
        calls = [call_of(module, rows, seed=10 * seed + index) for index, rows in enumerate(counts)]
        answers = graphs.run(calls, pads=True)
        assert answers is not None
        for call, answer in zip(calls, answers, strict=True):
            torch.testing.assert_close(answer[0], alone(call))
    assert recorder.num_recorded == 3  # 1, 4 and 8 rows
    assert graphs.num_replays == 8


def test_a_forward_is_padded_only_where_rows_are_known_not_to_see_each_other() -> None:
    module, recorder = Denoiser(), Recorder()
    graphs = graphs_of(recorder)
    calls = [call_of(module, 2, seed=1), call_of(module, 1, seed=2)]
    assert graphs.run(calls) is None  # 3 rows, of which there is no graph
    assert graphs.run([call_of(module, 3, seed=1)]) is None
    assert recorder.num_recorded == 0
    assert graphs.run([call_of(module, 2, seed=1), call_of(module, 2, seed=2)]) is not None
    assert graphs.run(calls, pads=True) is not None


def test_an_answer_outlives_the_next_replay() -> None:
    module = Denoiser()
    graphs = graphs_of(Recorder())
    first, second = call_of(module, 2, seed=1), call_of(module, 2, seed=2)
    kept = graphs.run([first])
    graphs.run([second])
    assert kept is not None
    torch.testing.assert_close(kept[0][0], alone(first))


def test_calls_that_differ_in_what_has_no_rows_have_graphs_of_their_own() -> None:
    module, recorder = Denoiser(), Recorder()
    graphs = graphs_of(recorder)
    for scale in (1.0, 2.0):
        call = call_of(module, 1, seed=1, scale=scale)
        answers = graphs.run([call])
        assert answers is not None
        torch.testing.assert_close(answers[0][0], alone(call))
    assert recorder.num_recorded == 2


def test_what_is_not_recorded_is_left_to_the_module() -> None:
    module, recorder = Denoiser(), Recorder()
    graphs = graphs_of(recorder, max_units=7)
    assert graphs.run([call_of(module, 9, seed=1)], pads=True) is None  # more rows than the largest
    assert graphs.run([call_of(module, 5, seed=1)], pads=True) is None  # 8 rows of one position
    assert graphs.run([call_of(module, 1, seed=1, variant="exact")]) is None
    assert recorder.num_recorded == 0


def test_a_shape_is_recorded_when_it_has_come_often() -> None:
    module, recorder = Denoiser(), Recorder()
    graphs = RowGraphs(recorder, torch.device("cpu"), (1, 2))
    found = [graphs.run([call_of(module, 1, seed=seed)]) is not None for seed in range(8)]
    assert found == [False] * 5 + [True] * 3


def test_no_more_graphs_are_kept_than_allowed() -> None:
    module, recorder = Denoiser(), Recorder()
    graphs = graphs_of(recorder, max_graphs=2)
    for scale in (1.0, 2.0, 3.0, 1.0):
        graphs.run([call_of(module, 1, seed=1, scale=scale)])
    assert graphs.num_recorded == 2
    assert recorder.num_recorded == 4


def test_a_module_that_cannot_be_recorded_is_computed_from_then_on() -> None:
    module, recorder = Denoiser(), Recorder()
    graphs = graphs_of(recorder)
    recorder.fails_with = RuntimeError("operation not permitted when stream is capturing")
    assert graphs.run([call_of(module, 1, seed=1)]) is None
    recorder.fails_with = None
    assert graphs.run([call_of(module, 1, seed=1)]) is None
    assert recorder.num_recorded == 0


def test_a_recording_without_memory_is_computed_instead_and_not_tried_again() -> None:
    module, recorder = Denoiser(), Recorder()
    graphs = graphs_of(recorder)
    recorder.fails_with = torch.OutOfMemoryError("no room")
    assert graphs.run([call_of(module, 1, seed=1)]) is None
    recorder.fails_with = None
    assert graphs.run([call_of(module, 1, seed=1)]) is None
    assert recorder.num_recorded == 0


def test_an_answer_that_can_not_be_split_is_not_recorded() -> None:
    class Cache:
        """Holds tensors in a way that nobody knows."""

    class Remembering(Denoiser):
        def forward(
            self, hidden: Tensor, timestep: Tensor, ids: Tensor, more: Mapping[str, Tensor], scale: float = 1.0
        ) -> Any:
            return (*super().forward(hidden, timestep, ids, more, scale), Cache())

    graphs = graphs_of(Recorder())
    call = call_of(Remembering(), 1, seed=1)
    assert graphs.run([call]) is None
    assert graphs.run([call]) is None
    assert graphs.num_recorded == 0
