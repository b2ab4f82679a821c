"""A server that is told to stop: calls go on for a while, nobody new comes in."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from duplex import events as ev
from duplex.agent import AgentSettings
from duplex.clock import VirtualClock
from duplex.config import SessionConfig
from duplex.drain import Farewell, drain
from duplex.errors import AgentFullError
from duplex.hub import SessionHub
from duplex.testing import LoopbackLine, ScriptedAgent, run_virtual, tone
from duplex.transport.client_websocket import WebSocketCall

# --- on virtual time -------------------------------------------------------------------------------------


@asynccontextmanager
async def hub_with(*lines: LoopbackLine) -> AsyncIterator[SessionHub]:
    async with SessionHub(ScriptedAgent(), VirtualClock(), SessionConfig(), max_sessions=4) as hub:
        for line in lines:
            hub.open(line, AgentSettings())
        await asyncio.sleep(0.1)
        yield hub


def test_calls_that_end_in_time_end_by_themselves() -> None:
    async def main() -> None:
        lines = LoopbackLine(), LoopbackLine()
        async with hub_with(*lines) as hub:
            asyncio.get_running_loop().call_later(7.0, setattr, lines[0], "closed", True)
            asyncio.get_running_loop().call_later(12.0, setattr, lines[1], "closed", True)
            began_s = hub.clock.now()
            assert await drain(hub, 30.0, asyncio.Event())
            assert hub.clock.now() - began_s == pytest.approx(12.0, abs=0.1)
        for line in lines:
            (told,) = line.of(ev.SessionDraining)
            assert told.deadline_s == 30.0
            assert not line.of(ev.SessionClosed)

    run_virtual(main())


def test_who_talks_on_is_ended_at_the_deadline_and_told_why() -> None:
    async def main() -> None:
        line = LoopbackLine()
        async with hub_with(line) as hub:
            began_s = hub.clock.now()
            assert not await drain(hub, 30.0, asyncio.Event())
            assert hub.clock.now() - began_s == pytest.approx(30.0)
            assert not line.closed
        (closed,) = line.of(ev.SessionClosed)
        assert "stopping" in closed.reason

    run_virtual(main())


def test_a_second_signal_waits_for_nobody() -> None:
    async def main() -> None:
        farewell = Farewell()
        async with hub_with(LoopbackLine()) as hub:
            farewell.ask()
            assert farewell.asked.is_set()
            assert not farewell.at_once.is_set()
            asyncio.get_running_loop().call_later(3.0, farewell.ask)
            began_s = hub.clock.now()
            assert not await drain(hub, 30.0, farewell.at_once)
            assert hub.clock.now() - began_s == pytest.approx(3.0)

    run_virtual(main())


def test_nobody_new_comes_in_and_learns_when_to_try_again() -> None:
    async def main() -> None:
        async with hub_with() as hub:
            assert await drain(hub, 30.0, asyncio.Event())
            assert not hub.ready
            with pytest.raises(AgentFullError, match="stopping") as refused:
                hub.reserve()
            assert refused.value.retry_after_s == 30.0

    run_virtual(main())


# --- a real process -----------------------------------------------------------------------------------------


async def test_a_served_call_goes_on_after_sigterm_and_a_second_one_ends_it(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("duplex")
    process = await asyncio.create_subprocess_exec(
        str(command),
        *("serve", "--port", "0", "--agent", "echo", "--set", "server.drain_s=60"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | {"DUPLEX_MODELS_DIR": str(tmp_path), "NO_COLOR": "1"},
    )
    assert process.stdout is not None
    said = ""
    try:
        async with asyncio.timeout(60):
            while (found := re.search(r"Open (http://\S+)", said)) is None:
                line = await process.stdout.readline()
                assert line, said
                said += line.decode()
        url = found[1]
        async with WebSocketCall.connect(url) as call:
            process.send_signal(signal.SIGTERM)
            told = await call.wait_for("duplex.session.draining", timeout_s=10)
            assert told.event["deadline_s"] == 60.0
            async with httpx.AsyncClient(trust_env=False) as http:
                ready = await http.get(f"{url}/readyz")
                assert ready.status_code == 503
                assert ready.json()["status"] == "draining"
                assert (await http.get(f"{url}/healthz")).status_code == 200
            with pytest.raises(AgentFullError) as refused:
                async with WebSocketCall.connect(url):
                    pass
            assert refused.value.retry_after_s == 60.0
            await call.play(tone(0.3))  # and the call is as good as ever
            await call.wait_audible(timeout_s=10)
            process.send_signal(signal.SIGTERM)
            closed = await call.wait_for("duplex.session.closed", timeout_s=10)
            assert "stopping" in closed.event["reason"]
        async with asyncio.timeout(20):
            assert await process.wait() == 0
        said += (await process.stdout.read()).decode()
        assert "Traceback" not in said, said
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
