// The few things every module needs from the document.

/** The element with this id. A missing one is a mistake in the page, so it says which. */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html has no element #${id}`);
  return element;
}

/** An element with a class and text: make("li", "turn", "hello"). */
export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

const motionQuery = matchMedia("(prefers-reduced-motion: reduce)");

/** True when the person asked their system for less motion. */
export const lessMotion = () => motionQuery.matches;

/** "412 ms", "1.24 s", "–". */
export function milliseconds(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  return Math.abs(value) < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(2)} s`;
}
