// Runs before the page is drawn: sets the theme, so that a dark page never flashes white, and loads the page's modules; the
// model first, where it runs in the browser.
// A browser loads no modules from file://, and there would be no server to ask; index.html then says what to do.

// What the browser keeps for this page, by name; the page's modules use it, too. Where the user lets no page keep anything, even
// touching its storage throws: then nothing is kept, and null is read. `storage`: sessionStorage forgets when the tab is closed.
globalThis.pageStorage = {
  get(name, storage = "localStorage") {
    try {
      return globalThis[storage].getItem(name);
    } catch {
      return null;
    }
  },
  set(name, value, storage = "localStorage") { // null: removes it
    try {
      if (value === null) globalThis[storage].removeItem(name);
      else globalThis[storage].setItem(name, value);
    } catch {
      // The page goes on without.
    }
  },
};

const darkSystem = matchMedia("(prefers-color-scheme: dark)");

let chosenTheme = pageStorage.get("theme"); // "dark", "light", or null: the system's

function showTheme() {
  const dark = (chosenTheme ?? (darkSystem.matches ? "dark" : "light")) === "dark";
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.getElementById("theme")?.setAttribute("aria-pressed", dark);
}

// Changes the theme. Choosing what the system has anyway follows the system from then on.
function switchTheme() {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  chosenTheme = (theme === "dark") === darkSystem.matches ? null : theme;
  pageStorage.set("theme", chosenTheme);
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
