// What was said, by both sides, as it was heard.
//
// The user's line is replaced by each partial transcript, lighter until it is final. The agent's line grows a
// word at a time with the playout clock, so it never runs ahead of the voice; a line that was cut off ends in a
// dash, and what nobody heard follows, struck out. A reply of which nothing was heard leaves no line.

import { make } from "./dom.js";
import { state } from "./state.js";

const UNTIMED_MS = 500; // a server that sends no duplex.words by then sends none: show its text as it comes
const NEAR_END_PX = 48;

/** Words compare without case and punctuation: "Paris," is "paris". */
const bare = (word) => word.toLowerCase().replace(/[^\p{L}\p{N}]/gu, "");

export class Captions {
  #list;
  #scroller;
  #latest;
  #playout;
  #announce;
  #rows = []; // in order of appearance
  #users = new Map(); // item_id -> row
  #agents = new Map(); // response_id -> row
  #responseOf = new Map(); // item_id -> response_id
  #typed = []; // rows sent from the keyboard, not yet echoed with their item_id
  #wordsSeen = false;
  #pinned = true;

  constructor({ list, scroller, latest, playout, announce }) {
    this.#list = list;
    this.#scroller = scroller;
    this.#latest = latest;
    this.#playout = playout;
    this.#announce = announce;
    scroller.addEventListener("scroll", () => {
      this.#pinned = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_END_PX;
      latest.hidden = this.#pinned;
    });
    latest.addEventListener("click", () => {
      this.#pinned = true;
      this.#follow();
    });
    new ResizeObserver(() => this.#follow()).observe(scroller);
  }

  handle(event, nowMs) {
    HANDLERS[event.type]?.(this, event, nowMs);
  }

  /** Show what has become audible. Call it every frame while a call is up. */
  tick(nowMs) {
    for (const row of this.#agents.values()) if (!row.final) this.#grow(row, nowMs);
  }

  /** A line from the keyboard: it is final at once. */
  typed(text) {
    const row = this.#userRow(Symbol("typed"));
    this.#typed.push(row);
    this.#setUser(row, text, true);
  }

  /** Something that happened to the call itself, such as a reconnection. Lines still open end here. */
  divider(text) {
    this.settle();
    const element = make("li", "divider", text);
    this.#list.append(element);
    this.#follow();
  }

  /** The call is over: whatever is open stays as it was heard. */
  settle() {
    const now = performance.now();
    for (const row of this.#users.values()) if (!row.final && row.text) this.#setUser(row, row.text, true);
    for (const [id, row] of this.#agents) if (!row.final) this.#cut(row, this.#playout.playedMs(id, now));
    this.#users.clear();
    this.#agents.clear();
  }

  // The user's side

  #userRow(key) {
    let row = this.#users.get(key);
    if (!row) {
      // Its place is kept from the first sound on: the words may arrive after the answer has begun.
      row = { who: "user", text: "", final: false, cut: false, aside: false, element: this.#element("user", "You") };
      row.element.hidden = true;
      this.#users.set(key, row);
      this.#rows.push(row);
    }
    return row;
  }

  #setUser(row, text, final) {
    if (row.final && !final) return;
    const wasFinal = row.final;
    row.text = text.trim();
    row.final = final;
    const empty = row.text === "";
    row.element.hidden = empty;
    row.element.classList.toggle("partial", !final);
    row.element.querySelector(".said").textContent = row.text;
    if (final && !wasFinal && !empty) this.#announce(`You: ${row.text}`);
    this.#changed();
  }

  userPartial(id, text) {
    const row = this.#userRow(id);
    row.whole = true; // this server sends whole partials: deltas for the item would double them
    this.#setUser(row, text, false);
  }

  userDelta(id, delta) {
    const row = this.#userRow(id);
    if (!row.whole) this.#setUser(row, (row.text ? `${row.text} ` : "") + delta, false);
  }

  userFinal(id, transcript) {
    const row = this.#userRow(id);
    this.#setUser(row, transcript ?? row.text, true);
  }

  /** The user went on after all: the line is open again. */
  userReopened(id) {
    const row = this.#users.get(id);
    if (row) row.final = false;
  }

  userSpeaks(id) {
    if (id) this.#userRow(id);
  }

  userItem(item) {
    const text = (item.content ?? []).map((part) => part.text ?? part.transcript ?? "").join(" ").trim();
    if (!text || this.#users.get(item.id)?.final) return;
    const echoed = this.#typed.findIndex((row) => row.text === text);
    if (echoed >= 0) this.#users.set(item.id, this.#typed.splice(echoed, 1)[0]);
    else this.#setUser(this.#userRow(item.id), text, true);
  }

  /** "Uh-huh" while the agent speaks is an aside, not a turn. */
  floor(user) {
    if (user !== "backchannel") return;
    const row = [...this.#users.values()].at(-1);
    if (!row || row.aside || row.final) return;
    row.aside = true;
    row.element.classList.add("aside");
  }

  // The agent's side

  /** "Mm-hm" of the agent while the user has the floor: said, and no reply. */
  agentAside(text) {
    const element = this.#element("agent", "Agent");
    element.classList.add("aside");
    element.querySelector(".said").textContent = text;
    this.#follow();
  }

  agentRow(responseId, itemId) {
    if (itemId) this.#responseOf.set(itemId, responseId);
    let row = this.#agents.get(responseId);
    if (!row) {
      row = {
        who: "agent", id: responseId, text: "", final: false, cut: false, element: null,
        transcript: "", words: [], shown: 0, untimed: false, startedMs: null, status: null,
      };
      this.#agents.set(responseId, row);
    }
    return row;
  }

  agentWords(row, words) {
    this.#wordsSeen = true;
    if (!words.length) return;
    // Later batches follow earlier ones; one that starts earlier corrects what it overlaps.
    row.words = row.words.filter((word) => word.start_ms < words[0].start_ms).concat(words);
    if (row.final) this.#cut(row, row.cutMs); // known only after the cut: still part of what was not heard
  }

  agentDone(row, status, nowMs) {
    row.status = status;
    if (status !== "completed") this.agentCut(row, nowMs);
    else if (!this.#playout.has(row.id)) this.#finish(row); // text only
  }

  agentCut(row, nowMs, audioEndMs = null) {
    if (audioEndMs === null && row.cut) return; // a second-hand report of the same cut
    if (row.final && !row.cut && audioEndMs === null) return;
    this.#cut(row, audioEndMs ?? this.#playout.playedMs(row.id, nowMs));
  }

  agentTruncated(itemId, audioEndMs, nowMs) {
    const row = this.#agents.get(this.#responseOf.get(itemId));
    if (row) this.agentCut(row, nowMs, audioEndMs);
  }

  #grow(row, nowMs) {
    const played = this.#playout.playedMs(row.id, nowMs);
    if (row.words.length) {
      const count = row.words.findLastIndex((word) => word.start_ms <= played) + 1;
      if (played > 0 && count > row.shown) this.#show(row, this.#tokens(row), count);
    } else if (row.untimed || (!this.#wordsSeen && row.startedMs !== null && nowMs - row.startedMs > UNTIMED_MS)) {
      const tokens = row.transcript.split(/\s+/).filter(Boolean);
      if (tokens.length !== row.shown || tokens.at(-1) !== row.last) this.#show(row, tokens, tokens.length);
    }
    if (row.status === "completed" && this.#playout.finished(row.id, nowMs)) this.#finish(row);
  }

  /** The line as tokens: the transcript's, with its punctuation, where they are the same words as the timed ones. */
  #tokens(row) {
    const tokens = row.transcript.split(/\s+/).filter(Boolean);
    const same = row.words.length <= tokens.length && row.words.every((word, i) => bare(word.text) === bare(tokens[i]));
    return same || !row.words.length ? tokens : row.words.map((word) => word.text.trim());
  }

  #show(row, tokens, count) {
    row.element ??= this.#appear(row);
    const said = row.element.querySelector(".said");
    // Words already there stay untouched; only new ones fade in.
    const spans = said.children;
    for (let i = 0; i < count; i += 1) {
      const text = i ? ` ${tokens[i]}` : tokens[i];
      if (!spans[i]) said.append(make("span", "word", text));
      else if (spans[i].textContent !== text) spans[i].textContent = text;
    }
    while (spans.length > count) spans[spans.length - 1].remove();
    row.shown = count;
    row.last = tokens[count - 1];
    row.text = tokens.slice(0, count).join(" ");
    this.#changed();
  }

  #appear(row) {
    this.#rows.push(row);
    return this.#element("agent", "Agent");
  }

  #finish(row) {
    if (row.final) return;
    row.final = true;
    const tokens = this.#tokens(row);
    if (tokens.length) this.#show(row, tokens, tokens.length);
    if (row.text) this.#announce(`Agent: ${row.text}`);
    this.#changed();
  }

  /** Cut off at `cutMs` of its audio: a word counts as heard from its middle on. */
  #cut(row, cutMs) {
    const tokens = this.#tokens(row);
    const timed = row.words.findLastIndex((word) => (word.start_ms + word.end_ms) / 2 <= cutMs) + 1;
    const heard = row.words.length ? timed : row.shown;
    const rest = tokens.slice(heard).join(" ");
    const first = !row.final;
    row.cutMs = cutMs;
    row.final = true;
    row.cut = Boolean(rest);
    if (heard === 0 && !row.element) return; // it was never heard: no trace
    this.#show(row, tokens, heard);
    row.element.querySelector(".cut")?.remove();
    if (rest) {
      const cut = make("span", "cut");
      cut.append(make("span", "dash", heard ? " —" : "—"), make("span", "hidden", " interrupted. Not heard:"), " ", make("del", "", rest));
      row.element.querySelector(".text").append(cut);
    }
    if (first && row.text) this.#announce(`Agent: ${row.text}${rest ? ", interrupted" : ""}`);
    this.#changed();
  }

  // Both

  #element(who, name) {
    const element = make("li", `line ${who}`);
    const text = make("p", "text");
    text.append(make("span", "said"));
    element.append(make("span", "who", name), text);
    this.#list.append(element);
    return element;
  }

  #changed() {
    state.captions = this.#rows
      .filter((row) => row.text || row.cut)
      .map(({ who, text, final, cut }) => ({ who, text: cut ? `${text} —` : text, final, cut }));
    this.#follow();
  }

  #follow() {
    if (this.#pinned) this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#latest.hidden = this.#pinned;
  }
}

const HANDLERS = {
  "input_audio_buffer.speech_started": (c, e) => c.userSpeaks(e.item_id),
  "duplex.turn.reopened": (c, e) => c.userReopened(e.item_id),
  "duplex.transcript.partial": (c, e) => c.userPartial(e.item_id, e.text),
  "duplex.floor": (c, e) => c.floor(e.user),
  "duplex.aside": (c, e) => c.agentAside(e.transcript),
  "conversation.item.input_audio_transcription.delta": (c, e) => c.userDelta(e.item_id, e.delta),
  "conversation.item.input_audio_transcription.completed": (c, e) => c.userFinal(e.item_id, e.transcript),
  "conversation.item.input_audio_transcription.failed": (c, e) => c.userFinal(e.item_id, null),
  "conversation.item.added": (c, e) => e.item?.role === "user" && c.userItem(e.item),
  "conversation.item.done": (c, e) => e.item?.role === "user" && c.userItem(e.item),
  "conversation.item.truncated": (c, e, now) => c.agentTruncated(e.item_id, e.audio_end_ms, now),
  "response.output_item.added": (c, e) => e.item?.id && e.item.type !== "function_call" && c.agentRow(e.response_id, e.item.id),
  "response.output_audio_transcript.delta": (c, e) => (c.agentRow(e.response_id, e.item_id).transcript += e.delta),
  "response.output_audio_transcript.done": (c, e) => {
    const row = c.agentRow(e.response_id, e.item_id);
    row.transcript = e.transcript ?? row.transcript;
  },
  "response.output_text.delta": (c, e) => {
    const row = c.agentRow(e.response_id, e.item_id);
    row.untimed = true;
    row.transcript += e.delta;
  },
  "duplex.words": (c, e) => c.agentWords(c.agentRow(e.response_id, e.item_id), e.words ?? []),
  "output_audio_buffer.started": (c, e, now) => (c.agentRow(e.response_id).startedMs ??= now),
  "output_audio_buffer.cleared": (c, e, now) => c.agentCut(c.agentRow(e.response_id), now),
  "response.done": (c, e, now) => c.agentDone(c.agentRow(e.response.id), e.response.status, now),
};
