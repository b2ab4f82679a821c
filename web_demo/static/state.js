// What the page knows, as one plain object: for browser tests, and for a person at the console.
//
//   duplexState.status     idle | asking | connecting | live | reconnecting | waiting | problem
//   duplexState.problem    a code of problems.js, or null
//   duplexState.captions   [{who: "user"|"agent", text, final, cut}], in the order they were said
//   duplexState.events     the last 200, oldest first: [{at_ms, from: "server"|"page", event, times}]

const KEPT_EVENTS = 200;
const CHATTY = new Set(["duplex.playout", "duplex.playback.ack"]); // several a second, each replacing the last

export const state = {
  status: "idle",
  problem: null,
  floor: null,
  user: "idle",
  captions: [],
  lastTrace: null,
  health: null,
  playout: null,
  events: [],
};

const listeners = new Set();

/** Remember one event that crossed the data channel. */
export function record(from, event) {
  const entry = { at_ms: Math.round(performance.now()), from, event, times: 1 };
  const former = CHATTY.has(event.type) && state.events.slice(-2).find((e) => e.event.type === event.type);
  if (former) Object.assign(former, { ...entry, times: former.times + 1 });
  else state.events.push(entry);
  if (state.events.length > KEPT_EVENTS) state.events.shift();
  for (const listener of listeners) listener(entry);
}

export function onRecord(listener) {
  listeners.add(listener);
}

window.duplexState = state;
