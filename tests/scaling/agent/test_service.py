"""An agent's process: what it does of its own while nobody asks it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sixfold.scaling.agent.agent import Agent
from sixfold.scaling.agent.config import AgentSettings
from sixfold.scaling.agent.demand import LocalDemand
from sixfold.scaling.agent.processes import ProcessEngine
from sixfold.scaling.agent.service import keep_reporting
from sixfold.scaling.agent.standing import Standing
from sixfold.scaling.agent.state_file import StateFile
from tests.fakes import FakeClock


class FakeHub:
    """A candidate that answers with what is in ``answers``, and then that there is nothing new."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = list(answers)
        self.answered_all = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().splitlines() if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
        body = self._answers.pop(0) if self._answers else b"{}"
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()
        if body == b"{}":
            self.answered_all.set()


async def test_a_site_goes_on_reporting_to_a_candidate_whose_answer_is_no_text(tmp_path: Path) -> None:
    hub = FakeHub(b'{"plan":{"leader_id":"\xe9"}}')
    server = await asyncio.start_server(hub.answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    settings = AgentSettings(
        site_id="eu",
        region="eu",
        hubs=(url,),
        port=1,
        state=tmp_path / "eu.json",
        accelerators={},
        models={},
        report_every_s=0.5,
    )
    agent = Agent(
        "eu",
        "eu",
        ProcessEngine({}, {}),
        StateFile(settings.state, Standing()),
        LocalDemand({}),
        clock=FakeClock(),
        alone_after_s=30,
    )
    async with server:
        reporting = asyncio.create_task(keep_reporting(agent, settings, url))
        heard = asyncio.create_task(hub.answered_all.wait())
        done, _ = await asyncio.wait((reporting, heard), timeout=30, return_when=asyncio.FIRST_COMPLETED)
        assert done == {heard}
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)
