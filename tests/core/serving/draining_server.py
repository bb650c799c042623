"""A server in a process of its own, for tests of signals. Prints its port, then each request that arrives."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from sixfold.core.messages import Request
from sixfold.core.runtime.replica import EventStream
from sixfold.core.serving import lifecycle
from sixfold.core.serving.server import SixfoldServer
from sixfold.core.serving.settings import ServerSettings
from tests.core.serving.fake_replica import EchoAPI, EchoInput, FakeDirectory, FakeModel, FakeReplica, Submitted


class HeldReplica(FakeReplica):
    """Says each request's words and holds its end until a line comes in on stdin."""

    def __init__(self) -> None:
        super().__init__(by_hand=True)
        self.held: list[Submitted] = []

    def submit(self, request: Request[EchoInput]) -> EventStream:
        stream = super().submit(request)
        submitted = self.next()
        submitted.say(*request.input.words)
        self.held.append(submitted)
        print("arrived", flush=True)
        return stream


@asynccontextmanager
async def models(replica: HeldReplica) -> AsyncGenerator[None]:
    def release() -> None:
        sys.stdin.readline()
        for submitted in replica.held:
            submitted.finish()

    asyncio.get_running_loop().add_reader(sys.stdin, release)
    try:
        yield
    finally:
        asyncio.get_running_loop().remove_reader(sys.stdin)
        print("models left", flush=True)


if __name__ == "__main__":
    held = HeldReplica()
    directory = FakeDirectory(FakeModel("parrot", replicas=[held]))
    server = SixfoldServer([EchoAPI()], directory, ServerSettings(port=0, drain_timeout_s=float(sys.argv[1])))
    sys.exit(
        lifecycle.run(
            server,
            models=models(held),
            on_reload=None if "no-reload" in sys.argv else lambda: print("reload", flush=True),
            on_listening=lambda listening: print(listening.port, flush=True),
        )
    )
