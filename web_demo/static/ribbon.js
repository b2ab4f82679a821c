// The last seconds of the conversation as it sounded: your voice above the line, the agent's below, and the
// line itself coloured by who has the floor. Where both have height, both were speaking.

import { lessMotion } from "./dom.js";

const BAR_MS = 50;
const STEP_PX = 5; // one bar and its gap
const BAR_PX = 3;
const LINE_PX = 3;
const GAP_PX = 5; // between the line and either voice
const FRAME_MS = 32; // 30 pictures a second look smooth and leave the processor to the models
const CALM_MS = 500; // for people who asked for less motion

export class Ribbon {
  #canvas;
  #draw;
  #bars = []; // oldest first: {user, agent, floor, mark}
  #openedMs = null; // start of the newest bar
  #drawnMs = -Infinity;
  #colors = null;
  #size = { width: 0, height: 0 };

  constructor(canvas) {
    this.#canvas = canvas;
    this.#draw = canvas.getContext("2d");
    new ResizeObserver(() => this.#resize()).observe(canvas);
    const repaint = () => {
      this.#colors = null;
      this.#paint(0);
    };
    document.addEventListener("themechange", repaint);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
    this.#resize();
  }

  /** Add what is audible now. Call it every frame. */
  tick(user, agent, floor, nowMs) {
    // After a hidden tab, leave out the time nobody saw rather than replay it.
    if (this.#openedMs === null || nowMs - this.#openedMs > 2000) this.#openedMs = nowMs - BAR_MS;
    while (nowMs - this.#openedMs >= BAR_MS) {
      this.#openedMs += BAR_MS;
      this.#bars.push({ user: 0, agent: 0, floor, mark: null });
    }
    const newest = this.#bars.at(-1);
    newest.user = Math.max(newest.user, user);
    newest.agent = Math.max(newest.agent, agent);
    newest.floor = floor;
    const room = Math.ceil(this.#size.width / STEP_PX) + 2;
    if (this.#bars.length > room) this.#bars.splice(0, this.#bars.length - room);
    if (nowMs - this.#drawnMs < (lessMotion() ? CALM_MS : FRAME_MS)) return;
    this.#drawnMs = nowMs;
    this.#paint(lessMotion() ? 0 : (nowMs - this.#openedMs) / BAR_MS);
  }

  /** A word at the present moment, such as "cut". */
  mark(word) {
    const newest = this.#bars.at(-1);
    if (newest) newest.mark = word;
  }

  clear() {
    this.#bars = [];
    this.#openedMs = null;
    this.#paint(0);
  }

  #resize() {
    const { width, height } = this.#canvas.getBoundingClientRect();
    const density = devicePixelRatio || 1;
    this.#size = { width, height };
    this.#canvas.width = Math.round(width * density);
    this.#canvas.height = Math.round(height * density);
    this.#draw.setTransform(density, 0, 0, density, 0, 0);
    this.#paint(0);
  }

  #paint(fraction) {
    const { width, height } = this.#size;
    const ctx = this.#draw;
    const colors = (this.#colors ??= readColors(this.#canvas));
    const middle = height / 2;
    const reach = middle - LINE_PX / 2 - GAP_PX - 12; // 12 px of air for the marks
    ctx.clearRect(0, 0, width, height);
    const places = Math.ceil(width / STEP_PX) + 1;
    for (let back = 0; back < places; back += 1) {
      const bar = this.#bars[this.#bars.length - 1 - back];
      const x = width - (back + 1 + fraction) * STEP_PX;
      this.#paintLine(ctx, colors, bar?.floor, x, middle);
      this.#paintVoice(ctx, colors.you, bar?.user ?? 0, x, middle, -reach);
      this.#paintVoice(ctx, colors.agent, bar?.agent ?? 0, x, middle, reach);
      if (bar?.mark) {
        ctx.fillStyle = colors.ink;
        ctx.fillRect(x + STEP_PX, middle - reach * 0.72, 1, reach * 1.44);
        ctx.font = "600 10px system-ui, sans-serif";
        ctx.textAlign = x > width - 48 ? "right" : "center"; // whole from its first frame on
        ctx.fillText(bar.mark, x + STEP_PX, height - 2);
      }
    }
  }

  #paintVoice(ctx, color, level, x, middle, reach) {
    const rest = level < 0.06;
    const length = rest ? 1.5 : 3 + (Math.abs(reach) - 3) * Math.min(1, level ** 1.5 * 1.1);
    const from = middle + Math.sign(reach) * (LINE_PX / 2 + GAP_PX);
    ctx.globalAlpha = rest ? 0.3 : 1;
    ctx.fillStyle = color;
    ctx.beginPath();
    ctx.roundRect(x, reach < 0 ? from - length : from, BAR_PX, length, BAR_PX / 2);
    ctx.fill();
    ctx.globalAlpha = 1;
  }

  #paintLine(ctx, colors, floor, x, middle) {
    const y = middle - LINE_PX / 2;
    ctx.fillStyle = { listening: colors.you, yielding: colors.you, speaking: colors.agent, holding: colors.agent }[floor] ?? colors.rule;
    // Solid where somebody has the floor; dotted where it is being decided.
    const dotted = floor === "thinking" || floor === "holding" || floor === "yielding";
    if (floor === "thinking") ctx.fillStyle = colors.muted;
    ctx.fillRect(x, y, dotted ? STEP_PX * 0.5 : STEP_PX + 0.5, LINE_PX);
  }
}

/** The theme's colours as the browser resolves them, for the canvas. */
function readColors(canvas) {
  const probe = document.createElement("i");
  canvas.parentElement.append(probe);
  const read = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const colors = { you: read("you"), agent: read("agent"), ink: read("ink"), muted: read("muted"), rule: read("rule") };
  probe.remove();
  return colors;
}
