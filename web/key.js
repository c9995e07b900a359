// The key that the server may ask for (--api-key).

const { get, set } = globalThis.pageStorage;

let apiKey = get("api-key") ?? get("api-key", "sessionStorage") ?? "";

// `remember`: also after the browser has been closed.
export function setApiKey(key, remember) {
  apiKey = key;
  set("api-key", key && remember ? key : null);
  set("api-key", key && !remember ? key : null, "sessionStorage");
}

export const getApiKey = () => ({ key: apiKey, remembered: get("api-key") !== null });
