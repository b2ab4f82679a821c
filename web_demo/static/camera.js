// The camera: off until asked for. Small and slow on purpose, since the agent takes about two pictures a second.

import { byId } from "./dom.js";

const PICTURE = { width: { ideal: 640, max: 640 }, height: { ideal: 480, max: 480 }, frameRate: { ideal: 5, max: 15 } };

const WORDS = {
  NotAllowedError: "The camera is not allowed. Open the site settings beside the address and set Camera to Allow.",
  NotFoundError: "No camera found. Plug one in and try again.",
  NotReadableError: "The camera is in use by another program. Close it there and try again.",
  OverconstrainedError: "That camera is not there any more. Choose another under Devices.",
};

export class Camera extends EventTarget {
  #stream = null;
  #deviceId = null;
  #figure = byId("camera");
  #preview = byId("camera-preview");

  /** What the agent does with pictures, by `takesImages`: false means nothing; unknown counts as yes. */
  seenBy(takesImages) {
    const words = takesImages === false ? "Only you see this: this agent has no eyes" : "The agent sees this";
    this.#figure.querySelector("figcaption").textContent = words;
  }

  get on() {
    return this.#stream !== null;
  }

  get track() {
    return this.#stream?.getVideoTracks()[0] ?? null;
  }

  /** Turn it on. Throws an Error whose message can be shown. */
  async turnOn(deviceId = this.#deviceId) {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error("This address cannot use the camera: it needs https, or localhost.");
    }
    this.#deviceId = deviceId;
    let stream;
    try {
      const device = deviceId ? { deviceId: { exact: deviceId } } : { facingMode: "user" };
      stream = await navigator.mediaDevices.getUserMedia({ video: { ...PICTURE, ...device } });
    } catch (error) {
      throw new Error(WORDS[error?.name] ?? `The camera does not start: ${error?.message ?? error}`);
    }
    this.#stop();
    this.#stream = stream;
    // Encode for detail, not motion: a sharp still says more to the agent than a smooth blur.
    if ("contentHint" in this.track) this.track.contentHint = "detail";
    this.track.addEventListener("ended", () => this.turnOff());
    this.#preview.srcObject = stream;
    this.#figure.hidden = false;
    this.dispatchEvent(new Event("change"));
  }

  turnOff() {
    this.#stop();
    this.#preview.srcObject = null;
    this.#figure.hidden = true;
    this.dispatchEvent(new Event("change"));
  }

  #stop() {
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#stream = null;
  }
}
