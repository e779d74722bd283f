// A row of a table as a form made from the schema: a field for each column, with what the training data looked like.

import { h } from "./element.js";

/** The schema of the content itself: an instance may also be written with options around it. */
function plain(described) {
  const all = described.schema.anyOf || [described.schema];
  return all.find((one) => one.properties && !one.properties[described.takes]) || all.find((one) => one.properties) || {};
}

const types = (schema) => [schema.type ?? "string"].flat();

/** A row, or the class of a picture to make. */
export function rowInput(described, changed) {
  const schema = plain(described);
  const fields = Object.entries(schema.properties || {}).map(([name, one], place) => field(name, one, place, changed));
  const needed = new Set(schema.required || []);
  return {
    element: h("fieldset", { class: "row" }, h("legend", { text: described.takes }),
      h("div", { class: "grid" }, ...fields.map(({ element }) => element))),
    instance: () => {
      const pairs = fields.map(({ name, value }) => [name, value()]);
      return { json: Object.fromEntries(pairs.filter(([name, value]) => value !== undefined && (needed.has(name) || (value !== null && value !== "")))) };
    },
    example: (instance) => {
      for (const { name, fill } of fields) fill(instance && typeof instance === "object" ? instance[name] : undefined);
    },
  };
}

function field(name, schema, place, changed) {
  const kinds = types(schema);
  const numeric = !kinds.includes("string");
  const id = `field-${place}`;
  const input = schema.enum
    ? h("select", { id }, ...schema.enum.map((one) => h("option", { value: one, textContent: one })))
    : h("input", { id, type: "text", autocomplete: "off", spellcheck: false, inputMode: numeric ? "decimal" : "text",
      ...(kinds.includes("null") ? { hint: "rowMissing" } : {}) });
  input.addEventListener("input", changed);
  const fill = (value) => { input.value = value === undefined || value === null ? "" : String(value); };
  const value = () => {
    const text = input.value.trim();
    if (text === "") return kinds.includes("null") ? null : kinds.includes("string") ? "" : undefined;
    const number = Number(text);
    const isNumber = Number.isFinite(number) && (numeric || (kinds.includes("number") && typeof filled === "number"));
    return isNumber ? number : text;
  };
  let filled;
  return {
    name, value,
    fill: (one) => { filled = one; fill(one); },
    element: h("div", { class: "field" }, h("label", { for: id, textContent: name }), input),
  };
}
