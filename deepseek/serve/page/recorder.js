// The part of recording that runs beside the page, in the browser's sound thread: hands over a tenth of a second at a time.

class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.held = [];
    this.count = 0;
  }

  process(inputs) {
    const channel = inputs[0][0];
    if (channel) {
      this.held.push(channel.slice());
      this.count += channel.length;
      if (this.count >= sampleRate / 10) {
        const piece = new Float32Array(this.count);
        let place = 0;
        for (const part of this.held) {
          piece.set(part, place);
          place += part.length;
        }
        this.port.postMessage(piece, [piece.buffer]);
        this.held = [];
        this.count = 0;
      }
    }
    return true;
  }
}

registerProcessor("recorder", Recorder);
