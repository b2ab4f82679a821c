// One WebRTC connection to the server: offer, answer, data channel. No policy: call.js decides when to retry.
//
// Events: "event" (detail: a parsed server event), "track" (detail: the agent's MediaStream),
//         "dropped" (once, when a connection that had opened stops working).

import { askForKey, authorization } from "./key.js";
import { CallProblem, fromResponse } from "./problems.js";

const CALLS_URL = new URL("/v1/realtime/calls", location.href);
const ICE_SERVERS_URL = new URL("/v1/realtime/calls/ice_servers", location.href);
const GATHER_MS = 1500; // without STUN, candidates are there at once; never wait long for a slow interface
const ANSWER_MS = 20000;
const OPEN_MS = 15000;
const DISCONNECTED_MS = 4000; // "disconnected" often heals by itself

export class Connection extends EventTarget {
  #pc = null;
  #channel = null;
  #location = null;
  #closed = false;
  #opened = false;
  #dropped = false;
  #dropTimer = 0;
  #token = null; // with which another connection may go on with the session
  #lastEventId = null;

  audio = null; // RTCRtpTransceiver
  video = null;

  /** What another connection needs to go on with this one's session; null if it cannot. */
  get resume() {
    if (!this.#token || !this.#location) return null;
    return { token: this.#token, lastEventId: this.#lastEventId, location: this.#location };
  }

  /**
   * Connect. `stream` holds the microphone, or is null to take part by typing. `resume`, of a connection that dropped:
   * go on with its session. Throws CallProblem.
   */
  async open({ stream, cameraTrack, resume = null }) {
    if (!globalThis.RTCPeerConnection) throw new CallProblem("unsupported");
    const iceServers = await this.#iceServers();
    if (this.#closed) throw new CallProblem("closed");
    const pc = (this.#pc = new RTCPeerConnection({ bundlePolicy: "max-bundle", iceServers }));
    const micTrack = stream?.getAudioTracks()[0] ?? null;
    this.audio = pc.addTransceiver(micTrack ?? "audio", {
      direction: "sendrecv",
      ...(micTrack ? { streams: [stream] } : {}),
    });
    // Offered from the start, empty: the camera comes and goes by replaceTrack, without renegotiation.
    this.video = pc.addTransceiver("video", {
      direction: "sendonly",
      sendEncodings: [{ maxFramerate: 5, maxBitrate: 400_000 }],
    });
    if (cameraTrack) await this.video.sender.replaceTrack(cameraTrack);
    pc.addEventListener("track", (event) => {
      if (event.track.kind !== "audio") return;
      const agent = event.streams[0] ?? new MediaStream([event.track]);
      this.dispatchEvent(new CustomEvent("track", { detail: agent }));
    });

    const channel = (this.#channel = pc.createDataChannel("oai-events"));
    channel.addEventListener("message", (message) => this.#receive(message.data));
    const open = this.#waitUntilOpen(pc, channel);
    open.catch(() => {}); // reported by the await below, unless an earlier step fails first

    try {
      await pc.setLocalDescription(await pc.createOffer());
      await gathered(pc);
      if (this.#closed) throw new CallProblem("closed");
      const { sdp } = pc.localDescription;
      const answer = await (resume ? this.#move(resume, sdp) : this.#exchange(sdp));
      if (this.#closed) throw new CallProblem("closed");
      try {
        await pc.setRemoteDescription({ type: "answer", sdp: answer });
      } catch (error) {
        throw new CallProblem("bad-answer", { message: error.message });
      }
      await open;
    } catch (error) {
      if (resume) this.leave(); // the call is still there for the next try
      else this.close();
      throw error;
    }
    this.#opened = true;
    pc.addEventListener("connectionstatechange", () => this.#watch());
    channel.addEventListener("close", () => this.#drop());
    this.#watch();
  }

  /** Send one event, as JSON. False when the channel is not open. */
  send(event) {
    if (this.#channel?.readyState !== "open") return false;
    this.#channel.send(JSON.stringify(event));
    return true;
  }

  async stats() {
    return this.#pc && !this.#closed ? this.#pc.getStats() : null;
  }

  /** Hang up. `keepalive` lets the request outlive the page. */
  close({ keepalive = false } = {}) {
    if (this.#closed) return;
    this.leave();
    if (this.#location) {
      // Best effort: without it the server notices by itself, later.
      fetch(this.#location, { method: "DELETE", headers: authorization(), keepalive }).catch(() => {});
    }
  }

  /** Let go of the connection, and leave the call to another. */
  leave() {
    this.#closed = true;
    clearTimeout(this.#dropTimer);
    this.#channel?.close();
    this.#pc?.close();
  }

  /** The STUN and TURN servers that lead to this server, with credentials of our own. None where it names none. */
  async #iceServers() {
    const ask = () =>
      fetch(ICE_SERVERS_URL, { headers: authorization(), signal: AbortSignal.timeout(ANSWER_MS) }).catch(() => null);
    let response = await ask();
    while (response?.status === 401 && (await askForKey())) response = await ask();
    if (response?.status === 401) throw await fromResponse(response);
    if (!response?.ok) return []; // the offer is about to say what is wrong, if anything is
    return (await response.json().catch(() => null))?.ice_servers ?? [];
  }

  async #exchange(sdp) {
    let response = await this.#offer(sdp);
    while (response.status === 401 && (await askForKey())) response = await this.#offer(sdp);
    if (response.status !== 201) throw await fromResponse(response);
    const place = response.headers.get("Location");
    if (place) this.#location = new URL(place, CALLS_URL);
    const answer = await response.text();
    if (this.#closed && this.#location) {
      // Hung up while the server was answering: close() had no call to end yet.
      fetch(this.#location, { method: "DELETE", headers: authorization(), keepalive: true }).catch(() => {});
    }
    return answer;
  }

  /** Has the session of another connection go on over this one. */
  async #move(resume, sdp) {
    this.#location = resume.location;
    this.#token = resume.token;
    this.#lastEventId = resume.lastEventId;
    const body = new FormData();
    body.set("sdp", sdp);
    body.set("session", JSON.stringify({ duplex: { resume_token: resume.token, last_event_id: resume.lastEventId } }));
    let response;
    try {
      const signal = AbortSignal.timeout(ANSWER_MS);
      response = await fetch(resume.location, { method: "PATCH", headers: authorization(), body, signal });
    } catch (error) {
      throw new CallProblem("gone", { message: error.message });
    }
    if (!response.ok) throw Object.assign(await fromResponse(response), { refused: response.status < 500 });
    return response.text();
  }

  async #offer(sdp) {
    try {
      return await fetch(CALLS_URL, {
        method: "POST",
        headers: { "Content-Type": "application/sdp", ...authorization() },
        body: sdp,
        signal: AbortSignal.timeout(ANSWER_MS),
      });
    } catch (error) {
      throw new CallProblem("gone", { message: error.message });
    }
  }

  #waitUntilOpen(pc, channel) {
    return new Promise((resolve, reject) => {
      let timer = 0;
      const settle = (outcome, value) => {
        clearTimeout(timer);
        outcome(value);
      };
      channel.addEventListener("open", () => settle(resolve), { once: true });
      pc.addEventListener("connectionstatechange", () => {
        if (pc.connectionState === "connecting") {
          timer ||= setTimeout(() => settle(reject, new CallProblem("ice")), OPEN_MS);
        }
        if (pc.connectionState === "failed") settle(reject, new CallProblem("ice"));
      });
    });
  }

  #receive(data) {
    let event;
    try {
      event = JSON.parse(data);
    } catch {
      console.warn("the server sent something that is not JSON", data);
      return;
    }
    if (event?.type === "session.created") this.#token = event.session?.duplex?.resume_token ?? null;
    if (typeof event?.event_id === "string") this.#lastEventId = event.event_id;
    if (typeof event?.type === "string") this.dispatchEvent(new CustomEvent("event", { detail: event }));
  }

  #watch() {
    clearTimeout(this.#dropTimer);
    const now = this.#pc.connectionState;
    if (now === "failed" || now === "closed") this.#drop();
    if (now === "disconnected") this.#dropTimer = setTimeout(() => this.#drop(), DISCONNECTED_MS);
  }

  #drop() {
    if (this.#closed || !this.#opened || this.#dropped) return;
    this.#dropped = true;
    clearTimeout(this.#dropTimer);
    // A goodbye now would end the call, if it got through; another connection may go on with it.
    if (!this.resume) this.close();
    this.dispatchEvent(new Event("dropped"));
  }
}

/** Resolves once all candidates are in the local description, or after GATHER_MS with those there are. */
function gathered(pc) {
  if (pc.iceGatheringState === "complete") return Promise.resolve();
  return new Promise((resolve) => {
    setTimeout(resolve, GATHER_MS);
    pc.addEventListener("icegatheringstatechange", () => {
      if (pc.iceGatheringState === "complete") resolve();
    });
  });
}
