// How the connection is doing, from getStats, once a second.

import { byId, milliseconds } from "./dom.js";
import { state } from "./state.js";

/** Counters that matter here, picked out of one RTCStatsReport. */
export function pick(report) {
  const found = { rttMs: null, received: 0, lost: 0, lossOut: null, bufferS: 0, emitted: 0 };
  for (const stat of report.values()) {
    if (stat.type === "candidate-pair" && stat.nominated && Number.isFinite(stat.currentRoundTripTime)) {
      found.rttMs = stat.currentRoundTripTime * 1000;
    }
    if (stat.type === "inbound-rtp" && stat.kind === "audio") {
      found.received = stat.packetsReceived ?? 0;
      found.lost = stat.packetsLost ?? 0;
      found.bufferS = stat.jitterBufferDelay ?? 0;
      found.emitted = stat.jitterBufferEmittedCount ?? 0;
    }
    if (stat.type === "remote-inbound-rtp" && stat.kind === "audio") {
      found.lossOut = stat.fractionLost ?? null;
      found.rttMs ??= Number.isFinite(stat.roundTripTime) ? stat.roundTripTime * 1000 : null;
    }
  }
  return found;
}

/** What happened between two picks. */
export function compare(before, now) {
  const received = now.received - before.received;
  const lost = Math.max(0, now.lost - before.lost);
  const emitted = now.emitted - before.emitted;
  return {
    rtt_ms: now.rttMs,
    loss: received + lost > 0 ? lost / (received + lost) : null,
    loss_out: now.lossOut,
    jitter_buffer_ms: emitted > 0 ? ((now.bufferS - before.bufferS) / emitted) * 1000 : null,
  };
}

export function inWords({ rtt_ms, loss, loss_out, jitter_buffer_ms }) {
  const worstLoss = Math.max(loss ?? 0, loss_out ?? 0);
  if (rtt_ms === null && loss === null) return "";
  if (worstLoss > 0.08 || rtt_ms > 400 || jitter_buffer_ms > 400) return "poor";
  if (worstLoss > 0.02 || rtt_ms > 150 || jitter_buffer_ms > 180) return "fair";
  return "good";
}

const percent = (share) => (share === null ? "–" : `${(share * 100).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`);

export class Health {
  #before = null;

  /** Take one sample of this connection and show it; resolves to what compare() returns, or null. */
  async sample(connection) {
    const report = await connection?.stats().catch(() => null);
    if (!report) return null;
    const now = pick(report);
    const health = this.#before ? compare(this.#before, now) : null;
    this.#before = now;
    if (health) this.#show(health);
    return health;
  }

  reset() {
    this.#before = null;
    this.#show({ rtt_ms: null, loss: null, loss_out: null, jitter_buffer_ms: null });
    state.health = null;
  }

  #show(health) {
    state.health = health;
    byId("health-rtt").textContent = milliseconds(health.rtt_ms);
    byId("health-loss").textContent = percent(health.loss);
    byId("health-loss-out").textContent = percent(health.loss_out);
    byId("health-jitter").textContent = milliseconds(health.jitter_buffer_ms);
    const word = byId("health-word");
    word.textContent = word.dataset.health = inWords(health);
  }
}
