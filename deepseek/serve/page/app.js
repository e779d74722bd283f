// The whole page: which models there are, which is shown and how, and which of the two pages is open.

import { askJson, show } from "./api.js";
import { showChat } from "./chat.js";
import { startCommand } from "./command.js";
import { showDashboard } from "./dashboard.js";
import { $, h } from "./element.js";
import { showForm } from "./form.js";
import { onLanguage, speak, switchLanguage, t } from "./words.js";

let models = [];
let described = null;
let asking = 0;

async function loadModels() {
  try {
    models = (await askJson("/page/models")).models.filter((one) => one.kind !== null);
    const before = $("model").value;
    $("model").replaceChildren(...models.map(({ name }) => new Option(name, name)));
    if (models.some(({ name }) => name === before)) $("model").value = before;
    show("");
    if (!models.length) { show(t("noModels")); return; }
    await chooseModel();
  } catch (error) { show(error.shown ?? String(error)); }
}

async function chooseModel() {
  const { versions } = models.find(({ name }) => name === $("model").value);
  const ready = versions.filter(({ state }) => state === "ready");
  $("version").replaceChildren(h("option", { value: "", text: "anyVersion" }), ...ready.map(({ version }) => new Option(version, version)));
  $("version-box").hidden = ready.length < 2;
  await describe();
}

/** Ask what the model takes, and show it; an answer that comes after another choice is dropped. */
async function describe() {
  const name = $("model").value, version = $("version").value;
  const number = ++asking;
  show("");
  try {
    const path = encodeURIComponent(name);
    const told = await askJson(`/page/model?${new URLSearchParams({ name, ...(version ? { version } : {}) })}`);
    if (number !== asking) return;
    described = { ...told, ...(version ? { asked: version } : {}) };
    if (told.kind === "text") showChat(described);
    else showForm(described, `/v1/models/${path}${version ? `/versions/${encodeURIComponent(version)}` : ""}`);
    tellKind();
  } catch (error) {
    if (number === asking) show(error.shown ?? String(error));
  }
}

function tellKind() {
  if (described === null) return;
  $("kind").textContent = described.kind === "text" ? t("textModel") : `${t("takes")[described.takes]} → ${t("gives")[described.gives]}`;
}

function openPage() {
  const dashboard = location.hash === "#dashboard" || (location.pathname === "/dashboard" && location.hash !== "#try");
  for (const [name, open] of [["try", !dashboard], ["dashboard", dashboard]]) {
    $(name).hidden = !open;
    if (open) $(`nav-${name}`).setAttribute("aria-current", "page"); else $(`nav-${name}`).removeAttribute("aria-current");
  }
  if (dashboard) showDashboard();
}

if (matchMedia("(max-width: 760px)").matches) $("settings").open = false;
$("model").addEventListener("change", () => chooseModel());
$("version").addEventListener("change", describe);
$("key-box").addEventListener("submit", (event) => { event.preventDefault(); loadModels(); });
$("key").addEventListener("change", loadModels);
$("language").addEventListener("click", switchLanguage);
for (const name of ["try", "dashboard"]) {
  $(`nav-${name}`).addEventListener("click", (event) => {
    event.preventDefault();
    history.pushState(null, "", `/#${name}`);
    openPage();
  });
}
addEventListener("hashchange", openPage);
addEventListener("popstate", openPage);
onLanguage(tellKind);
startCommand();
speak();
openPage();
loadModels();
