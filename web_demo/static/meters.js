// How loud each side is, now, as 0…1. One AudioContext, one analyser a side; nothing is recorded.

const QUIETEST_DB = -60;
const LOUDEST_DB = -8;

export class Meters {
  #context = null;
  #sides = new Map(); // "user" | "agent" -> {source, analyser, samples}

  /** Call from a click: browsers start an AudioContext only then. */
  wake() {
    this.#context ??= new AudioContext({ latencyHint: "interactive" });
    if (this.#context.state === "suspended") this.#context.resume().catch(() => {});
  }

  /** Measure this stream from now on; null to stop. */
  attach(side, stream) {
    this.#sides.get(side)?.source.disconnect();
    this.#sides.delete(side);
    if (!stream?.getAudioTracks().length) return;
    this.wake();
    try {
      const source = this.#context.createMediaStreamSource(stream);
      const analyser = new AnalyserNode(this.#context, { fftSize: 1024 });
      // And no further: the <audio> element feeds the speaker, where echo cancellation knows about it.
      source.connect(analyser);
      this.#sides.set(side, { source, analyser, samples: new Float32Array(analyser.fftSize) });
    } catch (error) {
      console.warn("no level meter for this stream", error); // some devices' rates do not fit; the call goes on
    }
  }

  /** Loudness of the last ~20 ms: root mean square on a decibel scale, 0 at -60 dBFS, 1 at -8. */
  level(side) {
    const entry = this.#sides.get(side);
    if (!entry) return 0;
    entry.analyser.getFloatTimeDomainData(entry.samples);
    let sum = 0;
    for (const sample of entry.samples) sum += sample * sample;
    const db = 10 * Math.log10(sum / entry.samples.length + 1e-12);
    return Math.min(1, Math.max(0, (db - QUIETEST_DB) / (LOUDEST_DB - QUIETEST_DB)));
  }

  /** From handing a sample to the system until it is audible, where the browser says (Safari does not). */
  get outputLatencyMs() {
    const seconds = this.#context?.outputLatency || this.#context?.baseLatency || 0;
    return seconds * 1000;
  }
}

/** Draws one level on its role="meter" element. */
export class MeterView {
  #element;
  #bar;
  #spokenAtMs = 0;

  constructor(element) {
    this.#element = element;
    this.#bar = element.querySelector("i");
  }

  show(level, nowMs) {
    this.#bar.style.setProperty("--level", level.toFixed(3));
    if (nowMs - this.#spokenAtMs < 500) return; // a screen reader needs no 60 values a second
    this.#spokenAtMs = nowMs;
    this.#element.setAttribute("aria-valuenow", String(Math.round(level * 100)));
  }
}
