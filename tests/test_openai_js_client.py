"""The official JavaScript client, in a real Chromium over WebRTC, talks with this server by changing its URL and key.

Client: ``@openai/agents-realtime``, as its makers bundle it for browsers. Nothing of it is adapted: the page below is
what its documentation shows, with a URL. The agent is scripted, so that what is said is known.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import heard, microphone, page_with_microphone
from npm_package import npm_package
from realtime_talk import check_official
from serving import running_app, running_hub

from duplex.config import Config
from duplex.conversation import Item, ToolResult
from duplex.frames import Samples, silence
from duplex.testing import ScriptedAgent, ScriptedCall, ScriptedReply
from duplex.transport.app import create_app

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

PACKAGE = "@openai/agents-realtime"
VERSION = "0.20.0"
INTEGRITY = "sha512-KK3w9k9rkqv5mC25vykWTe/1IIcOMsqwJs9mB0aX9Z2Us487xGduZgqr+ENEzthjZbQvTi/+qUv/tfoZeN/p/w=="
PATIENCE_MS = 60_000

PAGE = '<!doctype html><meta charset="utf-8"><title>client</title><script type="module" src="client.js"></script>'
SCRIPT = """
import { RealtimeAgent, RealtimeSession, OpenAIRealtimeWebRTC, tool } from "./openai-realtime-agents.mjs";
Object.assign(window, { events: [], errors: [], called: [], history_: [] });
const agent = new RealtimeAgent({
  name: "Clerk",
  instructions: "You look after orders.",
  tools: [tool({
    name: "find_order",
    description: "Finds an order by its number.",
    parameters: { type: "object", properties: { number: { type: "number" } }, required: ["number"],
                  additionalProperties: false },
    execute: async ({ number }) => { window.called.push(number); return "sent yesterday"; },
  })],
});
const transport = new OpenAIRealtimeWebRTC({ useInsecureApiKey: true });
const session = window.session = new RealtimeSession(agent, { transport });
transport.on("*", (event) => window.events.push(event));
session.on("error", (error) => window.errors.push(JSON.stringify(error)));
session.on("history_updated", (items) => (window.history_ = items));
session.connect({ apiKey: "sk-test", url: location.origin + "/v1/realtime/calls" })
  .then(() => (window.ready = true), (error) => window.errors.push(String(error)));
"""


def answer(history: Sequence[Item], said: str) -> ScriptedReply:
    if history and isinstance(history[-1], ToolResult):
        return ScriptedReply(f"It was {history[-1].output}.", duration_s=3.0)
    if any(isinstance(item, ToolResult) for item in history):
        return ScriptedReply("You are welcome.", duration_s=1.0)
    return ScriptedReply("One moment, please.", duration_s=1.0, calls=(ScriptedCall("find_order", {"number": 7}),))


@pytest.fixture
def address(tmp_path: Path) -> Iterator[tuple[str, ScriptedAgent]]:
    """A server with a page of its own that holds the client."""
    site = tmp_path / "site"
    shutil.copytree(npm_package(PACKAGE, VERSION, INTEGRITY, "dist/bundle"), site)
    (site / "index.html").write_text(PAGE, "utf-8")
    (site / "client.js").write_text(SCRIPT, "utf-8")
    agent = ScriptedAgent(answer=answer)
    url: Future[str] = Future()
    stop = asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        config = Config()
        async with running_hub(agent, config) as hub, running_app(create_app(hub, config, static_dir=site)) as base:
            url.set_result(base)
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        yield url.result(30), agent
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()


def vowels(seconds: float) -> Samples:
    """What a browser's noise suppression takes for speech: a buzz with formants, four syllables a second."""
    t = np.arange(round(seconds * 24_000)) / 24_000
    phase = 2 * np.pi * np.cumsum(120 + 15 * np.sin(2 * np.pi * 0.7 * t)) / 24_000
    buzz = sum(np.sin(k * phase) * (1 / k + np.exp(-(((k * 120 - 700) / 200) ** 2))) for k in range(1, 25))
    sound: Samples = (0.2 * buzz * np.clip(np.sin(2 * np.pi * 4 * t) + 0.9, 0, None)).astype(np.float32)
    return sound


def test_the_official_client_talks_calls_a_tool_and_is_interrupted(
    address: tuple[str, ScriptedAgent], tmp_path: Path
) -> None:
    url, agent = address
    wav = microphone(tmp_path / "mic.wav", silence(24_000 * 4), vowels(1.5))
    with page_with_microphone(url, wav) as page:
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.wait_for_function("window.ready || window.errors?.length", timeout=PATIENCE_MS)
        assert page.evaluate("window.errors") == []
        # Spoken to, it asks for the tool; the client runs it and sends the result; the reply to that is spoken.
        page.wait_for_function("window.called.length === 1", timeout=PATIENCE_MS)
        page.wait_for_function(_replies("It was"), timeout=PATIENCE_MS)
        page.wait_for_function(
            "events.filter(e => e.type === 'output_audio_buffer.started').length > 1", timeout=PATIENCE_MS
        )
        page.wait_for_timeout(500)
        page.evaluate("session.interrupt()")
        page.wait_for_function(
            "events.some(e => e.type === 'response.done' && e.response.status === 'cancelled')", timeout=PATIENCE_MS
        )
        page.evaluate("session.sendMessage('Thank you.')")
        page.wait_for_function(_replies("welcome"), timeout=PATIENCE_MS)
        page.wait_for_function(
            "events.filter(e => e.type === 'response.done').at(-1).response.status === 'completed'", timeout=PATIENCE_MS
        )
        events: list[dict[str, Any]] = page.evaluate("window.events")
        history: list[dict[str, Any]] = page.evaluate("window.history_")
        errors, called, sound = page.evaluate("window.errors"), page.evaluate("window.called"), heard(page)
        page.evaluate("session.close()")
    assert faults == []
    assert errors == []
    assert called == [7]
    server_events = [event for event in events if "event_id" in event]
    for event in server_events:
        check_official(event)
    assert {"session.created", "session.updated", "conversation.item.truncated"} <= {e["type"] for e in server_events}
    assert (np.abs(sound) > 0.02).sum() > 24_000  # a second and more of the replies
    kinds = [item["type"] for item in history]
    assert "function_call" in kinds
    spoken = [c["transcript"] for i in history if i.get("role") == "assistant" for c in i["content"]]
    assert spoken[0] == "One moment, please."
    assert spoken[-1] == "You are welcome."
    settings = agent.sessions[0].settings
    assert settings.instructions == "You look after orders."
    assert [tool.name for tool in settings.tools or ()] == ["find_order"]


def _replies(text: str) -> str:
    return f"events.some(e => e.type === 'response.output_audio_transcript.delta' && e.delta.includes({text!r}))"
