// The page of duplex: where its parts meet.
//
//   call.js        a call that survives lost connections      connection.js  one WebRTC connection
//   problems.js    what can go wrong, in words                notice.js      the card that says so
//   key.js         a server that asks for a key
//   captions.js    what was said, as it was heard             playout.js     the clock of what was heard
//   floor.js       who has the floor                          ribbon.js      the last seconds, both voices
//   meters.js      levels         waterfall.js  latency       health.js      getStats
//   camera.js  devices.js  eventlog.js  theme.js  dom.js      state.js       window.duplexState

import { Call } from "./call.js";
import { Camera } from "./camera.js";
import { Captions } from "./captions.js";
import { Devices } from "./devices.js";
import { byId } from "./dom.js";
import { EventLog } from "./eventlog.js";
import { FloorView } from "./floor.js";
import { Health } from "./health.js";
import { Meters, MeterView } from "./meters.js";
import { Notice } from "./notice.js";
import { Playout } from "./playout.js";
import { CallProblem, describe, isPassing } from "./problems.js";
import { Ribbon } from "./ribbon.js";
import { record, state } from "./state.js";
import { Waterfall } from "./waterfall.js";

const ACK_MS = 200;
const HEALTH_MS = 1000;
const SILENT_MS = 8000; // an open microphone that gives exactly nothing for this long is switched off somewhere

const call = new Call();
const camera = new Camera();
const meters = new Meters();
const playout = new Playout();
const health = new Health();
const floorView = new FloorView();
const notice = new Notice();
const ribbon = new Ribbon(byId("ribbon"));
const waterfall = new Waterfall(byId("waterfall"));
const levelUser = new MeterView(byId("level-user"));
const levelAgent = new MeterView(byId("level-agent"));
const captions = new Captions({
  list: byId("captions"),
  scroller: byId("captions-scroll"),
  latest: byId("latest"),
  playout,
  announce,
});
const devices = new Devices({
  onMicrophone: (id) => call.useMicrophone(id).catch((error) => notice.show(describe(error))),
  onCamera: (id) => camera.on && camera.turnOn(id).catch(showCameraError),
});
new EventLog();

// Status: what the call is doing

const STATUS_WORDS = {
  idle: "Ready",
  asking: "Waiting for permission",
  connecting: "Connecting",
  live: "Connected",
  reconnecting: "Reconnecting",
  waiting: "Server full",
  problem: "Not connected",
};

const QUIET = "quiet_";
let quietSent = 0;
let activeReply = null; // response_id
let replyWanted = false; // a typed line waits for the present reply to end
let wasLive = false;
let typing = false;
let explained = false; // that only the agent's words are written down

call.addEventListener("status", () => {
  const { status, problem } = call;
  state.status = status;
  state.problem = problem?.code ?? null;
  byId("app").dataset.status = status;
  document.documentElement.dataset.status = status;
  setText(byId("status"), STATUS_WORDS[status]);
  setText(byId("talk-label"), call.busy ? (status === "live" ? "Hang up" : "Cancel") : "Talk");
  byId("mute").disabled = !call.stream;
  byId("stop-agent").disabled = true;

  if (status === "live") {
    activeReply = null;
    replyWanted = false;
    notice.hide();
    byId("welcome").hidden = true;
    if (wasLive) captions.divider(call.wentOn ? "Reconnected." : "Reconnected. The agent starts afresh.");
    wasLive = true;
    setFloor("listening", "idle");
    if (["instructions", "voice", "turn-taking"].some((id) => byId(id).value)) applySession();
    if (typing) openComposer();
  } else {
    floorView.showStatus(status);
    state.floor = null;
    if (wasLive && status === "reconnecting") captions.settle();
    if (problem) showProblem(problem, status);
    else if (status !== "asking") notice.hide();
  }
  if (!call.busy) endOfCall();
});

function showProblem(problem, status) {
  if (status === "problem") {
    const actions = [["Try again", () => talk()]];
    if (problem.typing) actions.push(["Continue by typing", () => talk({ typing: true })]);
    return notice.show(problem, actions);
  }
  const next = call.retryInS === null ? "Trying now…" : `Trying again in ${call.retryInS} s`;
  notice.show(problem, [["Try now", () => call.tryNow()], ["Give up", () => call.hangUp()]], next);
}

function endOfCall() {
  if (wasLive) captions.settle();
  wasLive = false;
  agentAudio.srcObject = null;
  meters.attach("user", null);
  meters.attach("agent", null);
  playout.reset();
  health.reset();
  setText(byId("elapsed"), "");
}

// Media

const agentAudio = byId("agent-audio");

call.addEventListener("microphone", ({ detail: stream }) => {
  meters.attach("user", stream);
  devices.refresh({ audioinput: stream.getAudioTracks()[0].getSettings().deviceId });
});

call.addEventListener("track", ({ detail: stream }) => {
  agentAudio.srcObject = stream;
  meters.attach("agent", stream);
  agentAudio.play().catch(() => {
    const title = "Your browser holds back the sound";
    notice.show({ title, text: "It wants one more press before it plays anything." }, [
      ["Let me hear it", () => agentAudio.play().then(() => notice.hide(), () => {})],
    ]);
  });
});

camera.addEventListener("change", () => {
  call.useCamera(camera.track);
  byId("camera-toggle").setAttribute("aria-pressed", String(camera.on));
  byId("camera-icon").setAttribute("href", camera.on ? "#i-camera" : "#i-camera-off");
  if (camera.on) devices.refresh({ videoinput: camera.track.getSettings().deviceId });
});

function showCameraError(error) {
  notice.show({ title: "No camera", text: error.message }, [["All right", () => notice.hide()]]);
}

// Events from the server

const ON = {
  "session.created": ({ session }) => {
    showSession(session);
    sayThatOnlyItsOwnWordsAreWritten(session);
  },
  "session.updated": ({ session }) => {
    showSession(session);
    setText(byId("session-note"), "Applied.");
  },
  "duplex.floor": (event) => setFloor(event.floor, event.user),
  "output_audio_buffer.started": (event, now) => playout.started(event.response_id, now),
  "output_audio_buffer.stopped": (event) => playout.stopped(event.response_id),
  "output_audio_buffer.cleared": (event, now) => {
    playout.cleared(event.response_id, now);
    ribbon.mark("cut");
  },
  "duplex.reply.held": (event) => playout.held(event.response_id),
  "duplex.playout": (event, now) => {
    playout.sent(event.response_id, event.sent_ms, now);
    acknowledge(now);
    state.playout = { ...event, played_ms: Math.round(playout.playedMs(event.response_id, now)) };
  },
  "duplex.trace": (event) => {
    state.lastTrace = event;
    waterfall.show(event);
  },
  "duplex.session.closed": ({ reason }) => captions.divider(`The server ended the call: ${reason}`),
  "response.created": ({ response }) => (activeReply = response.id),
  "response.done": ({ response }) => {
    if (response.id === activeReply) activeReply = null;
    if (replyWanted) askForReply();
  },
  error: ({ error }) => {
    if (error?.event_id?.startsWith(QUIET)) return; // overtaken by events, such as stopping what has just ended
    const text = error?.message ?? "The server reported an error without a message.";
    setText(byId("session-note"), "");
    if (isPassing(error)) return notice.pass(text);
    notice.show({ title: "The server says", text }, [["All right", () => notice.hide()]]);
  },
};

call.addEventListener("event", ({ detail: event }) => {
  const now = performance.now();
  record("server", event);
  try {
    ON[event.type]?.(event, now);
    captions.handle(event, now);
  } catch (error) {
    console.error("could not show", event, error); // one odd event must not end the conversation
  }
});

function send(event) {
  if (!call.send(event)) return false;
  record("page", event);
  return true;
}

/** Send something that may come too late, and then does not matter: its refusal is logged and not shown. */
function sendQuietly(event) {
  quietSent += 1;
  return send({ ...event, event_id: `${QUIET}${quietSent}` });
}

function acknowledge(now) {
  for (const ack of playout.acks(now)) sendQuietly(ack);
}

function stopReply() {
  sendQuietly({ type: "response.cancel" });
  sendQuietly({ type: "output_audio_buffer.clear" });
}

function askForReply() {
  replyWanted = false;
  send({ type: "response.create" });
}

function setFloor(floor, user) {
  const before = state.floor;
  state.floor = floor;
  state.user = user;
  floorView.show(floor, user);
  byId("stop-agent").disabled = !["thinking", "speaking", "holding"].includes(floor);
  if (before === "holding" && floor === "speaking") ribbon.mark("resumed");
}

function showSession(session) {
  const instructions = byId("instructions");
  const voice = byId("voice");
  instructions.placeholder = session?.instructions || instructions.placeholder;
  voice.placeholder = session?.audio?.output?.voice || voice.placeholder;
  camera.seenBy(session?.duplex?.takes_images);
}

/** A native model hears sound and has no words for it: said once, since there will be no lines of the person's. */
function sayThatOnlyItsOwnWordsAreWritten(session) {
  if (!session?.duplex?.native || explained) return;
  explained = true;
  captions.divider("This agent hears your voice itself and does not write it down: only its own words appear here.");
}

function applySession() {
  const instructions = byId("instructions").value.trim();
  const voice = byId("voice").value.trim();
  const session = { type: "realtime" };
  if (instructions) session.instructions = instructions;
  if (voice) session.audio = { output: { voice } };
  const preset = byId("turn-taking").value;
  if (preset) session.duplex = { turn_taking: { preset } };
  return send({ type: "session.update", session });
}

// What the person does

function talk(options = {}) {
  typing = Boolean(options.typing);
  meters.wake();
  call.start(options);
}

byId("talk").addEventListener("click", () => (call.busy ? call.hangUp() : talk()));

byId("mute").addEventListener("click", () => {
  call.muted = !call.muted;
  byId("mute").setAttribute("aria-pressed", String(call.muted));
  byId("mute-icon").setAttribute("href", call.muted ? "#i-mic-off" : "#i-mic");
});

byId("camera-toggle").addEventListener("click", () => {
  if (camera.on) camera.turnOff();
  else camera.turnOn().catch(showCameraError);
});

byId("stop-agent").addEventListener("click", stopReply);

byId("type-toggle").addEventListener("click", () => {
  if (byId("composer").hidden) openComposer();
  else closeComposer();
});

function openComposer() {
  byId("composer").hidden = false;
  byId("type-toggle").setAttribute("aria-expanded", "true");
  byId("composer-text").focus();
}

function closeComposer() {
  byId("composer").hidden = true;
  byId("type-toggle").setAttribute("aria-expanded", "false");
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const input = byId("composer-text");
  const text = input.value.trim();
  if (!text) return;
  const item = { type: "message", role: "user", content: [{ type: "input_text", text }] };
  if (!send({ type: "conversation.item.create", item })) {
    return notice.show({ title: "Not sent", text: "There is no call yet." }, [
      ["Talk", () => talk()],
      ["Call without a microphone", () => talk({ typing: true })],
    ]);
  }
  captions.typed(text);
  input.value = "";
  if (activeReply === null) return askForReply();
  replyWanted = true; // to type is to interrupt: the present reply ends first
  stopReply();
});

byId("session-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setText(byId("session-note"), applySession() ? "Sent." : "Will be applied when the call starts.");
});

// Time

let silentSinceMs = null;

function frame(now) {
  requestAnimationFrame(frame);
  if (call.status !== "live") return;
  const user = call.muted ? 0 : meters.level("user");
  const agent = meters.level("agent");
  levelUser.show(user, now);
  levelAgent.show(agent, now);
  floorView.levels(user, agent);
  ribbon.tick(user, agent, state.floor, now);
  captions.tick(now);
}
requestAnimationFrame(frame);

setInterval(() => {
  const now = performance.now();
  if (call.status !== "live") return;
  acknowledge(now); // what still plays here after the server sent its last
  if (document.hidden) captions.tick(now); // no frames are drawn there, and captions stay true all the same
}, ACK_MS);

setInterval(async () => {
  if (call.status !== "live") return;
  const seconds = Math.floor((performance.now() - call.liveSince) / 1000);
  setText(byId("elapsed"), `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`);
  noticeSilence(performance.now());
  const sample = await health.sample(call.connection);
  if (sample?.jitter_buffer_ms) playout.delayMs = sample.jitter_buffer_ms + meters.outputLatencyMs;
}, HEALTH_MS);

/** A microphone that is allowed and yet gives digital silence: say so, once a call. */
function noticeSilence(now) {
  const silent = call.stream && !call.muted && meters.level("user") === 0;
  if (!silent) silentSinceMs = null;
  else silentSinceMs ??= now;
  const hint = silent && now - silentSinceMs > SILENT_MS;
  byId("floor").classList.toggle("unheard", Boolean(hint));
  if (hint && state.floor === "listening") setText(byId("floor-note"), "Your microphone gives no sound. Is it switched off, or is another one chosen under Devices?");
}

function announce(line) {
  if (!byId("announce").checked) return;
  const log = byId("announcer");
  log.append(Object.assign(document.createElement("p"), { textContent: line }));
  while (log.children.length > 20) log.firstChild.remove();
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Before the first press: say what would stop it anyway.
if (!globalThis.RTCPeerConnection) call.fail(new CallProblem("unsupported"));
else if (!isSecureContext) call.fail(new CallProblem("insecure"));

window.duplex = { state, call, camera, send };
