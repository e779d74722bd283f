// Answers by what a model gives: bars, boxes and masks over the picture, texts, numbers, tables, pictures.

import { h, s, short } from "./element.js";
import { decoded } from "./image.js";
import { t } from "./words.js";

const DRAWN = {
  classes: (answer) => bars(answer.classes.map(({ label, score }) => [label, score])),
  values: (answer) => h("p", { class: "large" }, answer.values.map(short).join("  ")),
  boxes, mask,
  text: (answer) => h("p", { class: "said", id: "said" }, answer.text),
  tokens, vectors, energies,
  image: (answer) => h("figure", { class: "picture" }, h("img", { src: URL.createObjectURL(decoded(answer.image.b64, "image/png")), alt: t("image") })),
};

/** Return an answer drawn; what has no drawing stands in its JSON alone. */
export function draw(gives, answer, picture) {
  return DRAWN[gives] ? DRAWN[gives](answer, picture) : h("pre", { class: "mono", tabIndex: 0, textContent: values(answer) });
}

export const colour = (index) => `hsl(${(index * 137.5 + 168) % 360} 65% 45%)`;

/** Shares of 1 as bars: pairs of a name and a share. */
function bars(pairs, colours = null) {
  return h("ul", { class: "bars" }, ...pairs.map(([name, share], index) => {
    const fill = h("span", { class: "fill" });
    fill.style.inlineSize = `${Math.max(0, Math.min(1, share ?? 0)) * 100}%`;
    if (colours) fill.style.background = colours[index];
    return h("li", {},
      h("span", { class: "name" }, String(name)),
      h("span", { class: "track", "aria-hidden": "true" }, fill),
      h("span", { class: "value" }, share === null ? "–" : `${(share * 100).toFixed(1)} %`));
  }));
}

function boxes(answer, picture) {
  const width = answer.width || 1, height = answer.height || 1;
  const line = Math.max(width, height) / 300;
  const overlay = s("svg", { viewBox: `0 0 ${width} ${height}`, class: "over", role: "img", "aria-label": t("found")(answer.objects.length) });
  const rows = answer.objects.slice(0, 300).map(({ label, index, score, box: [left, top, right, bottom] }) => {
    const tone = colour(index);
    overlay.append(s("rect", { x: left, y: top, width: right - left, height: bottom - top, fill: "none", stroke: tone, "stroke-width": line }));
    return [label, score, tone];
  });
  const found = rows.slice(0, 50);
  return h("div", {}, framed(picture, overlay),
    h("p", { class: "soft", id: "found" }, rows.length ? t("found")(rows.length) : t("nothing")),
    bars(found.map(([label, score]) => [label, score]), found.map(([, , tone]) => tone)));
}

function framed(picture, ...over) {
  const image = picture ? h("img", { src: URL.createObjectURL(picture), alt: t("chosen") }) : null;
  return h("figure", { class: "picture" }, h("div", { class: "stack" }, image, ...over));
}

function mask(answer, picture) {
  const shares = bars(answer.classes.map(({ label, share }) => [label, share]), answer.classes.map(({ index }) => colour(index)));
  if (answer.mask?.format !== "png") {
    const link = answer.mask ? h("a", { download: "mask.npy", text: "download", href: URL.createObjectURL(decoded(answer.mask.b64, "")) }) : null;
    return h("div", {}, h("p", {}, answer.size.join(" × ")), shares, link);
  }
  const canvas = h("canvas", { class: "over", id: "mask", role: "img", "aria-label": t("gives").mask, width: answer.size[1], height: answer.size[0] });
  paint(canvas, answer);
  const opacity = h("input", { id: "opacity", type: "range", min: 0, max: 1, step: 0.05 });
  opacity.value = 0.55;
  const set = () => { canvas.style.opacity = opacity.value; };
  opacity.addEventListener("input", set);
  set();
  return h("div", {}, framed(picture, canvas),
    h("div", { class: "setting" }, h("label", { for: "opacity", text: "opacity" }), opacity), shares);
}

/** Paint a PNG of class numbers in the classes' colours; class 0 stays clear. */
async function paint(canvas, answer) {
  const levels = await createImageBitmap(decoded(answer.mask.b64, "image/png"), { colorSpaceConversion: "none" });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(levels, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  const colours = answer.classes.map(({ index }) => rgb(colour(index)));
  for (let place = 0; place < pixels.data.length; place += 4) {
    const index = pixels.data[place];
    pixels.data.set(colours[index] || [0, 0, 0], place);
    pixels.data[place + 3] = index ? 255 : 0;
  }
  context.putImageData(pixels, 0, 0);
  canvas.dataset.painted = "true";
}

function rgb(tone) {
  const context = new OffscreenCanvas(1, 1).getContext("2d");
  context.fillStyle = tone;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
}

function tokens(answer) {
  return h("div", {}, h("p", { class: "said" }, answer.text),
    ...answer.hidden.map(({ tokens: found }) => bars(found.map(({ token, score }) => [token, score]))));
}

function vectors(answer) {
  const tables = Object.entries(answer.similarity).map(([name, rows]) => table([name], rows.map((row) => row.map(short))));
  const sizes = Object.entries(answer.vectors).map(([name, rows]) => `${name}: ${rows.length} × ${rows[0]?.length ?? 0}`);
  return h("div", {}, h("p", { class: "soft" }, sizes.join(" · ")), ...tables);
}

function energies(answer) {
  return h("div", {}, h("p", { class: "large" }, `${t("energy")} ${short(answer.energy)}`),
    table(["x", "y", "z"], answer.forces.map((row) => row.map(short))));
}

function table(heads, rows) {
  return h("div", { class: "scroll", tabIndex: 0 }, h("table", {},
    h("thead", {}, h("tr", {}, ...heads.map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map((cell) => h("td", {}, cell)))))));
}

function values(answer) {
  const text = JSON.stringify(answer, null, 1);
  return text.length > 4000 ? `${text.slice(0, 4000)}…` : text;
}
