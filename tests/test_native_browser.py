"""Real Chromium calls a model of the Moshi family: ``duplex serve --agent moshi --weights DIR``, as a person runs it.

The model is tiny and its weights are random, so it talks nonsense, and it talks all the time. What is looked at is the
way: microphone, WebRTC, codec, backbone, codec, WebRTC, loudspeaker; and what the page shows of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from browser import agent_caption, heard, microphone, page_with_microphone
from live import duplex_serve
from native_tiny import tiny_checkpoint

from duplex.frames import Samples, silence

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

PATIENCE_MS = 60_000
SETTINGS = (
    "agent.options.device=cpu",
    "agent.options.seed=11",
    "agent.options.max_slots=2",
    # For a machine that does many things at once: it is late there, and nothing is given up for it.
    "agent.options.max_behind_frames=1000",
    "agent.options.scheduler.queue_frames=1000",
    "agent.options.scheduler.stale_frames=1000",
    "agent.options.scheduler.max_utilisation=100",
    "agent.options.scheduler.shed.miss_share=0.999",
    "session.stall_limit_s=60",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("native")
    weights = tiny_checkpoint(folder / "model")
    with duplex_serve(
        *("--agent", "moshi", "--weights", str(weights)),
        *(flag for setting in SETTINGS for flag in ("--set", setting)),
        models_dir=folder,
    ) as url:
        yield url


def vowels(seconds: float) -> Samples:
    """What a microphone's noise suppression takes for speech: a buzz with formants, four syllables a second."""
    t = np.arange(round(seconds * 24_000)) / 24_000
    pitch = 120 + 15 * np.sin(2 * np.pi * 0.7 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / 24_000
    buzz = sum(np.sin(k * phase) * (1 / k + np.exp(-(((k * 120 - 700) / 200) ** 2))) for k in range(1, 25))
    syllables = np.clip(np.sin(2 * np.pi * 4 * t) + 0.4, 0, None)
    sound: Samples = (0.12 * buzz * syllables).astype(np.float32)
    return sound


def test_a_call_from_the_browser_is_heard_answered_and_shown(server: str, tmp_path: Path) -> None:
    wav = microphone(tmp_path / "mic.wav", silence(24_000 * 3), vowels(4.0))
    with page_with_microphone(server, wav) as page:
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.click("#talk")
        page.wait_for_function("duplexState.status === 'live' && duplexState.floor === 'speaking'", timeout=PATIENCE_MS)
        page.wait_for_function(
            "duplexState.playout?.sent_ms > 500 && duplexState.playout?.played_ms > 0", timeout=PATIENCE_MS
        )
        page.wait_for_function("duplexState.captions.some(c => c.who === 'agent' && c.text)", timeout=PATIENCE_MS)
        # It does not yield by itself; the turn machine makes it, once it is spoken over for long enough.
        for kind in ("input_audio_buffer.speech_started", "output_audio_buffer.cleared"):
            page.wait_for_function(
                "kind => duplexState.events.some(e => e.event.type === kind)", arg=kind, timeout=PATIENCE_MS
            )
        sound, caption = heard(page), agent_caption(page)
        kinds = page.evaluate("duplexState.events.map(e => e.event.type)")
        acknowledged = page.evaluate(
            "duplexState.events.some(e => e.from === 'page' && e.event.type === 'duplex.playback.ack')"
        )
        statuses = page.evaluate(
            "duplexState.events.filter(e => e.event.type === 'response.done').map(e => e.event.response.status)"
        )
        counted = httpx.get(server + "/metrics").text
        page.click("#talk")  # hang up
        page.wait_for_function("duplexState.status === 'idle'", timeout=PATIENCE_MS)
    assert faults == []
    assert {"session.created", "response.created", "output_audio_buffer.started", "duplex.words"} <= set(kinds)
    assert "response.output_audio_transcript.delta" in kinds
    assert kinds.index("response.created") < kinds.index("output_audio_buffer.started")
    assert acknowledged
    assert "cancelled" in statuses
    assert "error" not in kinds
    assert caption
    assert (np.abs(sound) > 0.02).sum() > 2_400  # a tenth of a second and more of it
    assert "duplex_scheduler_slots_used 1.0" in counted
    assert "duplex_scheduler_slots_max 2.0" in counted


def test_a_line_that_is_typed_ends_the_reply_and_brings_another(server: str, tmp_path: Path) -> None:
    wav = microphone(tmp_path / "mic.wav", silence(24_000))
    with page_with_microphone(server, wav) as page:
        page.click("#talk")
        page.wait_for_function("duplexState.floor === 'speaking'", timeout=PATIENCE_MS)
        page.click("#type-toggle")
        page.fill("#composer-text", "What do you see?")
        page.press("#composer-text", "Enter")
        page.wait_for_function(
            "duplexState.events.some(e => e.event.type === 'response.done')", timeout=PATIENCE_MS
        )  # to type is to interrupt
        page.wait_for_function(
            "duplexState.events.filter(e => e.event.type === 'response.created').length > 1", timeout=PATIENCE_MS
        )
        typed = page.evaluate("duplexState.captions.filter(c => c.who === 'user').map(c => c.text)")
        page.click("#talk")
    assert typed == ["What do you see?"]
