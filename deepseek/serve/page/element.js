// Making elements. Texts that people read are named (text, label, hint) so that they follow the language; texts that
// come from a model or the server are set as plain text. Nothing is ever parsed as HTML.

import { setWords } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

/** Return a new element: `props` are properties, or data-* names for words; `children` elements and strings. */
export function h(tag, props = {}, ...children) {
  const item = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "text" || name === "label" || name === "hint") item.dataset[name] = value;
    else if (name === "class") item.className = value;
    else if (name === "on") for (const [event, handler] of Object.entries(value)) item.addEventListener(event, handler);
    else if (name.includes("-") || name === "role" || name === "for") item.setAttribute(name, value);
    else item[name] = value;
  }
  setWords(item);
  item.append(...children.filter((child) => child !== null));
  return item;
}

/** Return a new SVG element with attributes. */
export function s(tag, attributes = {}, ...children) {
  const item = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) item.setAttribute(name, String(value));
  item.append(...children);
  return item;
}

/** Let arrow keys move between the tabs of a list; `chosen` is called with the tab. */
export function tabs(items, chosen) {
  items.forEach((item, place) => {
    item.addEventListener("click", () => chosen(item));
    item.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      const next = items[(place + step + items.length) % items.length];
      chosen(next);
      next.focus();
    });
  });
}

export function select(items, item) {
  for (const one of items) {
    one.setAttribute("aria-selected", String(one === item));
    one.tabIndex = one === item ? 0 : -1;
  }
}

/** A number in few digits. */
export function short(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e6 || size < 1e-3)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}
