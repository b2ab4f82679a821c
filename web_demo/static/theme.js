// Auto, light or dark. A classic script in <head>, so that a remembered choice is there before the first paint.
(() => {
  const ORDER = ["auto", "light", "dark"];
  const KEY = "duplex.theme";

  function remembered() {
    try {
      const theme = localStorage.getItem(KEY);
      return ORDER.includes(theme) ? theme : "auto";
    } catch {
      return "auto"; // storage is blocked: nothing to remember
    }
  }

  function apply(theme) {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // storage is blocked: the choice lasts until reload
    }
    document.dispatchEvent(new Event("themechange"));
  }

  let theme = remembered();
  apply(theme);
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const label = () => {
      button.textContent = theme[0].toUpperCase() + theme.slice(1);
      button.setAttribute("aria-label", `Theme: ${theme}`);
    };
    label();
    button.addEventListener("click", () => {
      theme = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length];
      apply(theme);
      label();
    });
  });
})();
