// The key that a server may ask for: asked of the person once, exchanged for a client secret, and forgotten.
//
// What is kept, in memory only, is the secret the server gave for the key. It opens calls and nothing else, and
// runs out by itself; the key is asked for again then. A pasted client secret (ek_…) is used as it is.

import { make } from "./dom.js";

const SECRETS_URL = new URL("/v1/realtime/client_secrets", location.href);
const LIFETIME_S = 7200; // the longest there is
const EXCHANGE_MS = 10000;

let secret = null;

/** Headers that show the secret, if there is one. */
export function authorization() {
  return secret ? { Authorization: `Bearer ${secret}` } : {};
}

/** Ask for a key until one is good or the person gives up. True: `authorization` has something new to show. */
export async function askForKey() {
  let wrong = secret ? "What you gave is unknown to it, or has run out." : "";
  secret = null;
  for (;;) {
    const typed = await ask(wrong);
    if (!typed) return false;
    if (typed.startsWith("ek_")) {
      secret = typed;
      return true;
    }
    wrong = await exchange(typed);
    if (!wrong) return true;
  }
}

/** The client secret for a key. Returns what went wrong, in words, or "". */
async function exchange(key) {
  try {
    const response = await fetch(SECRETS_URL, {
      method: "POST",
      headers: { "Content-Type": "application/json", Authorization: `Bearer ${key}` },
      body: JSON.stringify({ expires_after: { anchor: "created_at", seconds: LIFETIME_S } }),
      signal: AbortSignal.timeout(EXCHANGE_MS),
    });
    const answer = await response.json();
    if (response.ok) secret = answer.value;
    return response.ok ? "" : (answer.error?.message ?? `The server answered ${response.status}.`);
  } catch (error) {
    // A header takes only Latin letters, so a pasted sentence ends here too.
    return error instanceof TypeError ? "The server did not answer, or this is no key." : "The server did not answer.";
  }
}

/** A dialog for the key: what was typed, or "" if the person gave up. */
function ask(wrong) {
  const dialog = make("dialog", "key-dialog");
  const form = make("form");
  const label = make("label", "", "API key");
  const input = make("input");
  const problem = make("p", "", wrong);
  const actions = make("div", "actions");
  const open = make("button", "main", "Go on");
  const cancel = make("button", "plain", "Cancel");
  const title = make("h2", "", "This server asks for a key");
  title.id = "key-title";
  problem.id = "key-problem";
  problem.setAttribute("role", "alert");
  problem.hidden = !wrong;
  dialog.setAttribute("aria-labelledby", title.id);
  input.id = "key-input";
  input.type = "password";
  input.required = true;
  input.autocomplete = "off";
  input.spellcheck = false;
  input.setAttribute("aria-describedby", problem.id);
  label.htmlFor = input.id;
  open.id = "key-open";
  cancel.id = "key-cancel";
  cancel.type = "button";
  actions.append(open, cancel);
  form.append(title, make("p", "", "Whoever runs it has one, from: duplex keys add"), label, input, problem, actions);
  dialog.append(form);
  document.body.append(dialog);
  return new Promise((resolve) => {
    const settle = (value) => {
      resolve(value);
      dialog.close();
      dialog.remove();
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      settle(input.value.trim());
    });
    cancel.addEventListener("click", () => settle(""));
    dialog.addEventListener("cancel", () => settle("")); // Escape
    dialog.showModal();
    input.focus();
  });
}
