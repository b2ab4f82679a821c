// A call, as the person thinks of it: it survives lost connections until they hang up.
//
//   idle ─► asking ─► connecting ─► live ─► reconnecting ─► live …
//                │          │  └──► waiting (server full) ─► connecting
//                └──────────┴─────► problem (in words; the person decides)
//
// Events: "status", and those of the current Connection ("event", "track"), passed on.

import { Connection } from "./connection.js";
import { CallProblem, describe, fromMediaError } from "./problems.js";

const FIRST_RETRY_S = 0.5;
const LONGEST_RETRY_S = 15;
const MICROPHONE = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };

/** Seconds before try number `attempt` (from 0): doubling, with ±20 % so that many pages don't return at once. */
export function backoffS(attempt, random = Math.random) {
  return Math.min(LONGEST_RETRY_S, FIRST_RETRY_S * 2 ** attempt) * (0.8 + 0.4 * random());
}

export class Call extends EventTarget {
  status = "idle";
  problem = null; // what describe() returns
  retryInS = null;
  connection = null;
  stream = null; // the microphone
  wentOn = false; // the newest connection goes on with the session of the one before
  liveSince = null; // performance.now() of the first connection of this call
  #wanted = 0; // counts up with every start and hang-up, so that what belonged to an older call notices
  #wake = null;
  #dropped = null; // the connection that was lost last, whose session may go on over another
  #cameraTrack = null;
  #deviceId = null;
  #muted = false;

  constructor() {
    super();
    addEventListener("pagehide", () => this.hangUp({ keepalive: true }));
    addEventListener("online", () => this.tryNow());
  }

  get busy() {
    return !["idle", "problem"].includes(this.status);
  }

  /** Start. With `typing`, without a microphone. */
  async start({ typing = false } = {}) {
    if (this.busy) return;
    const mine = ++this.#wanted;
    this.liveSince = null;
    this.problem = null;
    try {
      if (!typing) {
        this.#set("asking");
        const stream = await this.#microphone();
        if (mine !== this.#wanted) return stop(stream);
        this.#take(stream);
      }
      await this.#keepConnected(mine);
    } catch (error) {
      if (mine !== this.#wanted) return;
      this.fail(error);
    }
  }

  /** End here, with the reason in words. */
  fail(error) {
    this.hangUp();
    this.#set("problem", describe(error));
  }

  hangUp({ keepalive = false } = {}) {
    this.#wanted += 1;
    this.connection?.close({ keepalive });
    this.connection = null;
    this.#dropped?.close({ keepalive });
    this.#dropped = null;
    this.#release();
    this.#wake?.();
    this.#set("idle");
  }

  /** End the pause before the next attempt. */
  tryNow() {
    this.#wake?.();
  }

  send(event) {
    return this.connection?.send(event) ?? false;
  }

  get muted() {
    return this.#muted;
  }

  set muted(muted) {
    this.#muted = muted;
    for (const track of this.stream?.getAudioTracks() ?? []) track.enabled = !muted;
  }

  /** Use another microphone, now if a call is up, and from now on. */
  async useMicrophone(deviceId) {
    this.#deviceId = deviceId;
    if (!this.stream) return;
    const mine = this.#wanted;
    const stream = await this.#microphone();
    if (mine !== this.#wanted) return stop(stream);
    stop(this.stream);
    this.#take(stream);
    await this.connection?.audio.sender.replaceTrack(stream.getAudioTracks()[0]);
  }

  async useCamera(track) {
    this.#cameraTrack = track;
    await this.connection?.video?.sender.replaceTrack(track);
  }

  async #keepConnected(mine) {
    for (let attempt = 0; ; attempt += 1) {
      this.#set(this.liveSince === null ? "connecting" : "reconnecting", this.problem);
      const connection = new Connection();
      for (const name of ["event", "track"]) {
        connection.addEventListener(name, (event) => {
          if (connection === this.connection) this.dispatchEvent(new CustomEvent(name, { detail: event.detail }));
        });
      }
      this.connection = connection;
      const dropped = new Promise((resolve) => connection.addEventListener("dropped", resolve, { once: true }));
      let failure;
      try {
        const resume = this.#dropped?.resume ?? null;
        await connection.open({ stream: this.stream, cameraTrack: this.#cameraTrack, resume });
        if (mine !== this.#wanted) return connection.close();
        this.wentOn = resume !== null;
        this.#dropped?.leave();
        this.#dropped = null;
        this.liveSince ??= performance.now();
        attempt = 0;
        this.#set("live");
        await dropped;
        this.#dropped = connection.resume ? connection : null;
        failure = new CallProblem("dropped");
      } catch (error) {
        failure = error;
        if (error.refused && this.#dropped) {
          this.#dropped.leave(); // its session is over: the next one is new
          this.#dropped = null;
          failure = new CallProblem("dropped");
        }
      }
      if (mine !== this.#wanted) return;
      this.connection = null;
      const problem = describe(failure);
      // Sound that got through before will get through again; a first call that finds no path will not.
      const again = problem.retry === "auto" || (problem.code === "ice" && this.liveSince !== null);
      if (!again) throw failure;
      await this.#pause(problem, problem.retryAfterS ?? backoffS(attempt));
      if (mine !== this.#wanted) return;
    }
  }

  /** Count down, a second at a time, until it is over or tryNow() is called. */
  async #pause(problem, seconds) {
    const until = performance.now() + seconds * 1000;
    const status = problem.code === "full" ? "waiting" : "reconnecting";
    let awake = false;
    while (!awake) {
      const leftMs = until - performance.now();
      if (leftMs <= 0) break;
      this.retryInS = Math.ceil(leftMs / 1000);
      this.#set(status, problem);
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, Math.min(leftMs, leftMs % 1000 || 1000));
        this.#wake = () => {
          awake = true;
          clearTimeout(timer);
          resolve();
        };
      });
    }
    this.#wake = null;
    this.retryInS = null;
    this.problem = problem;
  }

  async #microphone() {
    if (!isSecureContext || !navigator.mediaDevices?.getUserMedia) throw new CallProblem("insecure");
    const audio = { ...MICROPHONE, ...(this.#deviceId ? { deviceId: { exact: this.#deviceId } } : {}) };
    try {
      return await navigator.mediaDevices.getUserMedia({ audio });
    } catch (error) {
      throw fromMediaError(error);
    }
  }

  #take(stream) {
    this.stream = stream;
    this.muted = this.#muted;
    // Unplugged mid-call: go on with whatever microphone is left.
    stream.getAudioTracks()[0].addEventListener("ended", () => {
      if (this.stream !== stream) return;
      this.useMicrophone(null).catch((error) => this.fail(error));
    });
    this.dispatchEvent(new CustomEvent("microphone", { detail: stream }));
  }

  #release() {
    if (this.stream) stop(this.stream);
    this.stream = null;
  }

  #set(status, problem = null) {
    this.status = status;
    this.problem = problem;
    this.dispatchEvent(new Event("status"));
  }
}

function stop(stream) {
  for (const track of stream.getTracks()) track.stop();
}
