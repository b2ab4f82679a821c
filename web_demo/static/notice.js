// The card that says what is wrong and what to do. Its words are announced; its countdown is not.

import { byId, make } from "./dom.js";

const PASSING_MS = 6000;

export class Notice {
  #card = byId("notice");
  #shown = null;
  #line = null;
  #timer = 0;

  /** A quiet line under the card's place that goes by itself: nothing is to be done about it. */
  pass(text) {
    if (!this.#line) {
      this.#line = make("p", "countdown passing");
      this.#line.setAttribute("role", "status");
      this.#card.after(this.#line);
    }
    this.#line.textContent = text;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#line.remove();
      this.#line = null;
    }, PASSING_MS);
  }

  /** Show a problem, or a plain {title, text, steps}. `actions` are [label, callback] pairs, the first the main one. */
  show(problem, actions = [], countdown = "") {
    const same = `${problem.title}|${problem.text}|${actions.map(([label]) => label)}`;
    if (same !== this.#shown) {
      this.#shown = same;
      byId("notice-title").textContent = problem.title;
      byId("notice-text").textContent = problem.text;
      byId("notice-text").hidden = !problem.text;
      byId("notice-steps").replaceChildren(...(problem.steps ?? []).map((step) => stepItem(step)));
      byId("notice-actions").replaceChildren(
        ...actions.map(([label, act], i) => {
          const button = make("button", i ? "plain" : "main", label);
          button.type = "button";
          button.addEventListener("click", act);
          return button;
        }),
      );
    }
    this.#card.dataset.calm = String(Boolean(countdown));
    byId("notice-countdown").textContent = countdown;
    byId("notice-countdown").hidden = !countdown;
    this.#card.hidden = false;
  }

  hide() {
    // A button that is about to go must not take the keyboard's place on the page with it.
    if (this.#card.contains(document.activeElement)) byId("talk").focus();
    this.#shown = null;
    this.#card.hidden = true;
  }
}

/** Commands and addresses in a step are set as code, so that they can be copied as they are. */
function stepItem(step) {
  const item = make("li");
  const parts = step.split(/(ssh -L \S+ \S+|https?:\/\/[^\s,]+|duplex-serve)/);
  parts.forEach((part, i) => part && item.append(i % 2 ? make("code", "", part) : part));
  return item;
}
