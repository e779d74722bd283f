// Instances as JSON, and plain texts.

import { Refused } from "./api.js";
import { h } from "./element.js";
import { t } from "./words.js";

const MOST = 200_000;

/** Tensors, atoms, lists to compare: the instance as JSON. One too long to show is sent from here without being shown. */
export function jsonInput(described, changed) {
  let hidden = null;
  const area = h("textarea", { id: "json", rows: 12, spellcheck: false, class: "mono" });
  const note = h("p", { class: "soft", text: "tooBig", hidden: true });
  area.addEventListener("input", () => { hidden = null; note.hidden = true; changed(); });
  return {
    element: h("div", { class: "field" }, h("label", { for: "json", text: "tensors" }), area, note),
    instance: () => {
      if (hidden !== null) return { json: hidden };
      try {
        return { json: JSON.parse(area.value) };
      } catch (error) {
        throw new Refused(`${t("badJson")} ${error.message}`);
      }
    },
    example: (instance) => {
      const text = pretty(instance);
      hidden = text.length > MOST ? instance : null;
      note.hidden = hidden === null;
      area.value = hidden === null ? text : "";
    },
  };
}

/** A text. */
export function textInput(described, changed) {
  const area = h("textarea", { id: "text", rows: 5, spellcheck: false, on: { input: changed } });
  return {
    element: h("div", { class: "field" }, h("label", { for: "text", text: "typed" }), area),
    instance: () => ({ json: area.value }),
    example: (instance) => { area.value = typeof instance === "string" ? instance : instance?.text ?? ""; },
  };
}

/** JSON with innermost lists on one line. */
function pretty(value) {
  return JSON.stringify(value, null, 2).replace(/\[[^[\]{}]*\]/g, (list) => list.replace(/\s+/g, " ").replace("[ ", "[").replace(" ]", "]"));
}
