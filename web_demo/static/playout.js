// What has been *heard*, in milliseconds of each response's audio.
//
// The server says how much it has put on the wire (duplex.playout.sent_ms, about 5 times a second). What is
// audible here is behind that by the browser's jitter buffer and the sound card:
//
//     played(t) = sent + (t - when we learned it) - delay,   never more than the wire can have taken, never backwards
//
// The network's own delay cancels, as the message travels the same way as the sound. Between two messages
// the wire is taken to run on in real time, for at most EXTRAPOLATE_MS. A server that holds (barge-in) repeats
// the same sent_ms, or takes some back; the clock then runs on only through what is still buffered here. It is
// an estimate: good to a few tens of milliseconds, and the server grades it as one. Captions follow it as it is;
// what is acknowledged never goes beyond the last sent_ms, since the server refuses more than it has sent.
//
// Pure: time enters as an argument.

const EXTRAPOLATE_MS = 300;
const REPEAT_MS = 40; // the same sent_ms sooner than this says nothing
const KEPT = 8;

export class Playout {
  delayMs = 60; // until getStats says
  #responses = new Map(); // response_id -> {sentMs, atMs, running, ended, cutMs, playedMs, ackedMs}

  started(id, nowMs) {
    this.#get(id, nowMs);
  }

  sent(id, sentMs, nowMs) {
    const r = this.#get(id, nowMs);
    if (r.cutMs !== null) return;
    if (Math.abs(sentMs - r.sentMs) < 1) {
      // Nothing more is being sent. atMs stays, so that what is buffered plays out.
      r.sentMs = sentMs;
      if (nowMs - r.atMs > REPEAT_MS) r.running = false;
      return;
    }
    Object.assign(r, { sentMs, atMs: nowMs, running: sentMs > r.sentMs });
  }

  /** The server stopped sending for now. */
  held(id) {
    const r = this.#responses.get(id);
    if (r) r.running = false;
  }

  /** All was sent: the last sent_ms was the whole. What is buffered still plays. */
  stopped(id) {
    const r = this.#responses.get(id);
    if (!r || r.ended) return;
    Object.assign(r, { running: false, ended: true });
  }

  /** Cut off: it stays where it is. */
  cleared(id, nowMs) {
    const r = this.#responses.get(id);
    if (r) r.cutMs ??= this.playedMs(id, nowMs);
  }

  has(id) {
    return this.#responses.has(id);
  }

  playedMs(id, nowMs) {
    const r = this.#responses.get(id);
    if (!r) return 0;
    if (r.cutMs !== null) return r.cutMs;
    r.playedMs = Math.max(r.playedMs, Math.min(this.#sentNow(r, nowMs), this.#raw(r, nowMs)), 0);
    return r.playedMs;
  }

  /** True once nothing more of it will be audible. */
  finished(id, nowMs) {
    const r = this.#responses.get(id);
    return Boolean(r) && (r.cutMs !== null || (r.ended && this.playedMs(id, nowMs) >= r.sentMs - 1));
  }

  /** The acknowledgements due: one for each response that moved since the last time. Best right after sent(). */
  acks(nowMs) {
    const due = [];
    for (const [id, r] of this.#responses) {
      if (r.cutMs !== null) continue; // the server has drawn its line; nothing here changes it
      const played = Math.floor(Math.min(this.#raw(r, nowMs), r.sentMs));
      if (played <= r.ackedMs) continue;
      r.ackedMs = played;
      due.push({ type: "duplex.playback.ack", response_id: id, played_ms: played });
    }
    return due;
  }

  reset() {
    this.#responses.clear();
  }

  #raw(r, nowMs) {
    return r.sentMs + (nowMs - r.atMs) - this.delayMs;
  }

  #sentNow(r, nowMs) {
    return r.running ? r.sentMs + Math.min(nowMs - r.atMs, EXTRAPOLATE_MS) : r.sentMs;
  }

  #get(id, nowMs) {
    let r = this.#responses.get(id);
    if (!r) {
      r = { sentMs: 0, atMs: nowMs, running: true, ended: false, cutMs: null, playedMs: 0, ackedMs: 0 };
      this.#responses.set(id, r);
      if (this.#responses.size > KEPT) this.#responses.delete(this.#responses.keys().next().value);
    }
    return r;
  }
}
