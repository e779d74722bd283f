// The request as a command to copy: curl for a POSIX shell, and Python with nothing but its standard library.

import { headers } from "./api.js";
import { $, select, tabs } from "./element.js";
import { t } from "./words.js";

let request = null;
let kind = "as-curl";
const MOST = 20_000;

/** Show this request: {path, json} or {path, file} (a raw body), with `stream` where the answer comes in events. */
export function showCommand(next) {
  request = next;
  draw();
}

export function startCommand() {
  const items = [$("as-curl"), $("as-python")];
  tabs(items, (item) => {
    kind = item.id;
    select(items, item);
    $("code").setAttribute("aria-labelledby", kind);
    draw();
  });
  $("copy").addEventListener("click", copy);
}

function draw() {
  $("code").textContent = request === null ? "" : kind === "as-curl" ? curl() : python();
}

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function body() {
  const text = JSON.stringify(request.json);
  return text.length > MOST ? null : text;
}

function curl() {
  const key = headers().Authorization ? ' \\\n  -H "Authorization: Bearer $DEEPSEEK_API_KEY"' : "";
  const start = `curl ${request.stream ? "-N " : ""}${location.origin}${request.path}${key} \\\n  -H `;
  if (request.file) return `${start}'Content-Type: application/octet-stream' \\\n  --data-binary @${shell(request.file)}`;
  const text = body();
  return `${start}'Content-Type: application/json' \\\n  ${text === null ? "-d @request.json" : `-d ${shell(text)}`}`;
}

function python() {
  const key = headers().Authorization ? '\n    "Authorization": f"Bearer {os.environ[\'DEEPSEEK_API_KEY\']}",' : "";
  const lines = [`import json${key ? "\nimport os" : ""}\nimport urllib.request\n`];
  if (request.file) lines.push(`data = open(${JSON.stringify(request.file)}, "rb").read()`);
  else {
    const text = body();
    lines.push(text === null ? 'data = open("request.json", "rb").read()' : `data = ${quoted(text)}.encode()`);
  }
  const type = request.file ? "octet-stream" : "json";
  lines.push(`request = urllib.request.Request("${location.origin}${request.path}", data, {\n    "Content-Type": "application/${type}",${key}\n})`);
  lines.push("with urllib.request.urlopen(request) as answer:");
  if (request.stream) lines.push('    for line in answer:\n        print(line.decode(), end="")');
  else lines.push("    print(json.dumps(json.load(answer), indent=2, ensure_ascii=False))");
  return lines.join("\n");
}

/** A text as a Python literal: JSON's escapes are Python's, but for surrogate pairs, which stay characters here. */
const quoted = (text) => JSON.stringify(text);

async function copy() {
  const text = $("code").textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const range = document.createRange();
    range.selectNodeContents($("code"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    document.execCommand("copy");
  }
  $("copy").textContent = t("copied");
  setTimeout(() => { $("copy").textContent = t("copy"); }, 1500);
}
