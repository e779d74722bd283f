// Sound as input: a file, or the microphone recorded to WAV in the page; and live recognition where the model streams.

import { show } from "./api.js";
import { h } from "./element.js";
import { fileInput } from "./image.js";
import { microphone } from "./microphone.js";
import { listenButton } from "./stream.js";
import { wav } from "./wav.js";
import { t } from "./words.js";

/** A sound. */
export function audioInput(described, changed) {
  let url = null;
  let opened = null;
  let pieces = [];
  const record = h("button", { type: "button", id: "record", text: "record", on: { click: toggle } });
  const live = described.streams ? listenButton(described) : null;
  const input = fileInput(described, changed, {
    name: "audio", help: "audioHelp", accept: "audio/wav,.wav,.flac,.ogg", type: "audio/wav",
    more: [record, ...(live ? [live.button] : [])],
    shown: (file) => {
      if (url) URL.revokeObjectURL(url);
      url = URL.createObjectURL(file);
      return h("audio", { src: url, controls: true, "aria-label": t("audio") });
    },
  });
  if (live) input.element.append(live.output);

  function name(word) {
    record.dataset.text = word;
    record.textContent = t(word);
    record.classList.toggle("stop", word === "stopRecording");
  }

  async function toggle() {
    show("");
    if (opened === null) {
      pieces = [];
      record.disabled = true;
      try {
        opened = await microphone((piece) => pieces.push(piece));
        name("stopRecording");
      } catch {
        show(t("noMicrophone"));
      } finally {
        record.disabled = false;
      }
      return;
    }
    const { rate, stop } = opened;
    opened = null;
    await stop();
    name("record");
    input.take(new File([wav(pieces, rate)], "recording.wav", { type: "audio/wav" }), "recording.wav");
  }

  return input;
}
