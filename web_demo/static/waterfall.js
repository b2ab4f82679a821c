// Where the time of the last turn went: one bar a stage, from the user's last voiced sample (0) to the reply.

import { make, milliseconds } from "./dom.js";

const STAGES = {
  end_of_turn: "End of turn",
  listener: "Listener",
  thinker: "Thinker",
  talker: "Talker",
  first_packet: "First packet",
};
const KEPT_TURNS = 16;

/** Round tick distances, in ms, so that at most five fit into `span`. */
export function tickStep(span) {
  return [50, 100, 200, 250, 500, 1000, 2000, 5000].find((step) => span / step <= 5) ?? 10_000;
}

export class Waterfall {
  #root;
  #history = []; // voice-to-voice of the last turns, oldest first

  constructor(root) {
    this.#root = root;
    root.append(make("p", "hint", "After your first turn: how long each stage took until you heard the reply."));
  }

  show(trace) {
    const spans = trace.spans ?? [];
    const marks = (trace.marks ?? []).filter((mark) => mark.name === "commit"); // the others are the spans' ends
    const total = trace.voice_to_voice_ms ?? null;
    if (Number.isFinite(total)) this.#history = [...this.#history, total].slice(-KEPT_TURNS);
    const ends = [...spans.map((span) => span.end_ms), ...marks.map((mark) => mark.at_ms), total ?? 0].filter(Number.isFinite);
    const starts = spans.map((span) => span.start_ms).filter(Number.isFinite);
    const from = Math.min(0, ...starts);
    const to = Math.max(100, ...ends) * 1.02;
    const place = (ms) => `${(((ms - from) / (to - from)) * 100).toFixed(2)}%`;

    this.#root.replaceChildren(this.#headline(trace, total), this.#chart(spans, marks, total, { from, to, place }), this.#turns());
  }

  #headline(trace, total) {
    const line = make("p", "headline");
    line.append(make("strong", "", milliseconds(total)), make("span", "", " voice to voice"));
    const notes = [];
    if (Number.isFinite(trace.first_packet_ms)) notes.push(`first packet ${milliseconds(trace.first_packet_ms)}`);
    if (trace.speculative) notes.push("prepared ahead");
    const note = make("span", "hint", notes.join(" · "));
    note.title = "First packet: from the decision that your turn is over to the first sound sent. Prepared ahead: the reply was under way before that decision.";
    line.append(note);
    return line;
  }

  #chart(spans, marks, total, { from, to, place }) {
    const chart = make("ol", "chart");
    for (const span of spans) {
      const row = make("li", `stage-row ${span.name.replaceAll("_", "-")}`);
      const track = make("span", "track");
      const bar = make("span", "block");
      bar.style.setProperty("--from", place(span.start_ms));
      bar.style.setProperty("--to", place(span.end_ms));
      track.append(bar);
      const took = make("span", "took", milliseconds(span.end_ms - span.start_ms));
      took.append(make("span", "hidden", `, from ${Math.round(span.start_ms)} to ${Math.round(span.end_ms)} ms`));
      row.append(make("span", "name", STAGES[span.name] ?? span.name.replaceAll("_", " ")), track, took);
      chart.append(row);
    }
    const overlay = make("li", "overlay");
    overlay.setAttribute("aria-hidden", "true");
    const step = tickStep(to - from);
    for (let ms = Math.ceil(from / step) * step; ms <= to; ms += step) {
      const tick = make("span", ms === 0 ? "tick zero" : "tick", String(ms));
      tick.style.setProperty("--at", place(ms));
      overlay.append(tick);
    }
    for (const mark of marks) overlay.append(line("mark", mark.at_ms, `${mark.name.replaceAll("_", " ")}: ${milliseconds(mark.at_ms)}`));
    if (Number.isFinite(total)) overlay.append(line("mark heard", total, `voice to voice: ${milliseconds(total)}`));
    chart.append(overlay);
    return chart;

    function line(className, ms, title) {
      const element = make("span", className);
      element.style.setProperty("--at", place(ms));
      element.title = title;
      return element;
    }
  }

  #turns() {
    const turns = make("p", "turns");
    if (this.#history.length < 2) return turns;
    const sorted = [...this.#history].sort((a, b) => a - b);
    const median = (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
    const bars = make("span", "turn-bars");
    bars.setAttribute("aria-hidden", "true");
    for (const ms of this.#history) {
      const bar = make("i");
      bar.style.setProperty("--height", `${Math.max(8, (ms / sorted.at(-1)) * 100).toFixed(0)}%`);
      bar.title = milliseconds(ms);
      bars.append(bar);
    }
    turns.append(bars, make("span", "hint", `last ${this.#history.length} turns, median ${milliseconds(median)}`));
    return turns;
  }
}
