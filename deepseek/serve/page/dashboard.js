// The live dashboard: a few lines over the last minutes, from counts that the server keeps since its start.

import { askJson, show } from "./api.js";
import { $, h, s, short } from "./element.js";
import { onLanguage, t } from "./words.js";

const EVERY = 2000;
const KEPT = 150; // five minutes
const WINDOW = 5; // polls that percentiles are taken over
const WIDTH = 300, HEIGHT = 96;
const CHARTS = [ // title, unit, lines: [name, words]
  ["throughput", "perSecond", [["rate", "perSecond"], ["refused", "refusedRate"], ["limited", "limitedRate"]]],
  ["latency", "ms", [["p50", null], ["p99", null]]],
  ["queue", null, [["waiting", "waitingNow"], ["active", "activeNow"]]],
  ["tokens", "tokensPerSecond", [["tokens", "tokensPerSecond"]]],
  ["batch", "rows", [["batch", "rows"]]],
  ["memory", "mb", [["memory", "mb"]]],
  ["speech", null, [["streams", "streams"], ["factor", "realTime"]]],
];
let told = []; // what the server said, the oldest first
let points = []; // what is drawn
let timer = null;
let paused = false;

/** Show the dashboard and begin to ask; it goes on while the page is open, so that the lines have no gaps. */
export function showDashboard() {
  draw();
  if (timer === null) {
    timer = setInterval(poll, EVERY);
    poll();
  }
}

async function poll() {
  if (paused || document.hidden) return;
  try {
    const now = await askJson("/page/numbers");
    if (told.length && told.at(-1).process !== now.process) told = []; // another process: other counts
    told = [...told, now].slice(-WINDOW - 1);
    points = [...points, point()].slice(-KEPT);
    if (!$("dashboard").hidden) show("");
  } catch (error) {
    points = [...points, {}].slice(-KEPT);
    if (!$("dashboard").hidden) show(error.shown);
  }
  if (!$("dashboard").hidden) draw();
}

const heard = (numbers) => numbers.speech.audio_seconds;
const sum = (numbers, name) => Object.values(numbers.models).reduce((all, one) => all + (one[name] ?? 0), 0);

function point() {
  const now = told.at(-1), before = told.at(-2);
  const here = {
    waiting: sum(now, "waiting"), active: sum(now, "active"),
    memory: now.memory_bytes === null ? null : now.memory_bytes / 2 ** 20,
  };
  if (!before) return here;
  const seconds = now.time - before.time;
  const more = (read) => Math.max(0, read(now) - read(before)) / seconds;
  const status = (kinds) => (numbers) => kinds.reduce((all, kind) => all + (numbers.requests.statuses[kind] ?? 0), 0);
  const runs = sum(now, "runs") - sum(before, "runs");
  const texts = Math.max(0, ...Object.values(now.models).filter((one) => one.active && one.batch).map((one) => one.batch));
  return {
    ...here,
    rate: more(status(["2xx"])), refused: more(status(["4xx", "5xx"])),
    limited: more((numbers) => numbers.requests.limited),
    tokens: more((numbers) => sum(numbers, "tokens")),
    batch: runs > 0 ? (sum(now, "rows") - sum(before, "rows")) / runs : texts,
    streams: now.speech.open,
    factor: heard(now) > heard(before) ? (now.speech.busy_seconds - before.speech.busy_seconds) / (heard(now) - heard(before)) : null,
    p50: quantile(0.5), p99: quantile(0.99),
  };
}

/** Milliseconds below which this share of the window's requests stayed, by the histogram's buckets; null without any. */
function quantile(share) {
  const first = new Map(told[0].requests.seconds.map(([bound, count]) => [bound, count]));
  const counts = told.at(-1).requests.seconds.map(([bound, count]) => [bound, count - (first.get(bound) ?? 0)]);
  const all = counts.at(-1)?.[1] ?? 0;
  if (all <= 0) return null;
  const wanted = share * all;
  let lower = 0, below = 0;
  for (const [bound, count] of counts) {
    if (count >= wanted) {
      if (bound === null) return lower * 1000;
      return 1000 * (lower + ((bound - lower) * (wanted - below)) / Math.max(1e-9, count - below));
    }
    [lower, below] = [bound, count];
  }
  return lower * 1000;
}

function draw() {
  if (!$("charts")) build();
  for (const [title, unit, lines] of CHARTS) $(`chart-${title}`).replaceChildren(...chart(title, unit, lines));
  $("chart-speech").hidden = !told.length || !heard(told.at(-1)); // most servers have no such model
  drawModels();
}

function build() {
  const pause = h("button", { type: "button", class: "quiet", id: "pause", text: "pause", on: { click: () => {
    paused = !paused;
    pause.dataset.text = paused ? "resume" : "pause";
    pause.textContent = t(pause.dataset.text);
  } } });
  $("dashboard").replaceChildren(
    h("div", { class: "line spread" }, h("p", { class: "soft", text: "dashboardHelp" }), pause),
    h("div", { id: "charts" }, ...CHARTS.map(([title]) => h("section", { class: "card chart", id: `chart-${title}` }))),
    h("section", { class: "card", id: "models" }));
}

function chart(title, unit, lines) {
  const most = Math.max(...points.flatMap((one) => lines.map(([name]) => one[name] ?? 0)), 0);
  const top = nice(most);
  const last = points.at(-1) ?? {};
  const plot = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  for (const part of [0.5, 1]) plot.append(s("line", { class: "rule", x1: 0, x2: WIDTH, y1: y(top * part, top), y2: y(top * part, top) }));
  lines.forEach(([name], index) => {
    for (const run of runs(name)) plot.append(s("polyline", { class: `line-${index}`, points: run.map(([x, value]) => `${x.toFixed(1)},${y(value, top).toFixed(1)}`).join(" ") }));
  });
  const keys = lines.map(([name, words], index) => h("li", { class: `key-${index}` },
    h("b", { id: `now-${name}` }, shown(last[name])), ` ${words ? t(words) : `${name} ${t("ms")}`}`));
  return [h("h2", { text: title }), h("ul", { class: "keys" }, ...keys),
    h("div", { class: "plot" }, h("span", { class: "top" }, `${short(top)}${unit === "ms" || unit === "mb" ? ` ${t(unit)}` : ""}`), plot),
    h("div", { class: "line spread axis" }, h("span", { text: "lastMinutes" }), h("span", { text: points.length < 2 ? "collecting" : "now" }))];
}

const shown = (value) => (value === null || value === undefined ? "–" : value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : String(Number(value.toFixed(2))));

const y = (value, top) => HEIGHT - 2 - ((HEIGHT - 4) * value) / top;

/** The pieces of a line without gaps; the newest point stands at the right edge. */
function runs(name) {
  const found = [];
  let open = false;
  points.forEach((one, place) => {
    const value = one[name];
    if (value === null || value === undefined) { open = false; return; }
    if (!open) found.push([]);
    open = true;
    found.at(-1).push([WIDTH - ((points.length - 1 - place) * WIDTH) / (KEPT - 1), value]);
  });
  return found.map((run) => (run.length === 1 ? [run[0], [Math.min(WIDTH, run[0][0] + 1), run[0][1]]] : run));
}

/** The next of 1, 2, 5, 10, ... from `value` up. */
function nice(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((one) => one * power).find((one) => one >= value);
}

function drawModels() {
  const models = Object.entries(told.at(-1)?.models ?? {});
  const heads = ["model", "version", "kindColumn", "state", "answered", "waitingColumn"];
  const cells = models.map(([name, one]) => [name, one.version, one.kind === "text" ? t("textModel") : "tensor",
    t("states")[one.state] ?? one.state, one.finished ?? "–", one.waiting ?? "–"]);
  $("models").replaceChildren(h("h2", { text: "models" }), h("div", { class: "scroll", tabIndex: 0 }, h("table", {},
    h("thead", {}, h("tr", {}, ...heads.map((head) => h("th", { scope: "col", text: head })))),
    h("tbody", {}, ...cells.map((row) => h("tr", {}, ...row.map((cell) => h("td", {}, String(cell)))))))));
}

onLanguage(() => { if ($("charts")) draw(); });
