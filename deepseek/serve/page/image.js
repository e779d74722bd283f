// Files as input: chosen, dropped or pasted; pictures are shown.

import { h } from "./element.js";

/** Bytes in base64 as a file. */
export function decoded(text, type) {
  const binary = atob(text);
  return new Blob([Uint8Array.from(binary, (one) => one.charCodeAt(0))], { type });
}

/** An input that sends one file as it is. `shown` is called with the file. */
export function fileInput(described, changed, { name, help, accept, type = "", shown = () => null, more = [] }) {
  let file = null;
  const told = h("span", { class: "soft", id: "file-name" });
  const choose = h("input", { id: "file", type: "file", accept, class: "hidden-label", label: name });
  const preview = h("div", { class: "preview" });
  function take(next, title) {
    if (!next) return;
    file = next;
    told.textContent = `${title} · ${size(next.size)}`;
    preview.replaceChildren(...[shown(next)].filter(Boolean));
    changed();
  }
  choose.addEventListener("change", () => take(choose.files[0], choose.files[0]?.name));
  const zone = h("div", { class: "zone", on: {
    dragover: (event) => { event.preventDefault(); zone.classList.add("over"); },
    dragleave: () => zone.classList.remove("over"),
    drop: (event) => {
      event.preventDefault();
      zone.classList.remove("over");
      take(event.dataTransfer.files[0], event.dataTransfer.files[0]?.name);
    },
    paste: (event) => take(event.clipboardData?.files[0], name),
  } },
  h("h2", { text: name }), h("p", { class: "soft", text: help }),
  h("div", { class: "line wrap" }, choose, h("label", { for: "file", class: "button", text: "choose" }), ...more), told, preview);
  return {
    element: zone,
    take,
    instance: () => (file === null ? null : { file, name: file.name || `${name}.bin`, picture: file }),
    example: (instance, first) => { if (!first && instance?.b64) take(decoded(instance.b64, type), "example"); },
  };
}

/** A picture. */
export function imageInput(described, changed) {
  let url = null;
  return fileInput(described, changed, {
    name: "image", help: "imageHelp", accept: "image/png,image/jpeg,image/webp,image/bmp,image/*", type: "image/png",
    shown: (file) => {
      if (url) URL.revokeObjectURL(url);
      url = URL.createObjectURL(file);
      return h("img", { src: url, alt: "", id: "preview" });
    },
  });
}

function size(bytes) {
  return bytes < 1e3 ? `${bytes} B` : bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
