// Who has the floor, in a word, a sentence and the orb. The upper half of the orb is the user, the lower the agent.

import { byId } from "./dom.js";

const WORDS = { listening: "Listening", thinking: "Thinking", speaking: "Speaking", holding: "Holding", yielding: "Yielding" };

const NOTES = {
  listening: {
    idle: "Say something.",
    speaking: "It hears you.",
    "paused-incomplete": "Take your time. It thinks you are not done.",
    "turn-complete": "That sounded finished.",
    "not-addressed": "It thinks that was not meant for it.",
  },
  thinking: { "": "Working on an answer. You may go on." },
  speaking: { "": "Talk over it whenever you like.", backchannel: "It heard your “mm-hm” and goes on." },
  holding: { "": "It paused to hear whether you want the floor." },
  yielding: { "": "The floor is yours." },
};

const OFFLINE = {
  idle: ["Say hello", "You can talk over it. It stops, listens, and decides."],
  asking: ["One moment", "Your browser is asking for the microphone."],
  connecting: ["Connecting", "Calling the server."],
  reconnecting: ["Reconnecting", "Calling the server again."],
  waiting: ["Waiting", "The call starts by itself when a line is free."],
  problem: ["Not connected", "What to do is written below."],
};

export class FloorView {
  #root = byId("floor");
  #word = byId("floor-word");
  #note = byId("floor-note");
  #orb = byId("orb");

  show(floor, user) {
    this.#root.dataset.floor = this.#orb.dataset.floor = floor;
    this.#root.dataset.user = user;
    const notes = NOTES[floor] ?? {};
    this.#say(WORDS[floor] ?? floor, notes[user] ?? notes[""] ?? notes.idle ?? "");
  }

  /** No conversation at the moment: what the call is doing instead. */
  showStatus(status) {
    this.#root.dataset.floor = this.#orb.dataset.floor = "none";
    this.#say(...(OFFLINE[status] ?? ["", ""]));
  }

  levels(user, agent) {
    this.#orb.style.setProperty("--level-user", user.toFixed(3));
    this.#orb.style.setProperty("--level-agent", agent.toFixed(3));
  }

  #say(word, note) {
    if (this.#word.textContent !== word) this.#word.textContent = word;
    if (this.#note.textContent !== note) this.#note.textContent = note;
  }
}
