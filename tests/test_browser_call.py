"""Real Chromium speaks a WAV to the real default models over WebRTC, and what it hears is written down."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import agent_caption, heard, microphone, page_with_microphone
from voices import Voice

from duplex.frames import silence
from duplex.weights import ModelStore

pytestmark = [pytest.mark.models, pytest.mark.browser, pytest.mark.timeout(400)]

PATIENCE_MS = 120_000  # for a machine that does many things at once


@pytest.fixture(scope="module")
def voice(models: ModelStore) -> Voice:
    return Voice(models)


def test_a_question_asked_in_the_browser_is_answered_out_loud(live_server: str, voice: Voice, tmp_path: Path) -> None:
    wav = microphone(tmp_path / "mic.wav", silence(24_000 * 3), voice.say("What is the capital of France?"))
    with page_with_microphone(live_server, wav) as page:
        page.click("#talk")
        page.wait_for_function(
            "duplexState.events.some(e => e.event.type === 'output_audio_buffer.stopped')", timeout=PATIENCE_MS
        )
        page.wait_for_timeout(500)  # the last packets are still in the browser's jitter buffer
        asked = page.evaluate("duplexState.captions.find(c => c.who === 'user').text")
        trace = page.evaluate("duplexState.lastTrace")
        said, caption = voice.write_down(heard(page)), agent_caption(page)
        page.click("#talk")  # hang up
    assert "capital of france" in asked.lower()
    assert "paris" in caption.lower()
    assert "paris" in said.lower(), f"the page shows {caption!r}, but what was heard is {said!r}"
    assert {span["name"] for span in trace["spans"]} == {"end_of_turn", "listener", "thinker", "talker", "first_packet"}


def test_talking_over_the_agent_stops_it(live_server: str, voice: Voice, tmp_path: Path) -> None:
    # How long a reply is, and how soon it comes, depends on model and machine: somebody who asks again and again,
    # at different intervals, talks over one of the replies.
    request = voice.say("Wait, please tell me a long story about a dragon and a king.")
    again = [part for gap_s in (4, 6, 3, 8, 5, 7, 4, 6) for part in (request, silence(24_000 * gap_s))]
    wav = microphone(tmp_path / "mic.wav", silence(24_000 * 3), *again)
    with page_with_microphone(live_server, wav) as page:
        page.click("#talk")
        page.wait_for_function(
            "duplexState.events.some(e => e.event.type === 'output_audio_buffer.started')", timeout=PATIENCE_MS
        )
        page.wait_for_function(
            "duplexState.events.some(e => e.event.type === 'conversation.item.truncated')", timeout=PATIENCE_MS
        )
        page.wait_for_function(
            "duplexState.events.some(e => e.event.type === 'output_audio_buffer.cleared')", timeout=PATIENCE_MS
        )
        events = page.evaluate("duplexState.events.map(e => e.event.type)")
        statuses = page.evaluate(
            "duplexState.events.filter(e => e.event.type === 'response.done').map(e => e.event.response.status)"
        )
        held = page.evaluate("duplexState.events.some(e => e.event.type === 'duplex.reply.held')")
        page.click("#talk")
    assert "output_audio_buffer.cleared" in events
    assert "cancelled" in statuses
    assert held
