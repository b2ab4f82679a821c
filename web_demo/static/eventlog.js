// The collapsible log of what crossed the data channel, newest first. Drawn only while it is open.

import { byId, make } from "./dom.js";
import { onRecord, state } from "./state.js";

const SHOWN = 120;
const SUMMARY_CHARS = 140;

/** One line of an event: its fields without the type, ids shortened by the ellipsis at the end. */
function summary(event) {
  const { type: _type, event_id: _id, ...rest } = event;
  const text = JSON.stringify(rest);
  return text.length > SUMMARY_CHARS ? `${text.slice(0, SUMMARY_CHARS)}…` : text;
}

export class EventLog {
  #panel = byId("log-panel");
  #list = byId("log");
  #count = byId("log-count");
  #seen = 0;
  #waiting = false;

  constructor() {
    onRecord(() => {
      this.#seen += 1;
      this.#later();
    });
    this.#panel.addEventListener("toggle", () => this.#draw());
    byId("log-copy").addEventListener("click", () => this.#copy());
  }

  async #copy() {
    const note = byId("log-note");
    try {
      await navigator.clipboard.writeText(JSON.stringify(state.events, null, 2));
      note.textContent = `Copied the last ${state.events.length}.`;
    } catch {
      note.textContent = "The browser refused. Type copy(duplexState.events) in its console.";
    }
  }

  /** At most four drawings a second, whatever arrives. */
  #later() {
    if (this.#waiting) return;
    this.#waiting = true;
    setTimeout(() => {
      this.#waiting = false;
      this.#draw();
    }, 250);
  }

  #draw() {
    this.#count.textContent = this.#seen ? String(this.#seen) : "";
    if (!this.#panel.open) return;
    const lines = [];
    for (const { at_ms, from, event, times } of state.events.toReversed()) {
      const last = lines.at(-1);
      if (last && last.type === event.type && last.from === from) {
        last.times += times; // a run of the same event is one line, with the newest content
        continue;
      }
      if (lines.length === SHOWN) break;
      lines.push({ type: event.type, from, at_ms, event, times });
    }
    this.#list.replaceChildren(
      ...lines.map((line) => {
        const item = make("li", line.event.type === "error" ? `${line.from} error` : line.from);
        item.append(
          make("time", "", (line.at_ms / 1000).toFixed(2)),
          make("b", "", `${line.from === "page" ? "→" : "←"} ${line.type}${line.times > 1 ? ` ×${line.times}` : ""}`),
          make("code", "", summary(line.event)),
        );
        return item;
      }),
    );
  }
}
