"""Real Chromium speaks a WAV to the real default models over WebRTC, and what it hears is written down."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from playwright.sync_api import Page, sync_playwright
from voices import Voice

from duplex.frames import Samples, silence
from duplex.weights import ModelStore

pytestmark = [pytest.mark.models, pytest.mark.browser, pytest.mark.timeout(400)]

MIC_RATE_HZ = 48_000
PATIENCE_MS = 120_000  # for a machine that does many things at once

# Keeps what the page plays, as 16-bit samples at 24 kHz, from the moment it gets the remote stream.
RECORDER = """
window.heard = [];
const source = Object.getOwnPropertyDescriptor(HTMLMediaElement.prototype, "srcObject");
Object.defineProperty(HTMLMediaElement.prototype, "srcObject", {
  get() { return source.get.call(this); },
  set(stream) {
    source.set.call(this, stream);
    if (this.tagName !== "AUDIO" || !stream) return;
    const context = new AudioContext({ sampleRate: 24000 });
    const tap = context.createScriptProcessor(4096, 1, 1);
    tap.onaudioprocess = (event) => window.heard.push(Float32Array.from(event.inputBuffer.getChannelData(0)));
    context.createMediaStreamSource(stream).connect(tap);
    tap.connect(context.destination);
    window.tap = tap;
  },
});
window.heardBase64 = () => {
  const all = new Int16Array(window.heard.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of window.heard) for (const x of part) all[at++] = Math.max(-1, Math.min(1, x)) * 32767;
  let text = "";
  const bytes = new Uint8Array(all.buffer);
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return btoa(text);
};
"""


@pytest.fixture(scope="module")
def voice(models: ModelStore) -> Voice:
    return Voice(models)


@contextmanager
def page_with_microphone(url: str, wav: Path) -> Iterator[Page]:
    """The page, in a Chromium whose microphone is ``wav``, played once from the start of the call."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "Install Chromium (make browser) to run this test."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--use-fake-ui-for-media-stream",
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-audio-capture={wav}%noloop",
                "--autoplay-policy=no-user-gesture-required",
                "--disable-background-networking",
            ],
        )
        try:
            # Captions and ribbon at rest: the two cores are for the models.
            page = browser.new_page(reduced_motion="reduce")
            page.add_init_script(RECORDER)
            page.goto(url)
            yield page
        finally:
            browser.close()


def microphone(path: Path, *parts: Samples) -> Path:
    """A WAV for the fake microphone: the parts after one another, and then a long quiet."""
    audio = np.concatenate([*parts, silence(24_000 * 90)])
    soundfile.write(path, soxr.resample(audio, 24_000, MIC_RATE_HZ), MIC_RATE_HZ, subtype="PCM_16")
    return path


def agent_caption(page: Page) -> str:
    return str(page.evaluate("duplexState.captions.filter(c => c.who === 'agent').map(c => c.text).join(' ')"))


def heard(page: Page) -> Samples:
    raw = base64.b64decode(page.evaluate("window.heardBase64()"))
    return np.frombuffer(raw, dtype="<i2").astype(np.float32) / 32768.0


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
