// Everything that can go wrong, in words: what happened, and what to do about it.
//
// A problem is data: {code, title, text, steps, retry, typing}.
//   retry   "auto": the call tries again by itself; "ask": only when the person says so
//   typing  true when a call without a microphone would still work

export class CallProblem extends Error {
  constructor(code, detail = {}) {
    super(code);
    this.code = code;
    this.detail = detail;
  }
}

const WORDS = {
  insecure: {
    title: "This address cannot use the microphone",
    text: "Browsers allow a microphone only on https:// pages and on localhost, and this page came over plain http.",
    steps: ({ host, port }) => [
      `From this device, forward the port: ssh -L ${port}:localhost:${port} ${host}`,
      `Then open http://localhost:${port}`,
      "Or put the server behind https. Until then you can type.",
    ],
    retry: "ask",
    typing: true,
  },
  unsupported: {
    title: "This browser cannot make calls",
    text: "It has no WebRTC, or WebRTC is switched off by a setting or an extension.",
    steps: () => ["Open this page in a current Chrome, Edge, Firefox or Safari."],
    retry: "ask",
  },
  "mic-refused": {
    title: "The microphone is not allowed",
    text: "The browser was told not to let this page listen.",
    steps: () => [
      "Open the site settings beside the address and set Microphone to Allow.",
      "If the browser never asked, allow it in the system's privacy settings too.",
      "Then press Try again. Or type: it will answer aloud.",
    ],
    retry: "ask",
    typing: true,
  },
  "mic-missing": {
    title: "No microphone found",
    text: "The browser sees no device that can record sound.",
    steps: () => ["Plug in or switch on a microphone or headset, then press Try again.", "Or type: it will answer aloud."],
    retry: "ask",
    typing: true,
  },
  "mic-busy": {
    title: "The microphone is in use",
    text: "It is there and allowed, and the system would not start it. Another program may be holding it.",
    steps: () => ["Close other calls and recorders, or choose another microphone under Devices.", "Then press Try again."],
    retry: "ask",
    typing: true,
  },
  full: {
    title: "All lines are busy",
    text: "The server is already talking to as many people as it can do well.",
    steps: () => [],
    retry: "auto",
  },
  gone: {
    title: "The server does not answer",
    text: "It may be starting, restarting, or switched off.",
    steps: () => ["If it is yours, look at the terminal where it runs: duplex-serve"],
    retry: "auto",
  },
  dropped: {
    title: "The connection broke",
    text: "Calling again. What was said stays on this page; the agent starts afresh.",
    steps: () => [],
    retry: "auto",
  },
  ice: {
    title: "Sound cannot get through",
    text: "The server answered, but no path for audio was found between it and this browser.",
    steps: () => [
      "A firewall or VPN may be blocking UDP: switch it off, or try another network.",
      "If the server is behind NAT or in a container, publish its UDP ports or run it on the host's network.",
      "On the same machine, open the page as http://localhost rather than by another name.",
    ],
    retry: "ask",
  },
  refused: {
    title: "The server refused the call",
    text: ({ message, status }) => message || `It answered ${status}, without a reason.`,
    steps: () => [],
    retry: "ask",
  },
  "bad-answer": {
    title: "The server's answer makes no sense",
    text: ({ message }) => `The browser could not use it: ${message || "no reason given"}.`,
    steps: () => ["Something between here and the server may have rewritten it, or the two versions differ. Reload the page."],
    retry: "ask",
  },
};

/** The problem as data, from a CallProblem or any other error. */
export function describe(error, place = location) {
  const code = error instanceof CallProblem && error.code in WORDS ? error.code : "bad-answer";
  const detail = {
    host: place.hostname,
    port: place.port || "80",
    message: error?.message,
    ...(error?.detail ?? {}),
  };
  const words = WORDS[code];
  const say = (part) => (typeof part === "function" ? part(detail) : part);
  return {
    code,
    title: words.title,
    text: say(words.text),
    steps: say(words.steps),
    retry: words.retry,
    typing: Boolean(words.typing),
    retryAfterS: detail.retryAfterS ?? null,
  };
}

// What a server reports and gets over by itself: the call goes on, and there is nothing to press.
const PASSING = new Set(["agent_behind"]);

export function isPassing(error) {
  return PASSING.has(error?.code);
}

const MEDIA_CODES = {
  NotAllowedError: "mic-refused",
  SecurityError: "mic-refused",
  NotFoundError: "mic-missing",
  OverconstrainedError: "mic-missing",
  NotReadableError: "mic-busy",
  AbortError: "mic-busy",
};

/** What getUserMedia threw, as a CallProblem. */
export function fromMediaError(error) {
  return new CallProblem(MEDIA_CODES[error?.name] ?? "mic-busy", { message: error?.message });
}

/** A response that is not 201, as a CallProblem. */
export async function fromResponse(response, nowMs = Date.now()) {
  const body = await response.text().catch(() => "");
  const detail = { status: response.status, message: messageIn(body) };
  if (response.status === 503 || response.status === 429) {
    detail.retryAfterS = retryAfterS(response.headers.get("Retry-After"), nowMs);
    return new CallProblem("full", detail);
  }
  if ([500, 502, 504].includes(response.status)) return new CallProblem("gone", detail);
  return new CallProblem("refused", detail);
}

/** Seconds from a Retry-After header, which holds seconds or a date. Null when it holds neither. */
export function retryAfterS(header, nowMs) {
  if (!header) return null;
  if (/^\s*\d+\s*$/.test(header)) return Number(header);
  const date = Date.parse(header);
  return Number.isNaN(date) ? null : Math.max(0, (date - nowMs) / 1000);
}

function messageIn(body) {
  try {
    const parsed = JSON.parse(body);
    const message = parsed?.error?.message ?? parsed?.detail ?? parsed?.message;
    return typeof message === "string" ? message : "";
  } catch {
    // Not JSON. A short plain sentence is worth showing; a proxy's HTML page is not.
    return body.length < 300 && !body.includes("<") ? body.trim() : "";
  }
}
