// Runs before the page is drawn: sets the theme, so that a dark page never flashes white, and loads the page's modules; the
// model first, where it runs in the browser.
// A browser loads no modules from file://, and there would be no server to ask; index.html then says what to do.

const darkSystem = matchMedia("(prefers-color-scheme: dark)");

// The theme that the user has chosen, or the system's.
function showTheme() {
  const dark = (localStorage.getItem("theme") ?? (darkSystem.matches ? "dark" : "light")) === "dark";
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.getElementById("theme")?.setAttribute("aria-pressed", dark);
}

// Changes the theme. Choosing what the system has anyway follows the system from then on.
function switchTheme() {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  if ((theme === "dark") === darkSystem.matches) localStorage.removeItem("theme");
  else localStorage.setItem("theme", theme);
  showTheme();
}

showTheme();
darkSystem.addEventListener("change", showTheme);
document.documentElement.dataset.opened = location.protocol === "file:" ? "file" : "server";
if (document.documentElement.dataset.model && location.protocol !== "file:") {
  import("./local.js").then(({ listModels }) => listModels()).catch(() => {}); // app.js asks again, and says what is wrong
}
addEventListener("DOMContentLoaded", () => {
  showTheme();
  document.getElementById("theme").addEventListener("click", switchTheme);
  if (location.protocol === "file:") return;
  const app = document.createElement("script");
  app.type = "module";
  app.src = "app.js";
  document.head.append(app);
});
