// The microphone: samples as they come, until it is stopped.

/** Open the microphone; `piece` gets Float32Arrays. Return {rate, stop}. */
export async function microphone(piece) {
  if (!navigator.mediaDevices) throw new Error("no microphone");
  const sound = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
  const context = new AudioContext();
  try {
    await context.audioWorklet.addModule("/page/recorder.js");
    const node = new AudioWorkletNode(context, "recorder", { numberOfOutputs: 0 });
    node.port.onmessage = (event) => piece(event.data);
    context.createMediaStreamSource(sound).connect(node);
  } catch (error) {
    sound.getTracks().forEach((track) => track.stop());
    await context.close();
    throw error;
  }
  const stop = async () => {
    if (context.state === "closed") return;
    sound.getTracks().forEach((track) => track.stop());
    await context.close();
  };
  return { rate: context.sampleRate, stop };
}
