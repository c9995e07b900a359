// The key that the server may ask for (--api-key).

let apiKey = localStorage.getItem("api-key") ?? sessionStorage.getItem("api-key") ?? "";

// `remember`: also after the browser has been closed.
export function setApiKey(key, remember) {
  apiKey = key;
  for (const storage of [localStorage, sessionStorage]) storage.removeItem("api-key");
  if (key) (remember ? localStorage : sessionStorage).setItem("api-key", key);
}

export const getApiKey = () => ({ key: apiKey, remembered: localStorage.getItem("api-key") !== null });
