// Models that answer instances: the input that fits what a model takes, one button, and the answer drawn by its kind.

import { ask, Refused, show } from "./api.js";
import { audioInput } from "./audio.js";
import { showCommand } from "./command.js";
import { draw } from "./draw.js";
import { $, h } from "./element.js";
import { fileInput, imageInput } from "./image.js";
import { rowInput } from "./row.js";
import { stopListening } from "./stream.js";
import { jsonInput, textInput } from "./tensors.js";
import { onLanguage, t } from "./words.js";

const INPUTS = {
  image: imageInput, audio: audioInput, row: rowInput, label: rowInput, text: textInput,
  volume: (described, changed) => fileInput(described, changed, { name: "volume", help: "volumeHelp", accept: ".npy,.nii,.gz" }),
};
let input = null;
let described = null;
let path = "";
let last = null; // the last answer, drawn again when the language changes
let running = false;

/** Show a model on the stage; `told` is what the server says of it, `where` its path. */
export function showForm(told, where) {
  stopListening();
  described = told;
  path = `${where}:predict`;
  last = null;
  running = false;
  $("settings").hidden = true;
  input = (INPUTS[told.takes] || jsonInput)(told, command);
  $("stage").replaceChildren(
    h("form", { class: "card input", id: "ask", on: { submit: (event) => { event.preventDefault(); run(); } } },
      input.element,
      h("div", { class: "line actions" },
        h("button", { class: "main", id: "run", type: "submit", text: "run" }),
        h("button", { class: "quiet", id: "example", type: "button", text: "example", on: { click: useExample } }))),
    h("section", { class: "card result", id: "result", "aria-live": "polite" },
      h("p", { class: "empty", text: "notYet" })));
  input.example(told.example, true);
  command();
}

function useExample() {
  input.example(described.example, false);
  show("");
  command();
}

function command() {
  if (input === null) return;
  let sent;
  try { sent = input.instance(); } catch { return; }
  if (sent?.file) showCommand({ path, file: sent.name });
  else showCommand({ path, json: { instances: [sent ? sent.json : described.example] } });
}

function setRunning(now) {
  running = now;
  $("run").disabled = now;
  $("run").dataset.text = now ? "running" : "run";
  $("run").textContent = t($("run").dataset.text);
  $("result").setAttribute("aria-busy", String(now));
}

async function run() {
  if (running) return;
  show("");
  const model = described;
  try {
    const sent = input.instance();
    if (sent === null) throw new Refused(t("nothingChosen"));
    setRunning(true);
    const start = performance.now();
    const response = await ask(path, {
      method: "POST",
      body: sent.file || JSON.stringify({ instances: [sent.json] }),
      headers: { "Content-Type": sent.file ? "application/octet-stream" : "application/json" },
    });
    const answer = await response.json();
    if (model !== described) return;
    last = { answer, picture: sent.picture, ms: (performance.now() - start).toFixed(0) };
    drawLast();
  } catch (error) {
    show(error.shown || String(error.message || error));
  } finally {
    if (model === described) setRunning(false);
  }
}

function drawLast() {
  const prediction = last.answer.predictions[0];
  $("result").replaceChildren(
    h("div", { class: "line spread" },
      h("h2", { text: "result" }),
      h("p", { class: "numbers", id: "numbers", textContent: `${t("took")(last.ms)} · ${last.answer.model} ${last.answer.version}` })),
    draw(described.gives, prediction, last.picture),
    h("details", { class: "raw" }, h("summary", { text: "raw" }), h("pre", { tabIndex: 0, textContent: shortened(prediction) })));
}

/** The answer as JSON, long texts (files in base64) cut. */
function shortened(value) {
  const cut = (key, one) => (typeof one === "string" && one.length > 200 ? `${one.slice(0, 100)}… (${one.length})` : one);
  const text = JSON.stringify(value, cut, 1);
  return text.length > 20_000 ? `${text.slice(0, 20_000)}…` : text;
}

onLanguage(() => { if (last && $("result")) drawLast(); });
