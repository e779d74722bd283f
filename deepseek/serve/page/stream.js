// Live recognition: the microphone over a websocket, the text as it comes.

import { headers, show } from "./api.js";
import { h } from "./element.js";
import { microphone } from "./microphone.js";
import { pcm16 } from "./wav.js";
import { t } from "./words.js";

let stopNow = null;

/** End what listens. */
export function stopListening() {
  stopNow?.();
  stopNow = null;
}

/** The key as a subprotocol: a page can't set a websocket's headers. */
function protocols() {
  const key = headers().Authorization?.slice(7);
  if (!key) return ["deepseek.audio"];
  const bytes = String.fromCharCode(...new TextEncoder().encode(key));
  return ["deepseek.audio", `key.${btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`];
}

/** A button that listens, and where the text is shown. */
export function listenButton(described) {
  const finals = h("span", { class: "said" });
  const partial = h("span", { class: "soft", id: "partial" });
  const told = h("p", { class: "numbers", role: "status" });
  const output = h("div", { class: "live", hidden: true },
    h("h3", { text: "live" }), h("p", { id: "live", "aria-live": "polite" }, finals, partial), told);
  const button = h("button", { type: "button", id: "listen", text: "listen", on: { click: toggle } });
  const name = (word) => {
    button.dataset.text = word;
    button.textContent = t(word);
    button.classList.toggle("stop", word === "stopListening");
  };

  async function toggle() {
    if (stopNow) { stopListening(); return; }
    show("");
    output.hidden = false;
    finals.textContent = partial.textContent = told.textContent = "";
    let socket = null;
    let source = null;
    try {
      source = await microphone((piece) => { if (socket?.readyState === WebSocket.OPEN) socket.send(pcm16([piece])); });
      socket = new WebSocket(`${location.origin.replace(/^http/, "ws")}/v1/audio/stream`, protocols());
    } catch {
      show(t("noMicrophone"));
      await source?.stop();
      return;
    }
    name("stopListening");
    socket.onopen = () => socket.send(JSON.stringify({
      type: "start", model: described.name, version: described.asked, sample_rate: source.rate, encoding: "pcm16",
    }));
    socket.onmessage = (event) => take(JSON.parse(event.data));
    socket.onerror = () => show(t("unreachable"));
    const ended = async () => { await source.stop(); name("listen"); if (stopNow === stop) stopNow = null; };
    socket.onclose = ended;
    const stop = () => {
      source.stop();
      if (socket.readyState === WebSocket.OPEN) socket.send('{"type":"end"}'); else socket.close();
    };
    stopNow = stop;
  }

  function take(message) {
    if (message.type === "error") show(message.error.message);
    if (message.type === "partial") partial.textContent = message.text;
    if (message.type === "final") {
      finals.textContent += `${message.text} `;
      partial.textContent = "";
    }
    if (message.real_time_factor) {
      told.textContent = `${t("listening")((message.end ?? message.seconds).toFixed(1))} · ${t("factor")(message.real_time_factor)}`;
    }
  }
  return { button, output };
}
