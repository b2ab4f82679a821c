// The two device pickers. Browsers name devices only after permission, so they fill up late.

import { byId } from "./dom.js";

const PICKERS = { audioinput: "mic-select", videoinput: "camera-select" };

export class Devices {
  constructor({ onMicrophone, onCamera }) {
    byId("mic-select").addEventListener("change", (event) => onMicrophone(event.target.value));
    byId("camera-select").addEventListener("change", (event) => onCamera(event.target.value));
    navigator.mediaDevices?.addEventListener?.("devicechange", () => this.refresh());
  }

  /** List what there is; `current` maps a kind to the device id in use. */
  async refresh(current = {}) {
    const devices = (await navigator.mediaDevices?.enumerateDevices?.().catch(() => [])) ?? [];
    for (const [kind, id] of Object.entries(PICKERS)) {
      const named = devices.filter((device) => device.kind === kind && device.label);
      if (!named.length) continue;
      const select = byId(id);
      const chosen = current[kind] ?? select.value;
      select.replaceChildren(...named.map((device) => new Option(device.label, device.deviceId)));
      if (named.some((device) => device.deviceId === chosen)) select.value = chosen;
      select.disabled = false;
    }
  }
}
