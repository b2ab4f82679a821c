"""The server as a whole: starting, refusing to start, and stopping with a call up."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading

import httpx
import numpy as np
import pytest
from websockets.asyncio.client import connect

from duplex.cli import main, serve_main
from duplex.config import AgentConfig, Config, ServerConfig
from duplex.errors import ConfigError
from duplex.serve import bind, running
from duplex.testing import tone


def config(**server: object) -> Config:
    return Config(server=ServerConfig.model_validate({"port": 0, **server}), agent=AgentConfig(name="echo"))


async def test_it_serves_the_page_and_says_when_it_is_ready() -> None:
    async with running(config()) as server, httpx.AsyncClient(base_url=server.url) as client:
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        page = await client.get("/")
        assert page.status_code == 200
        assert 'id="talk"' in page.text
        assert "duplex_sessions_live 0.0" in (await client.get("/metrics")).text


async def test_a_taken_port_says_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}.*--port"):
            async with running(config(port=port)):
                pass


def test_an_agent_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve_main(["--port", "0", "--agent", "parrot"]) == 1
    out = capsys.readouterr().out
    assert "parrot" in out
    assert "cascade, echo" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["serve", "--config", "/nowhere/duplex.toml"], "no configuration file"),
        (["serve", "--set", "server.prot=1"], "Known here"),
        (["serve", "--port", "100000"], "server.port"),
    ],
)
def test_wrong_flags_are_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1


async def test_stopping_with_a_call_up_tells_the_caller_and_leaves_nothing_behind() -> None:
    threads, tasks = threading.active_count(), len(asyncio.all_tasks())
    async with running(config()) as server:
        address = server.url.replace("http", "ws") + "/v1/realtime?model=duplex"
        async with connect(address) as call:
            assert json.loads(await call.recv())["type"] == "session.created"
            sound = (np.concatenate([tone(0.5), np.zeros(12_000, np.float32)]) * 32767).astype("<i2").tobytes()
            audio = base64.b64encode(sound).decode()
            await call.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
            while json.loads(await call.recv())["type"] != "response.output_audio.delta":
                pass
            assert server.hub.live == 1
            await server.hub.close()
            *_, last = [json.loads(message) async for message in call]  # until the server closes
            assert last["type"] == "duplex.session.closed"
            assert "stopping" in last["reason"]
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == tasks
    assert threading.active_count() <= threads + 1  # the loop's own pool keeps a thread


def test_binding_twice_is_refused() -> None:
    with bind("127.0.0.1", 0) as first:
        first.listen()
        with pytest.raises(ConfigError):
            bind("127.0.0.1", first.getsockname()[1])
