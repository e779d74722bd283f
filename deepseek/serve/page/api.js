// Talking to the server: the API key, errors as the server says them, and streams of events.

import { $ } from "./element.js";
import { t } from "./words.js";

export const headers = () => {
  const key = $("key").value.trim();
  return key ? { Authorization: `Bearer ${key}` } : {};
};

/** Show an error, or none. */
export function show(text) {
  $("error").hidden = !text;
  $("error").textContent = text || "";
}

/** What a person should read; `shown` is it. */
export class Refused extends Error {
  constructor(shown) {
    super(shown);
    this.shown = shown;
  }
}

/** Return what to show for a refusal: what it means where that is known, and the server's own sentence. */
export function wordsFor(status, error) {
  const said = (typeof error === "string" ? error : error?.message) || `HTTP ${status}`;
  let meant = "";
  if (status === 401) {
    $("key-box").hidden = false;
    $("key").focus();
    meant = t("refused");
  } else if (status === 429) meant = t("busy");
  else if (status === 503) meant = t("unready");
  else if (error?.code === "context_length_exceeded") meant = t("tooLong");
  return meant ? `${meant} (${said})` : said;
}

/** Return the response of a request. Throws Refused for a refusal and where nobody answers. */
export async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(t("unreachable"));
  }
  if (response.ok) return response;
  let error = {};
  try { error = (await response.json()).error; } catch { /* not ours: the status has to do */ }
  throw new Refused(wordsFor(response.status, error));
}

export const askJson = async (path, options) => (await ask(path, options)).json();

export const postJson = (body, more = {}) => ({
  method: "POST", body: JSON.stringify(body), ...more, headers: { "Content-Type": "application/json" },
});

/** Yield the objects of server-sent events. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
