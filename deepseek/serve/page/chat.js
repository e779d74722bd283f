// Language models: continuing a text and conversation, streamed, with stop; and the settings of sampling.

import { ask, events, postJson, Refused, show, wordsFor } from "./api.js";
import { showCommand } from "./command.js";
import { $, h, select, tabs } from "./element.js";
import { onLanguage, t } from "./words.js";

const SLIDERS = [ // name, smallest, largest, step, value
  ["temperature", 0, 2, 0.05, 1], ["top_p", 0.05, 1, 0.05, 1], ["top_k", 0, 200, 1, 0],
  ["repetition_penalty", 1, 2, 0.05, 1], ["max_tokens", 0, 1024, 8, 0],
];
let mode = "text";
let turns = [];
let running = null;
let model = null;

/** Show a language model on the stage. */
export function showChat(chosen) {
  running?.abort();
  model = chosen;
  turns = [];
  $("stage").replaceChildren(
    h("section", { class: "card chat" },
      h("div", { class: "tabs", role: "tablist", label: "mode" },
        h("button", { type: "button", role: "tab", id: "tab-text", text: "text", "aria-controls": "log" }),
        h("button", { type: "button", role: "tab", id: "tab-chat", text: "chat", "aria-controls": "log" }),
        h("button", { type: "button", id: "new", class: "quiet end", text: "clear", on: { click: clear } })),
      h("div", { class: "log", id: "log", role: "tabpanel", tabIndex: 0, "aria-live": "polite", "aria-busy": "false" }),
      h("p", { class: "numbers", id: "numbers", role: "status" }),
      h("form", { class: "ask", id: "ask", on: { submit: (event) => { event.preventDefault(); send(); } } },
        h("label", { class: "hidden-label", for: "prompt", text: "prompt" }),
        h("textarea", { id: "prompt", rows: 3, spellcheck: false, on: { keydown: byKey, input: command } }),
        h("button", { id: "send", class: "main", type: "submit", text: "send" }),
        h("button", { id: "stop", class: "stop", type: "button", text: "stop", hidden: true, on: { click: () => running?.abort() } }))));
  $("settings-body").replaceChildren(...settings());
  $("settings").hidden = false;
  tabs(modeTabs(), (item) => setMode(item.id.slice(4)));
  const longest = $("max_tokens");
  longest.max = Math.max(8, Math.min(4096, model.max_length - (model.max_length % 8)));
  for (const [name] of SLIDERS) $(name).dispatchEvent(new Event("input"));
  drawMode();
}

const modeTabs = () => [$("tab-text"), $("tab-chat")];

function settings() {
  const sliders = SLIDERS.map(([name, min, max, step, value]) => {
    const output = h("output", { id: `${name}-value`, for: name });
    const input = h("input", { id: name, type: "range", min, max, step, "aria-describedby": `${name}-help` });
    input.value = value;
    input.addEventListener("input", () => { output.value = shownValue(name, Number(input.value)); command(); });
    return h("div", { class: "setting" },
      h("div", { class: "line spread" }, h("label", { for: name, text: name }), output),
      input, h("small", { id: `${name}-help`, text: `${name}Help` }));
  });
  const texts = [["system", {}], ["stops", {}], ["seed", { inputMode: "numeric", hint: "seedHint" }]].map(([name, more]) =>
    h("div", { class: "setting", id: `${name}-box` }, h("label", { for: name, text: name }),
      h("input", { id: name, type: "text", autocomplete: "off", ...more, on: { input: command } })));
  return [...sliders, ...texts];
}

function shownValue(name, value) {
  if (name === "max_tokens" && !value) return t("auto");
  if ((name === "top_k" && !value) || (name === "top_p" && value === 1)) return t("off");
  return String(value);
}

function byKey(event) {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && (mode === "chat" || event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    send();
  }
}

function setMode(next) {
  if (running || next === mode) return;
  mode = next;
  turns = [];
  $("numbers").textContent = "";
  show("");
  drawMode();
}

function drawMode() {
  select(modeTabs(), $(`tab-${mode}`));
  $("log").setAttribute("aria-labelledby", `tab-${mode}`);
  $("system-box").hidden = mode !== "chat";
  $("prompt").placeholder = t(mode === "chat" ? "emptyChat" : "emptyText");
  if (!running) drawLog();
  command();
}

function drawLog() {
  $("log").replaceChildren(...(turns.length ? [] : [h("p", { class: "empty", text: mode === "chat" ? "emptyChat" : "emptyText" })]));
  for (const turn of turns) addTurn(turn.role, turn.content);
}

function addTurn(role, content) {
  const log = $("log");
  if (log.querySelector(".empty")) log.replaceChildren();
  const text = h("span", { textContent: content });
  const name = { user: "you", assistant: "answer" }[role];
  log.append(h("div", { class: `turn ${role}` }, name ? h("b", { text: name }) : null, text));
  log.scrollTop = log.scrollHeight;
  return text;
}

function request() {
  const body = { model: model.name, ...(model.asked ? { version: model.asked } : {}) };
  const prompt = $("prompt").value;
  if (mode === "chat") {
    const system = $("system").value.trim();
    const said = prompt || !turns.length ? [...turns, { role: "user", content: prompt }] : turns.slice(0, -1);
    body.messages = [...(system ? [{ role: "system", content: system }] : []), ...said];
  } else {
    body.prompt = prompt;
  }
  for (const [name] of SLIDERS) body[name] = Number($(name).value);
  if (!body.max_tokens) delete body.max_tokens;
  if ($("stops").value) body.stop = [$("stops").value];
  if ($("seed").value.trim()) body.seed = Number($("seed").value.trim());
  body.stream = true;
  body.stream_options = { include_usage: true };
  return body;
}

const path = () => (mode === "chat" ? "/v1/chat/completions" : "/v1/completions");

function command() {
  if (!$("log") || !$("seed")) return;
  const json = request();
  delete json.stream_options;
  showCommand({ path: path(), json, stream: true });
}

async function readAnswer(response, target, clock) {
  let text = "", reason = "";
  for await (const chunk of events(response)) {
    if (chunk.error) throw new Refused(wordsFor(500, chunk.error));
    if (chunk.usage) clock.tokens = chunk.usage.completion_tokens;
    const choice = chunk.choices[0];
    if (!choice) continue;
    const piece = mode === "chat" ? choice.delta.content || "" : choice.text;
    reason = choice.finish_reason || reason;
    if (piece) {
      clock.first ??= performance.now();
      clock.last = performance.now();
      clock.tokens += 1;
      text += piece;
      const log = $("log"), follow = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
      target.textContent = text;
      if (follow) log.scrollTop = log.scrollHeight;
    }
    showNumbers(clock);
  }
  clock.note = reason === "length" ? t("cut") : "";
}

function showNumbers(clock) {
  if (clock.first === null) { $("numbers").textContent = clock.note || t("waiting"); return; }
  const seconds = (clock.last - clock.first) / 1000;
  const rate = clock.tokens > 1 && seconds > 0 ? ((clock.tokens - 1) / seconds).toFixed(1) : "–";
  const line = t("numbers")((clock.first - clock.start).toFixed(0), clock.tokens, rate);
  $("numbers").textContent = clock.note ? `${line} · ${clock.note}` : line;
}

function setRunning(control) {
  running = control;
  $("send").hidden = Boolean(control);
  $("stop").hidden = !control;
  $("log").setAttribute("aria-busy", String(Boolean(control)));
  for (const id of ["tab-text", "tab-chat", "new", "model", "version", "language"]) $(id).disabled = Boolean(control);
  if (control) $("stop").focus({ preventScroll: true });
}

function clear() {
  turns = [];
  $("numbers").textContent = "";
  show("");
  drawLog();
  command();
}

async function send() {
  const prompt = $("prompt").value;
  if (running || (mode === "chat" && !prompt.trim())) return;
  show("");
  const seed = $("seed").value.trim();
  if (seed && !/^\d{1,15}$/.test(seed)) { show(t("badSeed")); return; }
  const body = request();
  if (mode === "text") { turns = []; $("log").replaceChildren(); }
  const asked = addTurn(mode === "chat" ? "user" : "given", prompt);
  const target = addTurn(mode === "chat" ? "assistant" : "continued", "");
  target.classList.add("busy");
  const clock = { start: performance.now(), first: null, last: null, tokens: 0, note: "" };
  const control = new AbortController();
  setRunning(control);
  showNumbers(clock);
  let kept = true;
  try {
    await readAnswer(await ask(path(), postJson(body, { signal: control.signal })), target, clock);
  } catch (error) {
    if (error.name === "AbortError") clock.note = t("stopped");
    else { show(error.shown || t("unreachable")); kept = Boolean(target.textContent); }
  } finally {
    target.classList.remove("busy");
    setRunning(null);
  }
  if (clock.first === null && !clock.note) $("numbers").textContent = ""; else showNumbers(clock);
  keep(kept, prompt, asked, target);
  command();
  $("prompt").focus({ preventScroll: true });
}

function keep(kept, prompt, asked, target) {
  if (kept) {
    const [mine, theirs] = mode === "chat" ? ["user", "assistant"] : ["given", "continued"];
    turns.push({ role: mine, content: prompt }, { role: theirs, content: target.textContent });
    if (mode === "chat") $("prompt").value = "";
  } else {
    asked.parentElement.remove();
    target.parentElement.remove();
    if (!$("log").children.length) drawLog();
  }
}

onLanguage(() => {
  if (!$("log")) return;
  for (const [name] of SLIDERS) $(name).dispatchEvent(new Event("input"));
  drawMode();
});
