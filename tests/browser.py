"""A call from a real Chromium, for tests: a WAV is its microphone, and what the page plays is kept."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import soxr
from playwright.sync_api import Page, sync_playwright

from duplex.frames import Samples, silence

MIC_RATE_HZ = 48_000

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
