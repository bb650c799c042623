"""What rank 0 makes of the others' answers, with others that are threads."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from sixfold.core.batching.model import DeviceLost
from sixfold.core.errors import ConfigError, SixfoldError
from sixfold.core.parallel.codec import read_message, send_message
from sixfold.core.parallel.degrees import Degrees
from sixfold.core.parallel.leader import Leader, Peer
from sixfold.core.parallel.mesh import Group, Mesh, single
from sixfold.core.parallel.messages import Done, Forward, FromFollower, Loaded, LoadingFailed, Raised, Stop
from sixfold.core.parallel.modules import RankModule, RankModules

Answer = Callable[[Forward], FromFollower | None]


class Double(torch.nn.Module):
    """Twice its argument; an infinite one waits."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()

    def forward(self, value: float) -> float:
        if value < 0:
            raise ValueError("negative")
        if value == float("inf"):
            assert self.goes_on.wait(10.0)
        return 2 * value


class FakeProcess:
    """A rank that is a thread: it has ended when its socket is closed."""

    def wait(self, timeout: float | None = None) -> int:
        return 9

    def kill(self) -> None:
        return


class Ranks:
    """A leader and one follower that answers as it is told."""

    def __init__(self, answer: Answer, *, first: FromFollower, step_timeout_s: float) -> None:
        ours, self.theirs = socket.socketpair()
        self._answer = answer
        self._first = first
        self.lost = threading.Event()
        process: Any = FakeProcess()
        self.module = Double()
        self.leader = Leader(
            Degrees(context=2, ulysses=2),
            [Peer(rank=1, process=process, sock=ours)],
            lambda: single(torch.device("cpu")),
            step_timeout_s=step_timeout_s,
            load_timeout_s=5.0,
            on_lost=self.lost.set,
        )
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def share(self) -> None:
        self.leader.share({"double": RankModule(module=self.module, plan=None)})

    def run(self, value: float) -> list[Any]:
        return self.leader.run(self.module, [{"value": value}])

    def _follow(self) -> None:
        send_message(self.theirs, self._first)
        while (order := read_message(self.theirs)) is not None and not isinstance(order, Stop):
            message = self._answer(order)
            if message is not None:
                send_message(self.theirs, message)

    def close(self) -> None:
        self.leader.close()
        self._thread.join(5.0)
        assert not self._thread.is_alive()
        self.theirs.close()


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Ranks]]:
    monkeypatch.setattr("sixfold.core.parallel.leader._GRACE_S", 0.2)
    made: list[Ranks] = []

    def make(answer: Answer, *, first: FromFollower | None = None, step_timeout_s: float = 10.0) -> Ranks:
        made.append(Ranks(answer, first=first or Loaded(), step_timeout_s=step_timeout_s))
        return made[-1]

    yield make
    for each in made:
        each.close()


def done(order: Forward) -> FromFollower:
    return Done(number=order.number)


def test_a_step_is_done_when_all_ranks_are(ranks: Callable[..., Ranks]) -> None:
    orders: list[Forward] = []

    def answer(order: Forward) -> FromFollower:
        orders.append(order)
        return done(order)

    pair = ranks(answer)
    pair.share()
    assert [pair.run(3.0), pair.run(4.0)] == [[6.0], [8.0]]
    assert [(order.number, order.module) for order in orders] == [(1, "double"), (2, "double")]


def test_an_error_of_all_ranks_is_the_requests_and_the_next_step_runs(
    ranks: Callable[..., Ranks], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sixfold.core.parallel.leader._GRACE_S", 30.0)  # its end would be another outcome

    def answer(order: Forward) -> FromFollower:
        return done(order) if order.number > 1 else Raised(number=1, message="negative")

    pair = ranks(answer)
    pair.share()
    with pytest.raises(ValueError, match="negative"):
        pair.run(-1.0)
    assert pair.run(2.0) == [4.0]
    assert not pair.lost.is_set()


def test_an_error_of_rank_0_alone_loses_the_replica(ranks: Callable[..., Ranks]) -> None:
    pair = ranks(done)
    pair.share()
    with pytest.raises(DeviceLost, match="rank 0 alone"):
        pair.run(-1.0)


def test_an_error_of_another_rank_alone_loses_the_replica(ranks: Callable[..., Ranks]) -> None:
    def answer(order: Forward) -> FromFollower:
        return Raised(number=order.number, message="out of memory")

    pair = ranks(answer)
    pair.share()
    with pytest.raises(DeviceLost, match=r"rank 1 did not do its share of a step: out of memory"):
        pair.run(1.0)


def test_a_rank_that_ends_in_a_step_loses_the_replica_and_ends_the_process(ranks: Callable[..., Ranks]) -> None:
    made: list[Ranks] = []

    def end(_order: Forward) -> None:
        made[0].theirs.shutdown(socket.SHUT_RDWR)

    pair = ranks(end)
    made.append(pair)
    pair.share()
    with pytest.raises(DeviceLost, match="did not do its share of a step: rank 1 of the replica ended with status 9"):
        pair.run(1.0)
    assert pair.lost.wait(5.0)
    with pytest.raises(DeviceLost, match="rank 1 of the replica ended with status 9"):
        pair.run(1.0)


def test_a_rank_that_hangs_ends_the_process_at_the_deadline(ranks: Callable[..., Ranks]) -> None:
    def hang(_order: Forward) -> None:
        return

    pair = ranks(hang, step_timeout_s=0.2)
    pair.share()
    # Who asks and who watches see the deadline pass at the same time; the reason of the first is told.
    with pytest.raises(DeviceLost, match=r"share of a step: (it does not answer|a step over the ranks did not end)"):
        pair.run(1.0)


def test_a_step_that_hangs_in_rank_0_ends_the_process_at_the_deadline(ranks: Callable[..., Ranks]) -> None:
    pair = ranks(done, step_timeout_s=0.2)
    pair.share()
    step = threading.Thread(target=pair.run, args=(float("inf"),))
    step.start()
    assert pair.lost.wait(5.0)
    pair.module.goes_on.set()
    step.join(5.0)


def test_what_a_rank_can_not_load_is_said(ranks: Callable[..., Ranks]) -> None:
    pair = ranks(done, first=LoadingFailed(message="options.dtype: no", is_usage_error=True))
    with pytest.raises(ConfigError, match=r"rank 1: options.dtype: no"):
        pair.share()
    pair = ranks(done, first=LoadingFailed(message="a crash", is_usage_error=False))
    with pytest.raises(SixfoldError, match="rank 1: a crash"):
        pair.share()


def test_tokens_of_a_module_that_nobody_knows_how_to_split_are_refused() -> None:
    alone = Group(ranks=(0,), index=0)
    mesh = Mesh(
        degrees=Degrees(context=2),
        rank=0,
        device=torch.device("cpu"),
        world=alone,
        context=alone,
        ulysses=alone,
        ring=alone,
        control=alone,
    )
    with pytest.raises(ConfigError, match=r"not known how to split Double \(double\). Use 'cfg'"):
        RankModules({"double": RankModule(module=Double(), plan=None)}, mesh)
