// The form with model, task and method. What the user chose is kept in the browser.

const form = document.getElementById("options");

const methods = {
  greedy: "Takes the likeliest token each time. The fastest, and always the same.",
  sample: "Draws each token at random, as the model's probabilities say.",
  beam: "Follows several beginnings at once and keeps the likeliest program.",
  candidates: document.documentElement.dataset.model
    ? "Samples several programs and keeps the likeliest."
    : "Samples several programs and keeps the one that compiles and is most like the image.",
  search: "Tree search for a figure: TeX draws each attempt, and what is like the image is followed further.",
};

const keptOptions = () => JSON.parse(globalThis.pageStorage.get("options") ?? "{}");

// Shows the user's last choices.
export function startOptions() {
  const kept = keptOptions();
  for (const [name, value] of Object.entries(kept)) {
    const field = form.elements[name];
    if (!field || name === "model") continue; // models are listed later
    field.value = value;
  }
  form.addEventListener("change", () => {
    globalThis.pageStorage.set("options", JSON.stringify(Object.fromEntries(new FormData(form))));
    showMethod();
  });
  showMethod();
}

// models: as the server lists them.
export function offerModels(models) {
  const choice = form.elements.model, kept = keptOptions().model;
  choice.replaceChildren(choice.options[0], ...models.map(({ id, task }) => {
    const option = document.createElement("option");
    option.value = id;
    option.textContent = task ? `${id} (${task === "formula" ? "formulas" : "figures"})` : id;
    return option;
  }));
  if (models.some(({ id }) => id === kept)) choice.value = kept;
}

// What to send with an image: the fields of POST /v1/convert. null: a field is not valid, and the browser has said so.
export function readOptions() {
  if (!form.reportValidity()) return null;
  const { model, task, method, ...values } = Object.fromEntries(new FormData(form));
  const options = { task, ...(model && { model }) };
  const { temperature, seed } = values;
  if (method === "sample") return { ...options, temperature, seed };
  if (method === "beam") return { ...options, beam: values.beam };
  if (method === "candidates") return { ...options, candidates: values.candidates, temperature, seed };
  if (method === "search") return { ...options, search: `${values.search}s`, temperature, seed };
  return { ...options, temperature: 0 };
}

// Only the fields of the chosen method are shown, and sent.
function showMethod() {
  const method = form.elements.method.value;
  document.getElementById("method-text").textContent = methods[method];
  for (const field of document.querySelectorAll("#fields > label")) {
    field.hidden = !field.dataset.methods.split(" ").includes(method);
    field.querySelector("input").disabled = field.hidden;
  }
  document.getElementById("fields").hidden = method === "greedy";
}
